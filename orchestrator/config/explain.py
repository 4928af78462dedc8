"""pydantic's errors in the words of an experiment file: the key's path, what was given, what is allowed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from fedveil.fl.errors import brief
from fedveil.orchestrator.tracking import without_passwords

_ALLOWED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list such as [a, b]",
    "tuple_type": "a list such as [a, b]",
    "dict_type": "keys and values",
    "finite_number": "a finite number",
    "too_short": "at least one entry",
    "greater_than": "above {gt:g}",
    "greater_than_equal": "{ge} or more",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
}
"""By pydantic's type of error. A type that is not here keeps pydantic's message."""


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """Return one line per mistake.

    Args:
        error: of validating ``model``.
        model: knows the keys that are allowed.
        prefix: the path of the section that ``model`` describes, with a dot at its end.
    """
    return [_line(item, model, prefix) for item in error.errors(include_url=False)]


def _line(item: Mapping[str, Any], model: type[BaseModel], prefix: str) -> str:
    place = tuple(part for part in item["loc"] if part != "[key]")
    path = brief(without_passwords(prefix + ".".join(str(part) for part in place)))
    kind = item["type"]
    if kind in ("extra_forbidden", "invalid_key"):
        return f"{path}: unknown key; allowed: {listed(_keys_at(model, place[:-1]))}"
    if place != item["loc"]:
        return f"{path}: this key is not text"
    if kind == "missing":
        return f"{path}: is missing"
    if kind == "value_error":
        rule = str(item["msg"]).removeprefix("Value error, ")
    elif kind == "model_type":
        rule = f"allowed: a section with keys of {listed(_keys_at(model, place))}"
    elif kind in _ALLOWED:
        rule = "allowed: " + _ALLOWED[kind].format(**item.get("ctx", {}))
    else:
        rule = f"{item['msg'][0].lower()}{item['msg'][1:]}"
    return f"{path}: given {shown(item['input'])}; {rule}"


def listed(names: Iterable[str]) -> str:
    """Return names in a row, or ``none``."""
    return ", ".join(names) or "none"


def shown(value: object) -> str:
    """Return a value as a YAML author knows it, cut to 60 characters; the passwords of addresses are left out."""
    if value is None:
        return "nothing"
    text = str(value).lower() if isinstance(value, bool) else without_passwords(repr(value))
    return text if len(text) <= 60 else text[:57] + "..."


def _keys_at(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    for part in path:
        field = model.model_fields.get(str(part))
        kinds = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not sections:
            return []
        model = sections[0]
    return sorted(model.model_fields)
