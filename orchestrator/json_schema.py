"""The JSON schema of an experiment file, with which editors complete keys, show what they mean and mark mistakes.

It is draft 7, which YAML language servers know best. What has a name is told by ``if`` and ``then`` and not by a choice
among schemas: of a choice that fails an editor can only say that none fits, of a consequence which key is wrong. The schema
knows keys, types and ranges; what only the whole file shows (`fedveil run` says it before anything starts) it lets pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from fedveil.attacks import ATTACKS, MODEL_INVERSIONS, Attack
from fedveil.defense import DEFENSES
from fedveil.fl.augmentation import AUGMENTATIONS
from fedveil.fl.data.source import named, prefixed
from fedveil.fl.models import MODELS
from fedveil.fl.optimizers import OPTIMIZERS
from fedveil.fl.partition import PARTITIONS
from fedveil.fl.registry import Registry
from fedveil.fl.strategies import STRATEGIES
from fedveil.orchestrator.config import Experiment
from fedveil.orchestrator.config.options import described_by, schema_of
from fedveil.orchestrator.config.schema import Objective
from fedveil.orchestrator.config.space import KINDS as RANGES
from fedveil.orchestrator.config.values import EXPERIMENT, RoundName
from fedveil.orchestrator.listing import KINDS, said_of, summary_of

DIALECT = "http://json-schema.org/draft-07/schema#"
Schema = dict[str, Any]

_NAMED: Mapping[str, tuple[Registry[type[Any]], str]] = {
    "defenses": (DEFENSES, "name"),
    "attacks": (ATTACKS, "name"),
    "model_inversions": (MODEL_INVERSIONS, "name"),
    "strategies": (STRATEGIES, "name"),
    "optimizers": (OPTIMIZERS, "name"),
    "partitions": (PARTITIONS, "kind"),
}
"""By what they are called in the schema and in ``fedveil list``: what holds them, and the key that names one."""


def experiment_schema() -> Schema:
    """Return the schema, with whatever is registered by now: a plug-in's defences and attacks among it.

    Raises:
        FedveilError: a plug-in has registered a class whose settings can't be checked.
    """
    classes = {(kind, name): registry[name] for kind, (registry, _) in _NAMED.items() for name in registry}
    models = dict.fromkeys([*_below(Experiment), *(m for cls in classes.values() for m in _below(schema_of(cls)))])
    places, whole = models_json_schema(
        [(model, "validation") for model in models], schema_generator=_Generator, ref_template="#/$defs/{model}"
    )
    known: dict[str, Schema] = whole["$defs"]
    own = {model: known[places[model, "validation"]["$ref"].removeprefix("#/$defs/")] for model in models}
    for model, schema in own.items():
        _describe(schema, model)
    for (kind, name), cls in classes.items():
        known[f"{kind}.{name}"] = _option_schema(_NAMED[kind][1], name, own[schema_of(cls)])
    for kind in _NAMED:
        known[kind] = _choice(kind)
    _say_what_pydantic_cannot(own)
    root = own[Experiment]
    known = {name: _resolved(schema) for name, schema in known.items()}
    return {
        "$schema": DIALECT,
        "title": "fedveil experiment",
        **root,
        "$defs": {name: known[name] for name in _reached(root, known)},
    }


class _Generator(GenerateJsonSchema):
    """Leaves out titles, which only repeat the keys, and writes an attack within an attack as ``audit.attacks`` takes it."""

    ignored_warning_kinds = {"non-serializable-default", "skipped-choice"}  # noqa: RUF012 - as in the parent

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        # Only a mark, which `_resolved` knows: pydantic looks up what it is given as a reference.
        return {"const": _ATTACK_MARK} if issubclass(schema["cls"], Attack) else super().dataclass_schema(schema)


_ATTACK_MARK = "an attack"


def _below(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield a model and those of its sections."""
    yield model
    for section in _sections(model).values():
        yield from _below(section)


def _sections(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Return the models of a model's sections, by key."""
    return {
        key: kind
        for key, field in model.model_fields.items()
        for kind in (field.annotation, *get_args(field.annotation))
        if isinstance(kind, type) and issubclass(kind, BaseModel)
    }


def _describe(schema: Schema, model: type[BaseModel]) -> None:
    cls = described_by(model)
    schema.pop("title", None)
    schema["description"] = summary_of(cls)
    said = said_of(cls) | {key: summary_of(described_by(one)) for key, one in _sections(model).items()}
    for key, one in schema.get("properties", {}).items():
        if "$ref" in one:
            one.pop("default", None)  # a section's: its own keys have theirs
            default = model.model_fields[key].default
            if isinstance(default, Attack):
                one["default"] = default.name
        if key in said:
            one["description"] = said[key]


def _resolved(schema: Any) -> Any:
    """Return a schema in which the mark of an attack is a reference."""
    if isinstance(schema, list):
        return [_resolved(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("const") == _ATTACK_MARK:
        return {"$ref": "#/$defs/attacks"}
    return {key: _resolved(value) for key, value in schema.items()}


def _option_schema(key: str, name: str, options: Schema) -> Schema:
    """Return the schema of ``{name: NAME, option: value}``."""
    return {
        **options,
        "properties": {key: {"const": name, "description": options["description"]}, **options.get("properties", {})},
        "required": [key, *options.get("required", [])],
    }


def _choice(kind: str) -> Schema:
    """Return the schema of a name, or of a name with options."""
    registry, key = _NAMED[kind]
    names, where = list(registry), KINDS[kind].where
    consequences = [
        {"if": {"properties": {key: {"const": name}}}, "then": {"$ref": f"#/$defs/{kind}.{name}"}} for name in names
    ]
    return {
        "description": f"A name, or one with settings: {where}; see fedveil list {kind}.",
        "anyOf": [
            {"type": "string", "enum": names},
            {"type": "object", "properties": {key: {"enum": names}}, "required": [key], "allOf": consequences},
        ],
    }


def _say_what_pydantic_cannot(own: Mapping[type[BaseModel], Schema]) -> None:
    """Fill in what settings hold whose keys or values depend on names."""
    by_name = {
        model.__name__: schema["properties"] for model, schema in own.items() if model.__module__.startswith(_HERE)
    }
    root, data, fl = by_name["Experiment"], by_name["DataSection"], by_name["FLSection"]
    audit, search = by_name["AuditSection"], by_name["SearchSection"]
    defense, attack = {"$ref": "#/$defs/defenses"}, {"$ref": "#/$defs/attacks"}
    several = {"type": "array", "items": defense, "minItems": 1}
    _fill(root, "defense", {"if": {"type": "array"}, "then": several, "else": defense})
    _fill(root, "experiment", {"type": "string", "pattern": f"^{EXPERIMENT}$"})
    _fill(data, "partition", {"$ref": "#/$defs/partitions"})
    prefixes = "|".join(prefixed)
    _fill(
        data,
        "name",
        {"type": "string", "anyOf": [{"enum": list(named)}, {"pattern": f"^({prefixes}):.+"}]},
    )
    _fill(by_name["ModelSection"], "name", {"type": "string", "enum": list(MODELS)})
    _fill(fl, "optimizer", {"$ref": "#/$defs/optimizers"})
    _fill(fl, "strategy", {"$ref": "#/$defs/strategies"})
    for section in (fl, by_name["ReferencesSection"]):
        kinds = ["array", "null"] if section["augmentation"].get("default", 0) is None else "array"
        _fill(section, "augmentation", {"type": kinds, "items": {"enum": list(AUGMENTATIONS)}, "uniqueItems": True})
    _fill(audit, "attacks", {"type": "array", "items": attack})
    _fill(audit, "model_inversion", {"type": "array", "items": {"$ref": "#/$defs/model_inversions"}})
    rounds = {"anyOf": [{"type": "integer", "minimum": 0}, {"enum": list(get_args(RoundName))}]}
    _fill(audit, "rounds", {"type": ["array", "null"], "items": rounds, "minItems": 1})
    ranges = {"type": "object", "minProperties": 1, "maxProperties": 1, "additionalProperties": False}
    ranges["properties"] = {kind: {"type": "array", "minItems": 1} for kind in RANGES}
    _fill(search, "space", {"type": "object", "additionalProperties": ranges})
    panel = {"type": "object", "properties": {"defense": root["defense"]}, "minProperties": 1}
    _fill(search, "panel", {"type": "array", "items": panel})
    directions = {"enum": list(get_args(Objective))}
    _fill(search, "objectives", {"type": "object", "additionalProperties": directions, "minProperties": 1})


_HERE = "fedveil.orchestrator.config."


def _fill(properties: Schema, key: str, schema: Schema) -> None:
    kept = {name: properties[key][name] for name in ("description", "default") if name in properties[key]}
    properties[key] = {**schema, **kept}


def _reached(root: Schema, known: Mapping[str, Schema]) -> list[str]:
    """Return the names of the definitions that the root leads to, in alphabetical order."""
    found: set[str] = set()
    waiting = list(_references(root))
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _references(known[name])
    return sorted(found)


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"].removeprefix("#/$defs/")
        for value in schema.values():
            yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)
