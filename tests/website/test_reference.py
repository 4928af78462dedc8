"""The reference leaves out no public name and no metric."""

from __future__ import annotations

import re
from collections import Counter

from pages import ROOT

import fedveil as fv
from fedveil.fl.hooks import ClientHooks
from website import metrics

REFERENCE = ROOT / "docs" / "reference"
_ENTRY = re.compile(r"^::: fedveil\.(\S+)\n((?:    .*\n)*)", re.MULTILINE)


def entries() -> list[tuple[str, str]]:
    pages = (REFERENCE / "python.md", REFERENCE / "extending.md")
    return [(at[1], at[2]) for page in pages for at in _ENTRY.finditer(page.read_text(encoding="utf-8"))]


def test_each_public_name_is_there_once() -> None:
    named = Counter(name for name, _ in entries() if "." not in name)
    assert named == Counter(fv.__all__)


def test_members_that_are_named_exist() -> None:
    for name, options in entries():
        owner = ClientHooks if name == "fl.hooks.ClientHooks" else getattr(fv, name, None)
        for members in re.findall(r"members: \[(.*)\]", options):
            for member in members.split(", "):
                assert hasattr(owner, member), f"{name}.{member}"


def test_the_page_of_metrics_is_the_one_that_the_command_writes() -> None:
    kept = metrics.PAGE.read_text(encoding="utf-8")
    assert kept == metrics.page(), "make it anew: python -m website.metrics"
