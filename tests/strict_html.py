"""Reads a page as strictly as an XML parser would, and says what a browser would only guess at."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


@dataclass
class Tag:
    """An element with what is directly or further below in it."""

    name: str
    attributes: dict[str, str]
    parts: list[Tag | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text in it."""
        return "".join(part if isinstance(part, str) else part.text for part in self.parts)

    def all(self, name: str | None = None) -> list[Tag]:
        """Every element below of that name, or all of them."""
        below = [part for part in self.parts if isinstance(part, Tag)]
        found = [tag for tag in below if name in (None, tag.name)]
        return [*found, *(inner for tag in below for inner in tag.all(name))]

    def with_class(self, name: str) -> list[Tag]:
        return [tag for tag in self.all() if name in tag.attributes.get("class", "").split()]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open = [Tag("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"<{tag}> has an attribute twice"
        made = Tag(tag, {key: value or "" for key, value in attrs})
        self.open[-1].parts.append(made)
        if tag not in VOID:
            self.open.append(made)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.open[-1].name, f"</{tag}> closes <{self.open[-1].name}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].parts.append(data)


def read(page: str) -> Tag:
    """Return the page's root.

    Raises:
        AssertionError: it is not well formed, names two things alike, leads out of itself, or leaves out what readers need
            who can't see it.
    """
    assert page.startswith("<!doctype html>\n")
    assert "\0" not in page
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert len(reader.open) == 1, f"<{reader.open[-1].name}> is never closed"
    (html,) = [part for part in reader.open[0].parts if isinstance(part, Tag)]
    everything = html.all()
    ids = [tag.attributes["id"] for tag in everything if "id" in tag.attributes]
    assert len(ids) == len(set(ids)), "an id stands twice"
    for tag in everything:
        for key in ("href", "src", "srcset", "action", "xlink:href"):
            place = tag.attributes.get(key, "#")
            assert place.startswith(("#", "data:image/png;base64,")), f"<{tag.name} {key}={place[:80]}> leads away"
            assert place in ("#", *(f"#{one}" for one in ids)) or place.startswith("data:"), f"{place} is nowhere"
        assert not any(key.startswith("on") for key in tag.attributes), f"<{tag.name}> has a handler"
    assert html.attributes["lang"]
    assert len(html.all("title")) >= 1
    assert all(tag.attributes["alt"] for tag in html.all("img"))
    assert all(tag.attributes.get("scope") in ("row", "col") for tag in html.all("th"))
    assert all(next(part.name for part in tag.parts if isinstance(part, Tag)) == "caption" for tag in html.all("table"))
    levels = [int(tag.name[1]) for tag in _in_order(html) if tag.name in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels)), "a heading is skipped"
    assert "@import" not in page
    assert "url(http" not in page
    return html


def _in_order(tag: Tag) -> list[Tag]:
    below = [part for part in tag.parts if isinstance(part, Tag)]
    return [one for part in below for one in (part, *_in_order(part))]
