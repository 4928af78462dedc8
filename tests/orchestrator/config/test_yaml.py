from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mistakes import lines_of

from fedveil.orchestrator.config import ConfigError, load_experiment
from fedveil.orchestrator.config.yaml import dump, parse


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("fl: [1", "FILE, line 3: is not YAML that fedveil reads (expected ',' or ']', but got '<stream end>')"),
        (
            "fl:\n\tclients: 3",
            "FILE, line 3: is not YAML that fedveil reads (found character '\\t' that cannot start any",
        ),
        ("a: \x00", "FILE: is not YAML that fedveil reads (special characters are not allowed)"),
        ("---\nb: 1", "FILE, line 2: is not YAML that fedveil reads (but found another document)"),
        (
            "a: !!python/name:os.system",
            "FILE, line 2: is not YAML that fedveil reads (could not determine a constructor",
        ),
        ("a: !!bool maybe", "FILE, line 2: is not YAML that fedveil reads (this value does not fit its type)"),
        pytest.param("a: " + "[" * 5000, "FILE: is not YAML that fedveil reads (nested too deeply)", id="deep"),
        pytest.param(
            "a: " + "9" * 5000,
            "FILE, line 2: is not YAML that fedveil reads (this value does not fit its type)",
            id="long",
        ),
        ("seed: 1\nseed: 2", 'FILE, line 3: is not YAML that fedveil reads (found duplicate key "seed")'),
        (
            "fl: {rounds: 1, rounds: 2}",
            'FILE, line 2: is not YAML that fedveil reads (found duplicate key "rounds")',
        ),
        ("a: &a [*a]", "FILE: is not YAML that fedveil reads (an anchor stands within itself)"),
        ("? {a: 1}\n: b", "FILE, line 2: is not YAML that fedveil reads (found unhashable key)"),
    ],
)
def test_bad_yaml_is_one_line(text: str, line: str, tmp_path: Path) -> None:
    (found,) = lines_of(f"experiment: x\n{text}\n", folder=tmp_path)
    assert found.startswith(line)


@pytest.mark.parametrize("text", ["", "null", "- experiment", "hello", "3", "# nothing but a comment"])
def test_a_file_that_is_no_mapping(text: str, tmp_path: Path) -> None:
    expected = "FILE: expected keys and values, for example 'experiment: my-first'"
    assert lines_of(text, folder=tmp_path) == [expected]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_bytes(b"\x89PNG\r\n\x1a\n\xff")
    for name, said in (("none.yaml", "No such file"), (".", "it is a folder"), ("b.yaml", "is not UTF-8 text")):
        with pytest.raises(ConfigError, match=said) as refusal:
            load_experiment(tmp_path / name)
        assert len(refusal.value.lines) == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1.5E+2", 150.0),
        ("-.inf", -math.inf),
        (".5", 0.5),
        ("010", 10),
        ("-3", -3),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("yes", "yes"),
        ("off", "off"),
        ("2020-01-01", "2020-01-01"),
        ("True", True),
        ("~", None),
        ("'1'", "1"),
        ("{<<: {a: 1, b: 2}, a: 3}", {"a": 3, "b": 2}),
    ],
)
def test_scalars_mean_what_they_look_like(text: str, value: object) -> None:
    found = parse(text)
    assert found == value
    assert type(found) is type(value)


TEXTS = ["a", "b c", "last", "", "yes", "1_000", "010", "2020-01-01", "=", "a: b", "- c", "null", "1e-3", "#"]
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.sampled_from(TEXTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=10,
)


@given(PLAIN)
@settings(max_examples=100)
def test_what_is_dumped_is_read_back(value: object) -> None:
    assert parse(dump(value)) == value


def test_a_dump_keeps_the_order_and_quotes_what_would_be_read_as_something_else() -> None:
    assert dump({"b": 1e-5, "a": ["yes", "010", "2020-01-01", None]}) == (
        "b: 1e-05\na:\n- yes\n- '010'\n- '2020-01-01'\n- null\n"
    )
