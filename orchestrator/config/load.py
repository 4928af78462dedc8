"""Reading experiment files: YAML, overrides, and one line per mistake with the key's path, before Ray starts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from attacks.base import ATTACKS
from attacks.inverse import InverseTraining
from attacks.inverting_gradients import InvertingGradients
from defense.base import DEFENSES
from fl.errors import FedveilError
from fl.messages import UpdateKind
from fl.models import MODELS
from fl.strategies import STRATEGIES, Krum
from orchestrator.config.options import options_of
from orchestrator.config.schema import Experiment, as_list
from orchestrator.config.space import check_space, corners

Raw = dict[str, Any]


class ConfigError(FedveilError):
    """The experiment file is wrong; one line per mistake: the key's path, what was given, what is allowed."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines = tuple(dict.fromkeys(lines))
        super().__init__("\n".join(self.lines))


def load_experiment(path: Path | str, overrides: Iterable[str] = ()) -> tuple[Experiment, Raw]:
    """Read and check an experiment file.

    Args:
        path: a YAML file.
        overrides: ``a.b=value`` each, the value in YAML.

    Returns:
        The experiment, and the raw mapping behind it with the overrides applied, for a sweep to vary.

    Raises:
        ConfigError: anything in it is wrong; all mistakes are listed.
    """
    raw = _read(Path(path))
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError([f"--set {override}: expected KEY=VALUE, for example --set fl.rounds=5"])
        try:
            set_key(raw, key, yaml.safe_load(text))
        except yaml.YAMLError:
            raise ConfigError([f"--set {override}: the value is not YAML"]) from None
    return check(raw), raw


def _read(path: Path) -> Raw:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read ({error.strerror})"]) from None
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: is not UTF-8 text"]) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError([f"{path}{where}: is not YAML ({getattr(error, 'problem', None) or 'bad syntax'})"]) from None
    if not isinstance(raw, dict):
        raise ConfigError([f"{path}: expected keys and values, for example 'experiment: my-first'"])
    return raw


def set_key(raw: Raw, key: str, value: Any) -> None:
    """Set a dotted key in place. ``defense.strength`` reaches into a single defence; sections are made as needed."""
    parts = key.split(".")
    here = raw
    for depth, part in enumerate(parts[:-1]):
        below = here.get(part, {})
        if isinstance(below, str) or (part == "defense" and isinstance(below, list)):
            listed = as_list(below)
            if len(listed) != 1:
                raise ConfigError([f"{key}: 'defense' is a list of {len(listed)}; override it as a whole"])
            below = listed[0]
        if not isinstance(below, dict):
            raise ConfigError([f"{key}: {'.'.join(parts[: depth + 1])!r} is a value, not a section"])
        here[part] = below
        here = below
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
    try:
        experiment = Experiment.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_explain(error, Experiment)) from None
    lines = _impossible(experiment)
    if experiment.search is not None and not lines:
        lines = check_space(experiment.search) or _check_variants(raw, experiment)
    if lines:
        raise ConfigError(lines)
    return experiment


def _check_variants(raw: Raw, experiment: Experiment) -> list[str]:
    search = experiment.search
    if search is None:
        return []
    base = {k: v for k, v in raw.items() if k != "search"}
    variants: list[tuple[str, Mapping[str, Any]]] = [
        (f"search.panel.{i}", overrides) for i, overrides in enumerate(search.panel)
    ]
    variants += [("search.space", overrides) for overrides in corners(search.space)]
    lines: list[str] = []
    for where, overrides in variants:
        try:
            check(with_overrides(base, overrides))
        except ConfigError as error:
            lines += [f"{where}: {line}" for line in error.lines]
    return lines


def _explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    lines = []
    for item in error.errors(include_url=False):
        path = prefix + ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            allowed = _keys_at(model, item["loc"][:-1])
            lines.append(f"{path}: unknown key; allowed: {', '.join(allowed)}")
        elif item["type"] == "missing":
            lines.append(f"{path}: is missing")
        else:
            message = item["msg"].removeprefix("Value error, ")
            lines.append(f"{path}: given {_shown(item['input'])}; {message[0].lower()}{message[1:]}")
    return lines


def _keys_at(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    for part in path:
        field = model.model_fields.get(str(part))
        kinds = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not sections:
            return []
        model = sections[0]
    return sorted(model.model_fields)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _attempt(path: str, make: Callable[[], Any], allowed: Callable[[], Iterable[str]]) -> list[str]:
    """Try to build what a free-form setting describes; return what is wrong with it."""
    try:
        make()
    except ValidationError as error:
        lines = []
        for item in error.errors(include_url=False):
            key = ".".join(str(part) for part in item["loc"])
            if item["type"] == "extra_forbidden":
                lines.append(f"{path}.{key}: unknown key; allowed: {', '.join(allowed()) or 'none'}")
            else:
                lines.append(f"{path}.{key}: given {_shown(item['input'])}; {item['msg'][0].lower()}{item['msg'][1:]}")
        return lines
    except FedveilError as error:
        return [f"{path}: {error}"]
    return []


def _impossible(experiment: Experiment) -> list[str]:
    """Return what is wrong beyond single keys: free-form settings and impossible combinations."""
    fl, audit = experiment.fl, experiment.audit
    lines: list[str] = []
    for index, part in enumerate(experiment.defense):
        where = "defense" if len(experiment.defense) == 1 else f"defense.{index}"
        lines += _attempt(
            where,
            lambda: experiment.model_copy(update={"defense": [part]}).build_defense(),  # noqa: B023 - called at once
            lambda: _options(DEFENSES, part.get("name")),  # noqa: B023
        )
    if not experiment.defense:
        lines.append("defense: the list is empty; 'none' is the undefended client")
    lines += _attempt("fl.strategy", fl.build_strategy, lambda: _options(STRATEGIES, fl.strategy.get("name")))
    lines += _attempt("data.partition", experiment.data.build_partition, lambda: ["kind", "and that kind's options"])
    lines += _attempt("audit.attacks", audit.build_attacks, lambda: ATTACKS)
    lines += _attempt("audit.inversion", audit.build_inversion, lambda: options_of(InvertingGradients))
    lines += _attempt("audit.inverse", audit.build_inverse, lambda: options_of(InverseTraining))
    if experiment.model.name not in MODELS:
        lines.append(f"model.name: given {experiment.model.name!r}; allowed: {', '.join(MODELS)}")
    if lines:
        return lines

    strategy = fl.build_strategy()
    if strategy.local_kind is UpdateKind.GRADIENT and fl.local_epochs != 1:
        lines.append(
            f"fl.local_epochs: given {fl.local_epochs}; with strategy fedsgd clients send one gradient, allowed: 1"
        )
    if isinstance(strategy, Krum) and fl.cohort_size < 2 * strategy.byzantine + 3:
        lines.append(
            f"fl.strategy: krum with byzantine {strategy.byzantine} needs {2 * strategy.byzantine + 3} clients per"
            f" round; fl.clients and fl.cohort give {fl.cohort_size}"
        )
    if experiment.resources.workers > min(fl.shares, fl.cohort_size):
        lines.append(
            f"resources.workers: given {experiment.resources.workers}; a round is cut into"
            f" {min(fl.shares, fl.cohort_size)} share(s) (fl.shares, clients per round), more workers would idle"
        )
    for number in audit.rounds:
        if isinstance(number, int) and not 0 <= number < fl.rounds:
            lines.append(f"audit.rounds: given {number}; allowed: 0 to {fl.rounds - 1} (fl.rounds - 1), middle, last")
    if not audit.rounds:
        lines.append("audit.rounds: the list is empty; name at least one round")
    if audit.labels == "recovered" and audit.batch_size > 1:
        lines.append(
            f"audit.labels: given 'recovered' with audit.batch_size {audit.batch_size}; iDLG recovers labels of single"
            " images: set audit.batch_size to 1 or audit.labels to known"
        )
    if audit.victims % audit.batch_size:
        lines.append(
            f"audit.victims: given {audit.victims}; has to be a multiple of audit.batch_size {audit.batch_size}"
        )
    if audit.clients is not None and audit.clients > fl.clients:
        lines.append(f"audit.clients: given {audit.clients}; there are {fl.clients} (fl.clients)")
    if len(set(audit.attacks)) != len(audit.attacks):
        lines.append(f"audit.attacks: given {audit.attacks}; each attack once")
    return lines


def _options(registry: Any, name: object) -> list[str]:
    return sorted(options_of(registry[name])) if name in registry else sorted(registry)
