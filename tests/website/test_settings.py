"""The reference of settings says what the schema says, key by key."""

from __future__ import annotations

import doctest
import json
import re
from importlib import import_module
from typing import Any

import pytest
from pages import ROOT

from website.settings import tables

SCHEMA: dict[str, Any] = json.loads((ROOT / "tune_configs" / "schema.json").read_text(encoding="utf-8"))
REFERENCE = ROOT / "docs" / "reference"
ASKED = {
    what: page
    for page in sorted(REFERENCE.glob("*.md"))
    for what in re.findall(r"^<!-- settings: (.+) -->$", page.read_text(encoding="utf-8"), re.MULTILINE)
}
"""What the pages of the reference ask for, and which page does."""


def rows(text: str) -> list[list[str]]:
    return [re.split(r" (?<!\\)\| ", line[2:-2]) for line in text.splitlines() if line.startswith("| `")]


def test_every_section_of_the_schema_has_its_table() -> None:
    text = "\n".join(tables(SCHEMA, what) for what in ASKED)
    listed = rows(text)
    expected = [
        (key, one)
        for section in (SCHEMA, *SCHEMA["$defs"].values())
        for key, one in section.get("properties", {}).items()
        if "const" not in one
    ]
    assert len(listed) == len(expected) > 250
    said = {(key.strip("`"), meaning.replace("\\|", "|").replace("&lt;", "<")) for key, _, _, meaning in listed}
    assert said == {(key, one["description"]) for key, one in expected}


def test_what_has_a_name_has_a_heading() -> None:
    for what in ("defenses", "attacks", "model_inversions", "strategies", "optimizers", "partitions"):
        names = [name.partition(".")[2] for name in SCHEMA["$defs"] if name.startswith(f"{what}.")]
        assert re.findall(r"^### (\w+)$", tables(SCHEMA, what), re.MULTILINE) == names


def test_links_lead_to_where_a_section_stands() -> None:
    headings = {
        page.name: {
            heading.lower()
            for what, where in ASKED.items()
            if where == page
            for heading in re.findall(
                r"^#+ (\w+)$", page.read_text(encoding="utf-8") + tables(SCHEMA, what), re.MULTILINE
            )
        }
        for page in set(ASKED.values())
    }
    links = {link for what in ASKED for link in re.findall(r"\]\(([^)]+)\)", tables(SCHEMA, what))}
    assert {"settings.md#fl", "attacks.md", "attacks.md#inversetraining", "defenses.md"} <= links
    for link in links:
        page, _, anchor = link.partition("#")
        assert page in headings
        assert not anchor or anchor in headings[page]


SMALL: dict[str, Any] = {
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "description": "of it."},
        "inner": {"$ref": "#/$defs/InnerSection", "description": "More."},
    },
    "$defs": {
        "InnerSection": {
            "description": "Inner.",
            "properties": {
                "many": {"type": "integer", "minimum": 1, "maximum": 10**9, "default": 3, "description": "a|b <c>"},
                "mode": {"anyOf": [{"$ref": "#/$defs/Mode"}, {"type": "null"}], "default": None, "description": "how."},
                "of": {"$ref": "#/$defs/Alias", "default": "dlg", "description": "which."},
            },
        },
        "Mode": {"type": "string", "enum": ["fast", "slow"]},
        "Alias": {"$ref": "#/$defs/attacks"},
        "attacks": {},
    },
}


def test_a_small_schema_by_hand() -> None:
    assert tables(SMALL, "experiment").splitlines() == [
        "| key | type and range | default | meaning |",
        "| --- | --- | --- | --- |",
        "| `name` | text | required | of it. |",
        "| `inner` | [a section](settings.md#inner) | see there | More. |",
        "",
        "## inner",
        "",
        "Inner.",
        "",
        "| key | type and range | default | meaning |",
        "| --- | --- | --- | --- |",
        "| `many` | whole number, at least 1 | `3` | a\\|b &lt;c> |",
        "| `mode` | `fast`, `slow`; or null | `null` | how. |",
        "| `of` | [an attack](attacks.md) | `dlg` | which. |",
    ]


@pytest.mark.parametrize("name", ["settings", "repository", "doctests", "metrics"])
def test_examples_in_docstrings_are_true(name: str) -> None:
    ran = doctest.testmod(import_module(f"website.{name}"))
    assert ran.attempted > 0
    assert ran.failed == 0
