"""Elements of a page. Text goes in as it is and comes out escaped, so that a name can't become markup."""

from __future__ import annotations

import re
from collections.abc import Iterable
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

Child = Element | str | None
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
"""What no page may hold: control characters, and halves of surrogate pairs."""


def node(tag: str, *children: Child, **attributes: str) -> Element:
    """Return an element.

    Args:
        tag: its name.
        children: text and elements in their order; None is left out.
        attributes: by name, with ``_`` for ``-``, and ``class_`` for ``class``.
    """
    made = Element(tag, {key.rstrip("_").replace("_", "-"): _clean(value) for key, value in attributes.items()})
    for child in children:
        if isinstance(child, Element):
            made.append(child)
        elif child is not None:
            _append_text(made, _clean(child))
    return made


def _append_text(made: Element, text: str) -> None:
    if len(made):
        made[-1].tail = (made[-1].tail or "") + text
    else:
        made.text = (made.text or "") + text


def _clean(text: str) -> str:
    return _CONTROL.sub("\ufffd", text)


def listing(items: Iterable[Child]) -> Element | None:
    """Return a bulleted list; None without any item."""
    made = node("ul", *(node("li", item) for item in items))
    return made if len(made) else None


def table(head: Iterable[str], rows: Iterable[Iterable[Child]], *, caption: str, numbers: bool = False) -> Element:
    """Return a table in a frame that scrolls by itself, by mouse or keyboard, where it is wider than the page.

    Args:
        head: titles of the columns.
        rows: cells; the first of each is the row's title.
        caption: what the table shows.
        numbers: all cells but the first of a row are numbers.
    """
    body = node("tbody")
    for title, *cells in rows:
        body.append(node("tr", node("th", title, scope="row"), *(node("td", cell) for cell in cells)))
    made = node(
        "table",
        node("caption", caption),
        node("thead", node("tr", *(node("th", title, scope="col") for title in head))),
        body,
        **({"class_": "numbers"} if numbers else {}),
    )
    return node("div", made, class_="wide", tabindex="0", role="region", aria_label=caption)


def adopted(svg: str) -> Element:
    """Return the drawing of an SVG document as an element that can stand in a page, without its metadata."""
    root = ElementTree.fromstring(svg)
    for part in list(root.iter()):
        part.tag = part.tag.rpartition("}")[2]
        for key in list(part.attrib):
            part.attrib[key.rpartition("}")[2]] = part.attrib.pop(key)
    for meta in root.findall("metadata"):
        root.remove(meta)
    return root


def written(page: Element) -> str:
    """Return a whole page."""
    return "<!doctype html>\n" + ElementTree.tostring(page, encoding="unicode", method="html") + "\n"
