"""Settings of the form ``{name: NAME, option: value, ...}`` for everything that a registry holds.

The options are the fields of the registered dataclass, so a new defence or attack brings its own and nothing is written
twice. A field that is a dataclass itself is a section of its own: ``{name: adaptive, inverse: {steps: 800}}``. One that is
an attack is written as in ``audit.attacks``: ``{name: adaptive, inversion: {name: deep_leakage, steps: 800}}``.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PydanticSchemaGenerationError,
    ValidationError,
    create_model,
)

from fedveil.attacks import ATTACKS, Attack
from fedveil.fl.errors import FedveilError, SettingError
from fedveil.fl.registry import Registry
from fedveil.orchestrator.config.explain import explain

T = TypeVar("T")


class _Options(BaseModel):
    """The options of one registered dataclass, as they are written down."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True, protected_namespaces=()
    )
    _describes: ClassVar[type[Any]]


def options_of(cls: type[Any]) -> dict[str, Any]:
    """Return the option names of a registered dataclass with their defaults; `dataclasses.MISSING` where there is none."""
    return {f.name: _default(f) for f in _fields(cls)}


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _fields(cls: type[Any]) -> list[dataclasses.Field[Any]]:
    # Its own: one that is only inherited knows the parent's fields and none of the class's.
    if "__dataclass_fields__" not in vars(cls):
        raise FedveilError(
            f"class {cls.__name__} is no dataclass; decorate it with @dataclass(frozen=True, kw_only=True)"
        )
    return [f for f in dataclasses.fields(cls) if f.init and f.repr]


def types_of(cls: type[Any]) -> dict[str, Any]:
    """Return the types of a registered dataclass's options.

    Raises:
        FedveilError: an annotation names what its module does not hold.
    """
    fields = _fields(cls)
    try:
        hints = get_type_hints(cls)
    except NameError as error:
        raise FedveilError(f"class {cls.__name__}: a type cannot be read ({error})") from None
    return {f.name: hints[f.name] for f in fields}


def schema_of(cls: type[Any]) -> type[_Options]:
    """Return the pydantic model of a registered dataclass's options.

    Raises:
        FedveilError: it is no dataclass, or a field's type is none that can be checked.
    """
    return _schema_of(cls)  # type: ignore[arg-type]  # mypy takes no class for hashable


@cache
def _schema_of(cls: type[Any]) -> type[_Options]:
    hints, defaults = types_of(cls), options_of(cls)
    fields: dict[str, Any] = {
        name: (_as_written(hint), ... if defaults[name] is dataclasses.MISSING else defaults[name])
        for name, hint in hints.items()
    }
    try:
        model: type[_Options] = create_model(cls.__name__, __base__=_Options, **fields)
    except PydanticSchemaGenerationError as error:
        raise FedveilError(f"class {cls.__name__}: {str(error).splitlines()[0]}") from None
    model._describes = cls
    return model


def described_by(model: type[BaseModel]) -> type[Any]:
    """Return the class whose docstring says what a model's fields mean: the registered one for a model of its options."""
    return model._describes if issubclass(model, _Options) else model


def is_attack(hint: Any) -> bool:
    """Whether a field holds an attack, which is written by its name."""
    return isinstance(hint, type) and issubclass(hint, Attack)


def is_section(hint: Any) -> bool:
    """Whether a field is a section of its own."""
    return isinstance(hint, type) and dataclasses.is_dataclass(hint) and not is_attack(hint)


def _attack(written: Any) -> Any:
    """Make the attack that is written, in words that name the wrong key where it can't be made."""
    if isinstance(written, Attack):
        return written
    setting = normalise(written)
    if not isinstance(setting, Mapping):
        raise ValueError("allowed: a name or {name: NAME, option: value, ...}")
    try:
        return build_named(ATTACKS, setting)
    except ValidationError as error:
        raise ValueError("; ".join(explain(error, schema_of(ATTACKS[setting["name"]])))) from None
    except FedveilError as error:
        raise ValueError(str(error)) from None


def _as_written(hint: Any) -> Any:
    """Return the type that a file has for a field: names for attacks, sections for dataclasses, lists for tuples."""
    if is_attack(hint):
        return Annotated[hint, BeforeValidator(_attack)]
    if is_section(hint):
        return schema_of(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return Union[tuple(map(_as_written, get_args(hint)))]  # noqa: UP007 - of a computed tuple
    if hint is tuple or get_origin(hint) is tuple:
        return Annotated[hint, BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]
    return hint


def build(cls: type[T], options: Mapping[str, Any]) -> T:
    """Check ``options`` against the fields of ``cls`` and make the object.

    Raises:
        pydantic.ValidationError: an option is unknown, lacking or of the wrong type.
        SettingError: a value that the class itself refuses; its key is a dotted path where it is in a nested section.
        FedveilError: see `schema_of`.
    """
    made: T = _made(schema_of(cls).model_validate(dict(options)))
    return made


def _made(options: _Options) -> Any:
    values = {name: getattr(options, name) for name in type(options).model_fields}
    for name, value in values.items():
        if isinstance(value, _Options):
            try:
                values[name] = _made(value)
            except SettingError as error:
                raise SettingError(type(options).__name__, f"{name}.{error.key}", error.value, error.rule) from None
    return options._describes(**values)


def normalise(value: Any, key: str = "name") -> Any:
    """``NAME`` is short for ``{name: NAME}``."""
    return {key: value} if isinstance(value, str) else value


def build_named(registry: Registry[type[T]], setting: Mapping[str, Any], key: str = "name") -> T:
    """Make what ``setting[key]`` names, with the rest of ``setting`` as options.

    Raises:
        FedveilError: the name is lacking or unknown.
        pydantic.ValidationError: see `build`.
    """
    if key not in setting:
        raise FedveilError(f"{key!r} is missing; allowed: {', '.join(registry)}")
    name = setting[key]
    if not isinstance(name, str):
        raise FedveilError(f"{key!r} has to be a name, given {name!r}; allowed: {', '.join(registry)}")
    return build(registry[name], {k: v for k, v in setting.items() if k != key})
