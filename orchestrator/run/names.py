"""Names and parameters of trials: what tells them apart, short enough for a table and fit for a folder."""

from __future__ import annotations

import hashlib
import itertools
import os
import uuid
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedveil.defense import DEFENSES, Defense, Stack
from fedveil.fl.sealed import make_private
from fedveil.orchestrator.config import Experiment
from fedveil.orchestrator.report.rows import FINISHED, TrialRow
from fedveil.orchestrator.tracking.names import TITLE

Option = tuple[str, str]
"""(a defence's name, one of its options)."""
EARLIER = "earlier_names"
"""Folder beside that of the claims: by whom each was made before."""
_LONGEST = 200
"""Bytes in a name; file systems take 255, and seeds and numbers are still appended."""


def params_of(experiment: Experiment) -> dict[str, str | float]:
    """Return the flat parameters that MLflow and reports share; a stack has those of its first part that has them."""
    params: dict[str, str | float] = {
        "data.name": experiment.data.name,
        "model.name": experiment.model.name,
        "defense.name": "+".join(str(part["name"]) for part in experiment.defense),
        "fl.clients": experiment.fl.clients,
        "fl.rounds": experiment.fl.rounds,
        "seed": experiment.seed,
    }
    defense = experiment.build_defense()
    parts = defense.parts if isinstance(defense, Stack) else (defense,)
    dial = next((part.dial for part in parts if hasattr(part, part.dial)), None)
    if dial is not None:
        params["defense.dial"] = dial
    for key in dict.fromkeys(("strength", "privacy_weight", "utility_weight", *filter(None, [dial]))):
        values = [getattr(part, key) for part in parts if hasattr(part, key)]
        if values:
            params[f"defense.{key}"] = float(values[0])
    params[TITLE] = TrialRow("", FINISHED, params).title
    return params


def single_values(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a trial overrides by a single value, which becomes a param of that name.

    The defence is not among it, even where its name is all that is given: `params_of` tells it under other names, and a
    param that one trial of a panel has and the others lack is no help in comparing them.

    >>> single_values({"defense": "none", "fl.rounds": 3, "audit.attacks": ["dlg"]})
    {'fl.rounds': 3}
    """
    return {key: value for key, value in overrides.items() if key != "defense" and not isinstance(value, (dict, list))}


def trial_name(overrides: Mapping[str, Any], hidden: Collection[Option] = ()) -> str:
    """Return a trial's name: what it overrides, with the values.

    Args:
        overrides: dotted keys to values, as in ``search.space`` and ``search.panel``.
        hidden: options of defences to leave out.
    """
    parts = []
    for key, value in sorted(overrides.items(), key=lambda item: item[0].count(".")):
        if key == "defense":
            parts += [_defense_name(part, hidden) for part in _stack(value)]
        else:
            parts.append(f"{key.rpartition('.')[2]}={_short(value)}")
    return fitted("_".join(parts) or "trial")


def run_token(storage: str, name: str, seed: int) -> str:
    """Return the name that a sweep's trial gives its run under a seed, the same whenever it is asked.

    Args:
        storage: name of the sweep's own storage.
        name: that the trial has `claimed` in it.
        seed: of the trial.
    """
    return uuid.uuid5(uuid.NAMESPACE_OID, f"{storage}/{name}/{seed}").hex


def claimed(claims: Path, name: str, owner: str) -> str:
    """Return ``name`` for the owner alone, or ``name-2`` and so on where others have it; the same whenever it is asked.

    A search may draw the same setting twice, and each trial has files of its own.

    Args:
        claims: folder of what has been claimed; is made if need be.
        name: of a trial.
        owner: tells the trial from all others.
    """
    make_private(claims)
    numbered, number = name, 1
    while not _is_claimed(claims / numbered, owner):
        number += 1
        numbered = f"{name}-{number}"
    return numbered


def release_claims(claims: Path, owners: str) -> None:
    """Let other owners claim the names of those whose own begin like this; `earlier_owners` knows them still."""
    for claim in claims.iterdir() if claims.is_dir() else ():
        if claim.is_file() and (owner := claim.read_text(encoding="utf-8")).startswith(owners):
            kept = claims.parent / EARLIER / claim.name
            kept.parent.mkdir(exist_ok=True, mode=0o700)
            with kept.open("a", encoding="utf-8") as lines:
                lines.write(f"{owner}\n")
            claim.unlink()


def earlier_owners(claims: Path, name: str) -> list[str]:
    """Return whose claims of a name were released."""
    kept = claims.parent / EARLIER / name
    return kept.read_text(encoding="utf-8").splitlines() if kept.exists() else []


def _is_claimed(claim: Path, owner: str) -> bool:
    scratch = claim.with_name(f"{uuid.uuid4().hex}.part")
    scratch.write_text(owner, encoding="utf-8")
    try:
        os.link(scratch, claim)  # there with its content or not at all, whoever else claims it now
    except FileExistsError:
        return claim.read_text(encoding="utf-8") == owner
    finally:
        scratch.unlink()
    return True


def fitted(name: str) -> str:
    """Return ``name``; a longer one than a folder's name may be as its beginning and a hash of the whole.

    >>> fitted("latent"), len(fitted("latent" * 100))
    ('latent', 200)
    """
    whole = name.encode("utf-8", "replace")
    if len(whole) <= _LONGEST:
        return name
    mark = "~" + hashlib.blake2b(whole, digest_size=6).hexdigest()
    return whole[: _LONGEST - len(mark)].decode("utf-8", "ignore") + mark


def panel_names(panel: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return distinct names for the entries of a panel, in order.

    An option that all entries with a defence share does not tell them apart and is left out, unless names would clash;
    a defence's only entry keeps its dial (`fedveil.defense.Defense.dial`).
    """
    values: defaultdict[Option, list[Any]] = defaultdict(list)
    holders: Counter[str] = Counter()
    for part in (part for overrides in panel for part in _stack(overrides.get("defense", []))):
        name, options = _split(part)
        holders[name] += 1
        for key, value in options.items():
            values[name, key].append(value)
    hidden = {
        option
        for option, given in values.items()
        if len(given) == holders[option[0]]
        and all(value == given[0] for value in given)
        and (len(given) > 1 or option[1] != _dial(option[0]))
    }
    short = [trial_name(overrides, hidden) for overrides in panel]
    clashes = {name for name, times in Counter(short).items() if times > 1}
    names = [trial_name(o) if name in clashes else name for o, name in zip(panel, short, strict=True)]
    distinct: list[str] = []
    for name in names:
        numbered = (f"{name}_{number}" for number in itertools.count(2))
        distinct.append(next(n for n in itertools.chain([name], numbered) if n not in distinct))
    return distinct


def _dial(name: str) -> str:
    return DEFENSES[name].dial if name in DEFENSES else Defense.dial


def _stack(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _split(part: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(part, str):
        return part, {}
    return str(part["name"]), {key: value for key, value in part.items() if key != "name"}


def _defense_name(part: Any, hidden: Collection[Option]) -> str:
    name, options = _split(part)
    shown = [f"{key}={_short(value)}" for key, value in options.items() if (name, key) not in hidden]
    return "_".join([name, *shown])


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("/", "-").replace(" ", "")
