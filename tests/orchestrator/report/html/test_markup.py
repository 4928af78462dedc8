from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strict_html import Tag, read

from fedveil.orchestrator.report.html.markup import adopted, listing, node, table, written


def page(*children: object) -> Tag:
    head = node("head", node("title", "t"))
    body = node("body", node("h1", "h"), *children)  # type: ignore[arg-type]
    return read(written(node("html", head, body, lang="en")))


@given(st.text(), st.text())
def test_text_comes_back_as_it_was(before: str, after: str) -> None:
    (paragraph,) = page(node("p", before, node("b", after), after, title=before)).all("p")
    shown = [
        "".join("\ufffd" if _unfit(letter) else letter for letter in text).replace("\r\n", "\n").replace("\r", "\n")
        for text in (before, after)
    ]
    assert paragraph.text.replace("\r\n", "\n").replace("\r", "\n") == shown[0] + shown[1] * 2
    assert paragraph.attributes["title"].replace("\r\n", "\n").replace("\r", "\n") == shown[0]


def _unfit(letter: str) -> bool:
    return (letter < " " and letter not in "\t\n\r") or letter == "\x7f" or "\ud800" <= letter <= "\udfff"


def test_an_empty_list_is_none() -> None:
    assert listing([]) is None
    assert [item.text for item in page(listing(["a", node("b", "b")])).all("li")] == ["a", "b"]


def test_a_table_names_its_rows_and_columns() -> None:
    made = page(table(["x", "y"], [["a", "1"], ["b", None]], caption="what", numbers=True))
    assert [(th.text, th.attributes["scope"]) for th in made.all("th")] == [
        ("x", "col"),
        ("y", "col"),
        ("a", "row"),
        ("b", "row"),
    ]
    assert made.all("caption")[0].text == "what"
    (frame,) = made.with_class("wide")
    assert frame.attributes == {"class": "wide", "tabindex": "0", "role": "region", "aria-label": "what"}


def test_a_drawing_loses_its_namespaces_and_metadata() -> None:
    svg = (
        '<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
        '<metadata>m</metadata><g><use xlink:href="#a"/></g></svg>'
    )
    assert ElementTree.tostring(adopted(svg), encoding="unicode") == '<svg><g><use href="#a" /></g></svg>'
    with pytest.raises(ElementTree.ParseError):
        adopted("<svg>")
