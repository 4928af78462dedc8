"""The page on the method tells whose each attack is; the registry says which attacks there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedveil.attacks import ATTACKS

PAGE = Path(__file__).parents[2] / "docs" / "method.md"
LINES = {
    match[1]: [cell.strip() for cell in match[2].split("|")]
    for match in re.finditer(r"^\| `(\w+)` \|(.*)\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
}
OURS = sorted(name for name in ATTACKS if ATTACKS[name].__module__.startswith("fedveil."))


@pytest.mark.parametrize("name", OURS)
def test_every_attack_has_a_line_that_says_whose_it_is(name: str) -> None:
    assert name in LINES, (
        f"docs/method.md, 'Who attacks it': add a line | `{name}` | knows | does | paper, departures |"
    )
    knows, does, paper = LINES[name]
    assert knows
    assert does
    assert re.search(r"(19|20)\d\d|^none: |^as `|breaching", paper), (
        f"docs/method.md: `{name}` names no paper: {paper!r}"
    )


def test_no_line_is_of_an_attack_that_is_gone() -> None:
    assert sorted(LINES) == OURS


@pytest.mark.parametrize("name", OURS)
def test_what_an_attack_knows_is_what_it_needs(name: str) -> None:
    knows, needs = LINES[name][0], ATTACKS[name].needs
    assert ("code" in knows) >= (needs.defense_algorithm and not needs.defense_modules)
    assert ("trained modules" in knows) >= (needs.defense_modules and not needs.trained_images)
    assert (knows == "the update") == (not any(vars(needs).values()))
