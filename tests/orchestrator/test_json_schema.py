"""The schema for editors: it takes what `load_experiment` takes, and refuses what it can see is wrong."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

import fedveil as fv
from fedveil.fl.errors import FedveilError
from fedveil.orchestrator.cli import main
from fedveil.orchestrator.config import Experiment, load_experiment
from fedveil.orchestrator.config.yaml import parse
from fedveil.orchestrator.json_schema import experiment_schema
from fedveil.orchestrator.listing import KINDS
from fedveil.orchestrator.run.setup import check_setups

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "tune_configs").glob("*.yaml"))


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return experiment_schema()


def faults(schema: dict[str, Any], file: Any) -> list[str]:
    return [".".join(map(str, error.absolute_path)) for error in Draft7Validator(schema).iter_errors(file)]


def test_it_is_a_schema_whose_references_lead_somewhere(schema: dict[str, Any]) -> None:
    Draft7Validator.check_schema(schema)
    text = json.dumps(schema)
    named = {part.partition('"')[0] for part in text.split('"$ref": "#/$defs/')[1:]}
    assert named == set(schema["$defs"])
    assert "an attack" not in {one.get("const") for one in _all(schema)}


def _all(schema: Any) -> list[dict[str, Any]]:
    if isinstance(schema, dict):
        return [schema, *(one for value in schema.values() for one in _all(value))]
    return [one for value in schema for one in _all(value)] if isinstance(schema, list) else []


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_it_takes_what_is_shipped(schema: dict[str, Any], path: Path) -> None:
    assert faults(schema, parse(path.read_text(encoding="utf-8"))) == []
    assert "# yaml-language-server: $schema=schema.json\n" in path.read_text(encoding="utf-8")


def test_the_shipped_schema_is_the_one_that_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    printed = capsys.readouterr().out
    kept = (ROOT / "tune_configs" / "schema.json").read_text(encoding="utf-8")
    assert printed == kept, "make it anew: fedveil schema > tune_configs/schema.json"


def test_it_takes_an_experiment_as_it_is_recorded(schema: dict[str, Any]) -> None:
    experiment, _ = load_experiment({"experiment": "e", "search": {"panel": [{"defense": "none"}]}})
    recorded = experiment.model_dump(mode="json")
    assert faults(schema, recorded) == []


@pytest.mark.parametrize(
    ("part", "place"),
    [
        ({"fl": {"rounds": 0}}, "fl.rounds"),
        ({"fl": {"round": 3}}, "fl"),
        ({"fl": {"augmentation": ["spin"]}}, "fl.augmentation.0"),
        ({"fl": {"optimizer": {"name": "sgd", "mass": 1}}}, "fl.optimizer"),
        ({"data": {"name": "nothing"}}, "data.name"),
        ({"data": {"partition": {"kind": "dirichlet", "alfa": 1}}}, "data.partition"),
        ({"model": {"name": "nothing"}}, "model.name"),
        ({"defense": "nothing"}, "defense"),
        ({"defense": {"name": "latent", "q": 5}}, "defense"),
        ({"defense": {"name": "latent", "k": "five"}}, "defense.k"),
        ({"defense": [{"name": "latent"}, {"name": "top_k", "kept": 1}]}, "defense.1"),
        ({"audit": {"attacks": [{"name": "adaptive", "inverse": {"step": 1}}]}}, "audit.attacks.0.inverse"),
        ({"audit": {"attacks": [{"name": "adaptive", "inversion": {"name": "no"}}]}}, "audit.attacks.0.inversion"),
        ({"audit": {"rounds": ["first"]}}, "audit.rounds.0"),
        ({"search": {"space": {"defense.k": {"between": [1, 2]}}}}, "search.space.defense.k"),
        ({"search": {"objectives": {"privacy/mse": "up"}}}, "search.objectives.privacy/mse"),
        ({"tracking": {"images": "some"}}, "tracking.images"),
        ({"unknown": 1}, ""),
    ],
)
def test_it_marks_a_mistake_where_it_stands(schema: dict[str, Any], part: dict[str, Any], place: str) -> None:
    file = {"experiment": "e", **part}
    deepest = [
        ".".join(map(str, inner.absolute_path))
        for error in Draft7Validator(schema).iter_errors(file)
        for inner in [error, *_context(error)]
    ]
    assert place in deepest
    with pytest.raises(FedveilError):
        check_setups(*load_experiment(file))


def _context(error: Any) -> list[Any]:
    return [inner for one in error.context or () for inner in (one, *_context(one))]


def test_it_asks_for_what_has_no_default(schema: dict[str, Any]) -> None:
    assert faults(schema, {}) == [""]
    assert schema["required"] == ["experiment"]


@pytest.mark.parametrize("kind", ["defenses", "attacks", "strategies", "optimizers", "partitions"])
def test_each_setting_of_each_name_is_there_with_its_meaning(schema: dict[str, Any], kind: str) -> None:
    for entry in KINDS[kind].entries():
        properties = schema["$defs"][f"{kind}.{entry.name}"]["properties"]
        for setting in entry.settings:
            top = setting.key.partition(".")[0]
            assert top in properties
            if top == setting.key:
                assert properties[top]["description"] == setting.meaning


def test_each_key_of_a_file_is_described(schema: dict[str, Any]) -> None:
    for name, section in [("", schema), *schema["$defs"].items()]:
        if name in {"", "DataSection", "ModelSection", "FLSection", "AuditSection", "SearchSection", "TrackingSection"}:
            assert [key for key, one in section["properties"].items() if not one.get("description")] == []
    assert set(schema["properties"]) == set(Experiment.model_fields)


def test_a_plug_in_brings_its_own() -> None:
    @fv.register_defense("haze")
    @dataclass(frozen=True, kw_only=True)
    class Haze(fv.Defense[None]):
        """Train on hazy images.

        Attributes:
            width: in pixels.
        """

        width: float

    schema = experiment_schema()
    assert schema["$defs"]["defenses.haze"]["properties"]["width"]["description"] == "in pixels."
    assert faults(schema, {"experiment": "e", "defense": {"name": "haze", "width": 2}}) == []
    assert faults(schema, {"experiment": "e", "defense": {"name": "haze"}}) != []
