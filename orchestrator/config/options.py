"""Settings of the form ``{name: NAME, option: value, ...}`` for everything that a registry holds.

The options are the fields of the registered dataclass, so a new defence or strategy brings its own and nothing is written
twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model

from fedveil.fl.errors import FedveilError
from fedveil.fl.registry import Registry

T = TypeVar("T")


def options_of(cls: type[Any]) -> dict[str, Any]:
    """Return the option names of a registered dataclass with their defaults."""
    return {f.name: f.default for f in _fields(cls)}


def _fields(cls: type[Any]) -> list[dataclasses.Field[Any]]:
    return [f for f in dataclasses.fields(cls) if f.init and f.repr]


def schema_of(cls: type[Any]) -> type[BaseModel]:
    """Return the pydantic model of a registered dataclass's options."""
    hints = get_type_hints(cls)
    fields: dict[str, Any] = {}
    for f in _fields(cls):
        default = f.default if f.default is not dataclasses.MISSING else ...
        if f.default_factory is not dataclasses.MISSING:
            default = f.default_factory()
        fields[f.name] = (hints[f.name], default)
    model: type[BaseModel] = create_model(
        cls.__name__, __config__=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False), **fields
    )
    return model


def build(cls: type[T], options: Mapping[str, Any]) -> T:
    """Check ``options`` against the fields of ``cls`` and make the object.

    Raises:
        pydantic.ValidationError: an option is unknown, lacking or of the wrong type.
        FedveilError: a value that the class itself refuses.
    """
    checked = schema_of(cls).model_validate(dict(options))
    return cls(**{f.name: getattr(checked, f.name) for f in _fields(cls)})


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
