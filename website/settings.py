"""Tables of settings: every key, type, default and range, from the JSON schema of experiment files (``fedveil schema``)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]
_WORDS = {
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "string": "text",
    "null": "null",
    "object": "mapping",
}
_PAGES = {
    "attacks": "attacks.md",
    "defenses": "defenses.md",
    "model_inversions": "attacks.md",
    "strategies": "others.md",
    "optimizers": "others.md",
    "partitions": "others.md",
}
"""On which page of the reference what has a name is listed, by kind."""
_SECTIONS_OF = {"InverseTraining": "attacks.md", "DecoderTraining": "attacks.md", "GanTraining": "attacks.md"}
"""On which page a section is that stands on another one than the experiment's."""
_HOME = "settings.md"
_MOST = 10**9
"""From here on a limit guards against slips of the keyboard; it says nothing of what makes sense."""


def tables(schema: Schema, what: str) -> str:
    """Return the tables that a page asks for.

    Args:
        schema: the whole one.
        what: ``experiment``, a kind of names (``defenses``), or a section (``InverseTraining``).
    """
    whole = _without_aliases(schema)
    if what == "experiment":
        return "\n".join(_experiment(whole))
    if what in _PAGES:
        names = [name for name in whole["$defs"] if name.startswith(f"{what}.")]
        return "\n".join(line for name in names for line in _named(whole["$defs"][name], name))
    return "\n".join(_table(whole["$defs"][what]))


def _without_aliases(schema: Schema) -> Schema:
    """Return a schema in which what only has another name, or a handful of values, stands where it is referred to."""
    aliases = {
        f"#/$defs/{name}": {key: value for key, value in one.items() if key in ("$ref", "enum", "type")}
        for name, one in schema["$defs"].items()
        if "$ref" in one or "enum" in one
    }

    def written_out(one: Any) -> Any:
        if isinstance(one, list):
            return [written_out(inner) for inner in one]
        if not isinstance(one, dict):
            return one
        if one.get("$ref") in aliases:
            one = {**aliases[one["$ref"]], **{key: value for key, value in one.items() if key != "$ref"}}
        return {key: written_out(value) for key, value in one.items()}

    whole: Schema = written_out(schema)
    return whole


def _experiment(schema: Schema) -> Iterator[str]:
    yield from _table(schema)
    for key, one in schema["properties"].items():
        section = _section(one)
        if section and section not in _PAGES:
            yield from ("", f"## {key}", "", schema["$defs"][section]["description"], "")
            yield from _table(schema["$defs"][section])


def _named(one: Schema, name: str) -> Iterator[str]:
    """Yield the part of a page that is about a defence, an attack and so on."""
    yield from ("", f"### {name.partition('.')[2]}", "", one["description"], "")
    settings = {key: value for key, value in one["properties"].items() if "const" not in value}
    yield from _table({**one, "properties": settings}) if settings else ("No settings.",)


def _table(section: Schema) -> Iterator[str]:
    yield "| key | type and range | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for key, one in section["properties"].items():
        default = "required" if key in section.get("required", ()) else default_of(one)
        yield f"| `{key}` | {type_of(one)} | {default} | {_cell(one.get('description', ''))} |"


def default_of(one: Schema) -> str:
    """Return a setting's default as YAML has it.

    >>> default_of({"default": [{"name": "none"}]}), default_of({"default": True}), default_of({"$ref": "#/$defs/X"})
    ('`[{name: none}]`', '`true`', 'see there')
    """
    return f"`{_yaml(one['default'])}`" if "default" in one else "see there"


def _yaml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    return value if isinstance(value, str) and value else json.dumps(value)


def type_of(one: Schema) -> str:
    """Return a setting's type and range in words.

    >>> type_of({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]})
    'whole number, at least 1; or null'
    >>> type_of({"type": "number", "exclusiveMinimum": 0, "maximum": 1})
    'number, above 0 and at most 1'
    >>> type_of({"type": "array", "items": {"enum": ["flip", "shift"]}})
    'list of `flip`, `shift`'
    """
    if "$ref" in one:
        name = one["$ref"].removeprefix("#/$defs/")
        return f"[{_spoken(name)}]({_place(name)})"
    if "if" in one:
        return f"{type_of(one['else'])}, or a list of them"
    if "anyOf" in one:
        return "; or ".join(dict.fromkeys(type_of({**_own(one), **choice}) for choice in one["anyOf"]))
    if "enum" in one:
        return ", ".join(f"`{_yaml(value)}`" for value in one["enum"])
    if "const" in one:
        return f"`{_yaml(one['const'])}`"
    if "pattern" in one:
        prefixes = one["pattern"].removeprefix("^(").partition(")")[0].split("|")
        return ", ".join(f"`{prefix}:PATH`" for prefix in prefixes)
    kinds = one.get("type", "any")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return "; or ".join(_plain(kind, one) for kind in kinds)


def _own(one: Schema) -> dict[str, Any]:
    return {key: value for key, value in one.items() if key not in ("anyOf", "default", "description", "type")}


def _plain(kind: str, one: Schema) -> str:
    if kind == "array":
        held = [type_of(inner) for inner in one.get("prefixItems", [])] or [type_of(one.get("items", {}))]
        items = ", ".join(dict.fromkeys(held))
        return f"list of ({items})" if "; or" in items else f"list of {items}"
    if kind == "object" and isinstance(one.get("additionalProperties"), dict):
        inner = one["additionalProperties"]
        return f"mapping of names to {type_of(inner)}" if "properties" not in inner else "mapping of keys to ranges"
    return ", ".join([_WORDS.get(kind, kind), *_range(one)])


def _range(one: Schema) -> list[str]:
    said = [
        f"{word} {_number(one[key])}"
        for key, word in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "above"),
            ("maximum", "at most"),
            ("exclusiveMaximum", "below"),
        )
        if key in one and abs(one[key]) < _MOST
    ]
    return [" and ".join(said)] if said else []


def _number(value: float) -> str:
    return f"{value:g}"


def _section(one: Schema) -> str | None:
    """Return the section that a key holds, if it holds one."""
    for choice in (one, *one.get("anyOf", ())):
        if "$ref" in choice:
            return str(choice["$ref"].removeprefix("#/$defs/"))
    return None


def _spoken(name: str) -> str:
    words = {"defenses": "a defence", "attacks": "an attack", "model_inversions": "an attack on the released model"}
    words |= {"strategies": "a strategy", "optimizers": "an optimiser", "partitions": "a partition"}
    return words.get(name, "a section")


def _place(name: str) -> str:
    if name in _PAGES:
        return _PAGES[name]
    return f"{_SECTIONS_OF.get(name, _HOME)}#{_anchor(name)}"


def _anchor(name: str) -> str:
    return name.removesuffix("Section").lower()


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
