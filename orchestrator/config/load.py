"""Reading experiment files: YAML, overrides, and one line per mistake with the key's path, before Ray starts."""

from __future__ import annotations

import copy
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedveil.attacks import ATTACKS, MODEL_INVERSIONS
from fedveil.defense import DEFENSES
from fedveil.fl.augmentation import AUGMENTATIONS
from fedveil.fl.data.files import read_plain
from fedveil.fl.errors import FedveilError, SettingError, brief
from fedveil.fl.models import MODELS
from fedveil.fl.optimizers import OPTIMIZERS
from fedveil.fl.partition import PARTITIONS
from fedveil.fl.registry import Registry
from fedveil.fl.strategies import STRATEGIES
from fedveil.orchestrator.config.combinations import conflicts, idle
from fedveil.orchestrator.config.explain import explain, listed, shown
from fedveil.orchestrator.config.options import build, normalise, schema_of
from fedveil.orchestrator.config.plugins import load_plugins
from fedveil.orchestrator.config.schema import SECTIONS, Experiment, SearchSection
from fedveil.orchestrator.config.space import check_space, corners, grid_points
from fedveil.orchestrator.config.uri import place_fault, uri_fault
from fedveil.orchestrator.config.yaml import YAMLError, fault, parse
from fedveil.orchestrator.metrics import objectives
from fedveil.orchestrator.tracking import without_passwords

Raw = dict[str, Any]


@dataclass(frozen=True)
class _Variant:
    """A trial that a search may make: the place where it stands, what tells it apart, and the checked whole."""

    where: str
    overrides: Mapping[str, Any]
    experiment: Experiment


class ConfigError(FedveilError):
    """The experiment file is wrong; one line per mistake: the key's path, what was given, what is allowed."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines = tuple(dict.fromkeys(lines))
        super().__init__(self.lines)  # what pickle calls the class with, on the way out of a worker

    def __str__(self) -> str:
        return "\n".join(self.lines)


def load_experiment(
    source: Path | str | Mapping[str, Any], overrides: Iterable[str] = (), plugins: Sequence[str] = ()
) -> tuple[Experiment, Raw]:
    """Read and check an experiment, after importing its plug-ins (`plugins.loaded` has them for other processes).

    Args:
        source: a YAML file, or what would stand in it.
        overrides: ``a.b=value`` each, the value in YAML.
        plugins: more of them than the file names, for the working folder.

    Returns:
        The experiment, and the raw mapping behind it with the overrides applied, for a sweep to vary.

    Raises:
        ConfigError: anything in it is wrong; all mistakes are listed.
    """
    if isinstance(source, Mapping):
        raw, folder = copy.deepcopy(dict(source)), Path()
    else:
        raw, folder = _read(Path(source)), Path(source).parent
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not all(part.strip() for part in key.split(".")):
            raise ConfigError([f"--set {_typed(override)}: expected KEY=VALUE, for example --set fl.rounds=5"])
        try:
            set_key(raw, key.strip(), parse(text))
        except YAMLError as error:
            raise ConfigError([f"--set {_typed(override)}: the value is not YAML ({brief(fault(error)[0])})"]) from None
    unspeakable = list(_unspeakable(raw))
    if unspeakable:
        raise ConfigError(unspeakable)
    _import_plugins(raw, folder, plugins)
    experiment, variants = _checked(raw)
    lines = [*_recording(experiment), *_idle(experiment, variants)]
    if lines:
        raise ConfigError(lines)
    return experiment, raw


def _typed(override: str) -> str:
    """Return an override for a message, which may end up in a log."""
    return brief(without_passwords(override))


def _unspeakable(value: Any, path: str = "") -> Iterator[str]:
    """Yield what holds control characters but line breaks and tabs: no path can, and a terminal would obey them."""
    if isinstance(value, str) and not _speakable(value):
        yield f"{path}: given {shown(value)}; no control characters, such as NUL, are allowed"
    elif isinstance(value, Mapping):
        for key, below in value.items():
            own = brief(f"{path}.{key}" if path else key)
            if isinstance(key, str) and not _speakable(key):
                yield f"{own}: no control characters, such as NUL, are allowed in a key"
            yield from _unspeakable(below, own)
    elif isinstance(value, list | tuple):
        for index, below in enumerate(value):
            yield from _unspeakable(below, f"{path}.{index}")


def _speakable(text: str) -> bool:
    # Halves of surrogate pairs (Cs) can be written down in YAML, and nowhere else.
    return not any(unicodedata.category(one) in ("Cc", "Cs") for one in text if one not in "\n\t")


def _import_plugins(raw: Raw, folder: Path, more: Sequence[str]) -> None:
    """Import the plug-ins of ``raw`` and ``more``, and name them all in ``raw``. Of a wrong list `check` complains."""
    given = raw.get("plugins", [])
    if not (isinstance(given, list) and all(isinstance(spec, str) for spec in given)):
        return
    for key, specs, base in (("plugins", given, folder), ("--plugin", more, Path())):
        try:
            load_plugins(specs, base)
        except FedveilError as error:
            raise ConfigError([f"{key}: {error}"]) from error
    if more:
        raw["plugins"] = [*given, *more]


def _recording(experiment: Experiment) -> list[str]:
    """Return what is wrong with the place of the record: that of the file, or the environment's where it gives none."""
    own, variable = experiment.tracking.uri, os.environ.get("MLFLOW_TRACKING_URI")
    key, uri = ("MLFLOW_TRACKING_URI", variable) if own is None else ("tracking.uri", own)
    rule = (uri_fault(uri) or place_fault(uri)) if uri else None
    return [f"{key}: given {shown(uri)}; {rule}"] if rule else []


def _read(path: Path) -> Raw:
    try:
        raw = parse(read_plain(path).decode("utf-8-sig"))
    except FedveilError as error:
        raise ConfigError([str(error)]) from None
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: is not UTF-8 text"]) from None
    except YAMLError as error:
        reason, where = fault(error)
        raise ConfigError([f"{path}{where}: is not YAML that fedveil reads ({brief(reason)})"]) from None
    if not isinstance(raw, dict):
        raise ConfigError([f"{path}: expected keys and values, for example 'experiment: my-first'"])
    return raw


SHORT_FORMS = {
    ("defense",): "name",
    ("fl", "optimizer"): "name",
    ("fl", "strategy"): "name",
    ("data", "partition"): "kind",
}
"""Where a bare name may stand for a section, and the key under which the section has it."""

SPACE = "search.space."


def set_key(raw: Raw, key: str, value: Any) -> None:
    """Set a dotted key in place. ``defense.strength`` reaches into a single defence; sections are made as needed.

    Keys and values for a whole section (``fl``, ``audit``, ...) are merged into it: what they do not name stays. All
    else is replaced, ``defense``, ``fl.optimizer``, ``fl.strategy``, ``data.partition`` and ``audit.attacks`` too, whose
    options belong to what they name. What follows ``search.space.`` is one key, dots and all.

    Raises:
        ConfigError: the key leads through something that is not a section.
    """
    parts = tuple(key.split("."))
    if key.startswith(SPACE):
        parts = ("search", "space", key.removeprefix(SPACE))
    here = raw
    for depth, part in enumerate(parts[:-1], start=1):
        below = here.get(part)
        if below is None:
            below = {}
        if parts[:depth] == ("defense",) and isinstance(below, list):
            if len(below) != 1:
                raise ConfigError([f"{brief(key)}: 'defense' is a list of {len(below)}; override it as a whole"])
            below = below[0]
        if parts[:depth] in SHORT_FORMS:
            below = normalise(below, SHORT_FORMS[parts[:depth]])
        if not isinstance(below, dict):
            kind = "a list; override it as a whole" if isinstance(below, list) else "a value, not a section"
            raise ConfigError([f"{brief(key)}: {shown('.'.join(parts[:depth]))} is {kind}"])
        # A copy: an alias may have put the same mapping in two places, and only this one is meant.
        here[part] = here = dict(below)
    before = here.get(parts[-1])
    if key in SECTIONS and isinstance(before, dict) and isinstance(value, dict):
        value = {**before, **value}
    here[parts[-1]] = value


def with_overrides(raw: Raw, overrides: Mapping[str, Any]) -> Raw:
    """Return a copy of ``raw`` with dotted keys set; whole sections first, so that ``defense`` precedes its options."""
    varied = copy.deepcopy(raw)
    for key in sorted(overrides, key=lambda k: k.count(".")):
        set_key(varied, key, copy.deepcopy(overrides[key]))
    return varied


def check(raw: Raw) -> Experiment:
    """Validate a raw experiment, the search space included.

    Raises:
        ConfigError: see `load_experiment`.
    """
    return _checked(raw)[0]


def _checked(raw: Raw) -> tuple[Experiment, list[_Variant]]:
    """Return the experiment, and what its search makes of it."""
    try:
        experiment = Experiment.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(explain(error, Experiment)) from None
    lines = _free_form(experiment) or conflicts(experiment)
    lines = lines or check_space(experiment)
    if lines:
        raise ConfigError(lines)
    return experiment, _checked_variants(raw, experiment.search)


def _checked_variants(raw: Raw, search: SearchSection | None) -> list[_Variant]:
    if search is None:
        return []
    base = {k: v for k, v in raw.items() if k != "search"}
    lines: list[str] = []
    variants: list[_Variant] = []
    for where, overrides in _variants(search):
        try:
            varied = check(with_overrides(base, overrides))
        except ConfigError as error:
            lines += [f"{where}: {line}" for line in error.lines]
            continue
        attacks = varied.audit.attack_labels()
        known = objectives(attacks, varied.audit.build_model_inversions())
        given = listed([*attacks[1:], *varied.audit.model_inversion_labels()])
        lines += [
            f"{where}: audit.attacks: given {given}; search.objectives has {shown(name)}, which these attacks"
            " do not report"
            for name in search.objectives
            if name not in known
        ]
        variants.append(_Variant(where, overrides, varied))
    if lines:
        raise ConfigError(lines)
    return variants


def _variants(search: SearchSection) -> list[tuple[str, Mapping[str, Any]]]:
    """Return what tells the trials apart, with the place where it stands; of a space enough to check it."""
    every = grid_points(search.space) if search.searcher == "grid" and search.space else corners(search.space)
    return [
        *((f"search.panel.{i}", overrides) for i, overrides in enumerate(search.panel)),
        *(("search.space", overrides) for overrides in every),
    ]


def _idle(experiment: Experiment, variants: Sequence[_Variant]) -> list[str]:
    """Return the settings that no trial reads, and those of a panel's entry that its own trial does not.

    A setting that only some trials read is fine: the others ignore it.
    """
    if experiment.search is None:
        return idle(experiment)
    lines: list[str] = []
    common: set[str] | None = None
    for variant in variants:
        unread = idle(variant.experiment)
        common = set(unread) if common is None else common & set(unread)
        if variant.where != "search.space":
            given = (line for line in unread if _gives(variant.overrides, line.partition(":")[0]))
            lines += [f"{variant.where}: {line}" for line in given]
    return sorted(common or ()) or lines


def _gives(overrides: Mapping[str, Any], key: str) -> bool:
    """Whether the overrides set ``key``, something below it, or what it is a part of."""
    given = [
        f"{name}.{below}" if below else name
        for name, value in overrides.items()
        for below in (value if name in SECTIONS and isinstance(value, dict) else [""])
    ]
    return any(f"{key}.".startswith(f"{name}.") or name.startswith(f"{key}.") for name in given)


def _free_form(experiment: Experiment) -> list[str]:
    """Return what is wrong with the settings whose keys depend on a name."""
    fl, data, audit = experiment.fl, experiment.data, experiment.audit
    lines: list[str] = []
    if not experiment.defense:
        lines.append("defense: the list is empty; 'none' is the undefended client")
    for index, part in enumerate(experiment.defense):
        where = "defense" if len(experiment.defense) == 1 else f"defense.{index}"
        lines += _named(where, DEFENSES, part)
    lines += _named("fl.optimizer", OPTIMIZERS, fl.optimizer)
    lines += _named("fl.strategy", STRATEGIES, fl.strategy)
    lines += [
        f"fl.augmentation.{index}: given {shown(name)}; allowed: {listed(AUGMENTATIONS)}, each once"
        for index, name in enumerate(fl.augmentation)
        if name not in AUGMENTATIONS or name in fl.augmentation[:index]
    ]
    lines += _named("data.partition", PARTITIONS, data.partition, key="kind")
    for index, attack in enumerate(audit.attacks):
        lines += _named(f"audit.attacks.{index}", ATTACKS, attack)
    for index, attack in enumerate(audit.model_inversion):
        lines += _named(f"audit.model_inversion.{index}", MODEL_INVERSIONS, attack)
    if experiment.references.augmentation is not None:
        try:
            experiment.central_training()
        except FedveilError as error:
            lines.append(f"references.augmentation: {error}")
    if experiment.model.name not in MODELS:
        lines.append(f"model.name: given {shown(experiment.model.name)}; allowed: {listed(MODELS)}")
    return lines


def _named(path: str, registry: Registry[type[Any]], setting: Mapping[str, Any], key: str = "name") -> list[str]:
    if key not in setting:
        return [f"{path}.{key}: is missing; allowed: {listed(registry)}"]
    name = setting[key]
    if not isinstance(name, str) or name not in registry:
        return [f"{path}.{key}: given {shown(name)}; allowed: {listed(registry)}"]
    return _options(path, registry[name], {k: v for k, v in setting.items() if k != key})


def _options(path: str, cls: type[Any], options: Mapping[str, Any]) -> list[str]:
    """Try to build what the options describe; return what is wrong with them."""
    try:
        build(cls, options)
    except ValidationError as error:
        return explain(error, schema_of(cls), f"{path}.")
    except SettingError as error:
        return [f"{path}.{error.key}: given {shown(error.value)}; {error.rule}"]
    except FedveilError as error:
        return [f"{path}: {error}"]
    return []
