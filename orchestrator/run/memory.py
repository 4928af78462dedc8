"""What a sweep has to know of itself to be resumed, on disk twice: in its folder, and beside what Tune keeps of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray import cloudpickle

from fedveil.fl.errors import FedveilError
from fedveil.fl.sealed import checksum, write_whole
from fedveil.orchestrator.cluster.progress import Say
from fedveil.orchestrator.run.paths import ExperimentPaths
from fedveil.orchestrator.tracking import without_passwords

_CHECKSUM = "checksum"
_SEARCHER = ("basic-variant-state-*.json", "search_gen_state-*.json", "searcher-state-*.pkl")
"""What Tune keeps of a searcher; all three are pickles."""


@dataclass(frozen=True)
class Memory:
    """A sweep that may be resumed.

    Attributes:
        run_id: of its MLflow run.
        tune: name of Tune's storage.
        settings: its experiment, without passwords.
        starts: how often it was resumed.
    """

    run_id: str
    tune: str
    settings: Mapping[str, Any]
    starts: int = 0


def keep(memory: Memory, paths: ExperimentPaths) -> None:
    """Write the memory down."""
    plain = asdict(memory)
    text = json.dumps({_CHECKSUM: _check(plain), **plain}, indent=2) + "\n"
    for place in (paths.tune / memory.tune / paths.memory.name, paths.memory):
        write_whole(place, [text.encode()])


def recall(paths: ExperimentPaths) -> Memory:
    """Return what `keep` wrote last, from the copy where the file is damaged.

    Raises:
        FedveilError: there was no sweep, or both are damaged.
    """
    place = paths.memory
    if not place.exists():
        elsewhere = "" if paths.copy is None else f", and nothing at {without_passwords(paths.copy)}"
        raise FedveilError(
            f"--resume: there is nothing to resume, no {place}{elsewhere}; start the sweep without --resume"
        )
    copies = sorted(paths.tune.glob(f"*/{place.name}"))[-1:]  # their folders' names begin with the time
    for one in (place, *copies):
        memory = _read(one)
        if memory is not None:
            return memory
    raise FedveilError(
        f"--resume: {place} is damaged and so is its copy below {paths.tune}; start anew without --resume"
    )


def whole_states(folder: Path, say: Say) -> bool:
    """Set aside all states that Tune wrote of a part of a sweep but the last whole one; return whether there is one.

    Tune writes one file per start of the part, and takes the one whose name has the latest time: that of the clock, and in
    the zone, of the machine where the part was started. Where it cannot read what it or its searcher has written, it prints
    a traceback and begins anew.

    Args:
        folder: of the part.
        say: is told what is set aside.
    """
    searcher = [path for pattern in _SEARCHER for path in folder.glob(pattern) if not _is_pickle(path)]
    for path in searcher:
        _set_aside(path, "damaged")
        say(
            f"note: {path} is damaged and is set aside: the search begins anew, its trials go on from their checkpoints"
        )
    whole = False
    for state in sorted(folder.glob("experiment_state-*.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True):
        if whole or searcher:
            _set_aside(state, "earlier")
            continue
        trials = _trials_in(state)
        if trials is None:
            _set_aside(state, "damaged")
            say(
                f"note: {state} is damaged and is set aside: its trials go on from their checkpoints, or an older state's"
            )
        whole = bool(trials)
    return whole


def _set_aside(path: Path, why: str) -> None:
    path.rename(path.with_name(f"{why}-{path.name}"))


def _trials_in(state: Path) -> int | None:
    """Return how many trials a state of Tune's knows; None where it cannot be read."""
    try:
        trials = json.loads(state.read_bytes())["trial_data"]
        for trial, seen in trials:
            json.loads(trial, object_hook=_unpickled)
            json.loads(seen, object_hook=_unpickled)
    except Exception:  # unpickling what is damaged may raise anything
        return None
    return len(trials)


def _unpickled(found: dict[str, Any]) -> dict[str, Any]:
    """Try what Tune does next with a value for which JSON has no word."""
    if found.get("_type") == "CLOUDPICKLE_FALLBACK":
        cloudpickle.loads(bytes.fromhex(found["value"]))
    return found


def _is_pickle(path: Path) -> bool:
    try:
        cloudpickle.loads(path.read_bytes())  # as Tune does, next
    except Exception:
        return False
    return True


def _read(place: Path) -> Memory | None:
    try:
        plain = json.loads(place.read_bytes())
        check = plain.pop(_CHECKSUM)
        return Memory(**plain) if check == _check(plain) else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _check(plain: Mapping[str, Any]) -> str:
    return checksum(json.dumps(plain, sort_keys=True).encode(), "sweep").hex()
