"""Settings that are made to hurt: endless texts, bytes that no path can hold, numbers that no machine can."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from fedveil.attacks import ATTACKS
from fedveil.fl.errors import FedveilError
from fedveil.orchestrator.config import ConfigError, load_experiment
from fedveil.orchestrator.config.options import build_named, is_section, types_of
from fedveil.orchestrator.run.setup import check_setups

BASE: dict[str, Any] = {"experiment": "tiny", "data": {"limit": 60}, "fl": {"clients": 2, "rounds": 1}}
BASE["audit"] = {"victims": 3, "attacks": ["inverting_gradients"]}
LONG = "x" * 5000
LONGEST_LINE = 700
"""A value of 200 characters, a key of 200, and the list of what is allowed."""


def refused(*overrides: str, **sections: Any) -> list[str]:
    with pytest.raises(FedveilError) as caught:
        check_setups(*load_experiment({**copy.deepcopy(BASE), **sections}, overrides))
    lines = str(caught.value).split("\n")
    assert all(line.isprintable() for line in lines), lines
    return lines


@pytest.mark.parametrize(
    "override",
    [
        *(f"{key}={LONG}" for key in ("data.name", "model.name", "defense", "fl.strategy", "audit.attacks", LONG)),
        *(f"data.name={kind}:{LONG}" for kind in ("npz", "folder", LONG)),
        *(f"plugins=[{spec}]" for spec in (LONG, f"./{LONG}.py", f"{LONG}.py")),
        f"audit.attacks=[{LONG}]",
        f"audit.attacks=[{{name: adaptive, inversion: {LONG}}}]",
        f"audit.rounds=[{LONG}]",
        f"seeds={[1] * 3000}",
        f"tracking.uri=sqlite:////{LONG}/x.db",
        f"tracking.uri=sqlite:////{LONG}",
        f"search.space.fl.rounds={{int: {[1] * 3000}}}",
        f"search.space.fl.rounds={{grid: [{LONG}]}}",
        LONG,
        f"a=[{LONG}",
    ],
    ids=lambda text: text[:40],
)
def test_a_long_value_is_shortened(override: str) -> None:
    assert max(map(len, refused(override))) < LONGEST_LINE


@pytest.mark.parametrize(
    "search",
    [
        {"space": {LONG: {"grid": [1]}}},
        {"space": {"fl.rounds": {LONG: [1]}}},
        {"panel": [{LONG: 1}]},
        {"panel": [{}], "objectives": {LONG: "max"}},
    ],
)
def test_a_long_key_is_shortened(search: dict[str, Any]) -> None:
    assert max(map(len, refused(search=search))) < LONGEST_LINE
    assert max(map(len, refused(**{LONG: 1}))) < LONGEST_LINE
    assert max(map(len, refused(audit={"attacks": [{"name": "adaptive", LONG: 1}]}))) < LONGEST_LINE


@pytest.mark.parametrize(
    "key", ["data.name", "model.name", "tracking.uri", "plugins.0", "defense.0.name", "experiment"]
)
@pytest.mark.parametrize("text", ["a\0b", "sqlite:///a\0b.db", "npz:\x1b[31mred", "folder:\ud800"])
def test_no_name_and_no_path_holds_control_characters(key: str, text: str) -> None:
    raw = copy.deepcopy(BASE)
    section, _, last = key.partition(".")
    value: Any = {"experiment": text, "plugins": [text], "defense": [{"name": text}]}.get(section, {last: text})
    (line,) = refused(**{**raw, section: value})
    assert line.startswith(f"{key}: given '")
    assert line.endswith("; no control characters, such as NUL, are allowed")


def test_a_key_with_a_control_character_is_shown_escaped() -> None:
    (line,) = refused(data={"a\0b": 1})
    assert line == "data.a\\x00b: no control characters, such as NUL, are allowed in a key"


def test_texts_of_several_lines_are_allowed() -> None:
    """A plug-in's own setting may be one; what names something is refused with the line break escaped."""
    (line,) = refused(data={"name": "a\nb"})
    assert line.startswith("data.name: unknown data set 'a\\nb'; allowed: ")


@pytest.mark.parametrize(
    ("override", "start"),
    [
        ("data.name=nope", "data.name: unknown data set 'nope'; allowed: "),
        ("data.name=npz:nope.npz", "data.name: npz:nope.npz: there is no 'nope.npz' in "),
        ("data.name=folder:/nope", "data.name: folder:/nope: there is no '/nope'"),
        ("data.size=8", "data.size: given 8; allowed: 28 to 64"),
        ("data.limit=10", "data.public_fraction: class 0 has "),
        ("fl.clients=1000", "fl.clients: given 1000; allowed: 1 to 46, the images that are left to the clients"),
        (
            "data.partition={kind: shards, classes_per_client: 99}",
            "data.partition, fl.clients: partition shards: 2 clients with 99 classes",
        ),
        (
            "data.partition={kind: dirichlet, min_size: 99}",
            "data.partition, fl.clients: partition dirichlet: min_size is 99; 2 clients with 46 examples have 23 each at",
        ),
        ("fl.strategy=krum", "fl.strategy: krum "),
    ],
)
def test_the_key_is_named(override: str, start: str) -> None:
    assert refused(override)[0].startswith(start)


def test_every_count_of_an_attack_is_bounded() -> None:
    found = [(name, keys) for name in ATTACKS for keys in _counts(ATTACKS[name])]
    assert ("adaptive", ("inverse", "batch_size")) in found
    for name, keys in found:
        value: Any = 10**10
        for key in reversed(keys):
            value = {key: value}
        with pytest.raises(FedveilError, match=f"{keys[-1]} is 10000000000; it has to be .*at most"):
            build_named(ATTACKS, {"name": name, **value})


def _counts(cls: type[Any], *above: str) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for key, hint in types_of(cls).items():
        if is_section(hint):
            found += _counts(hint, *above, key)
        elif hint in (int, int | None):
            found.append((*above, key))
    return found


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            "{name: adaptive, inverse: {width: 4096}}",
            "audit.attacks.0.inverse.width: given 4096; it has to be at most 1024",
        ),
        (
            "{name: adaptive, inverse: {batch_size: 100000}}",
            "audit.attacks.0.inverse.batch_size: given 100000; it has to be at most 65536",
        ),
        (
            "{name: inverting_gradients, steps: 100000000}",
            "audit.attacks.0.steps: given 100000000; it has to be at most 10000000",
        ),
        ("{name: learning_to_invert, width: 10000}", "audit.attacks.0.width: given 10000; it has to be at most 8192"),
    ],
)
def test_bounds_of_attacks(settings: str, line: str) -> None:
    assert refused(f"audit.attacks=[{settings}]") == [line]


@pytest.mark.parametrize("variable", [False, True])
def test_a_sqlite_file_needs_its_folder(variable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(uri: str) -> str:
        if variable:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        (line,) = refused() if variable else refused(f"tracking.uri={uri}")
        key, _, rest = line.partition(": ")
        assert key == ("MLFLOW_TRACKING_URI" if variable else "tracking.uri")
        return rest.partition("; ")[2]

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    nowhere = "there is no folder {}: make it, or name another"
    assert said(f"sqlite:///{tmp_path}/none/x.db") == nowhere.format(tmp_path / "none")
    assert said(f"sqlite:///{tmp_path}/none/x.db?timeout=3") == nowhere.format(tmp_path / "none")
    assert said("sqlite:///none/x.db") == nowhere.format("none")
    assert said(f"sqlite:///{tmp_path}") == "this is a folder, name a file"
    assert said("sqlite:////proc/x.db").startswith("no file can be made in /proc (")
    for uri in ("sqlite:///x.db", f"sqlite:///{tmp_path}/x.db"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        load_experiment(copy.deepcopy(BASE), [] if variable else [f"tracking.uri={uri}"])


def test_an_error_of_a_search_is_refused_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"search\.panel\.0: model\.width: given 1000000000; allowed: at most 100000"):
        load_experiment({**copy.deepcopy(BASE), "search": {"panel": [{"model.width": 10**9}]}})


def test_the_password_of_an_override_is_not_said() -> None:
    for text in ("http://me:hunter2@host/?token=hunter2", "tracking.uri=[http://me:hunter2@host"):
        (line,) = refused(text)
        assert "hunter2" not in line
        assert "//" in line
