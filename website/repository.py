"""Links from a page to what the repository has outside of ``docs/``: on the site they lead to pages that show it.

On the code host such a link is a plain relative one. A site that is read from disk has no host, so each file that a page
links to is shown on a page of its own.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

DOCS = "docs"
FILES = "files"
"""Below this folder of the site lie the pages that show files."""
_FENCE = re.compile(r"^ {0,3}(```+|~~~+)")
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_ELSEWHERE = re.compile(r"[a-z]+:|#|/")
_COLOURED = 50_000
"""Longer files are shown without colours, which make a page many times as large."""
_UNSEARCHED = "---\nsearch: {exclude: true}\n---\n\n"
_LANGUAGES: Mapping[str, str] = {".py": "python", ".yaml": "yaml", ".json": "json", ".sh": "bash"}


class LinkError(Exception):
    """A page links to what is not in the repository."""


def with_links(text: str, change: Callable[[str], str]) -> str:
    """Return a page's text in which each link's target is changed; code blocks stay as they are.

    >>> with_links("see [it](a.md)", str.upper)
    'see [it](A.MD)'
    """
    lines, fence = [], ""
    for line in text.splitlines(keepends=True):
        mark = _FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1].startswith(fence):
            fence = ""
        elif not fence:
            line = _LINK.sub(lambda found: found[1] + change(found[2]) + found[3], line)
        lines.append(line)
    return "".join(lines)


def targets(text: str) -> Iterator[str]:
    """Yield the targets of a page's links, in their order."""
    found: list[str] = []
    with_links(text, lambda target: found.append(target) or target)  # type: ignore[func-returns-value]
    return iter(found)


def linked_file(page: str, target: str) -> str | None:
    """Return which file outside of ``docs/`` a link leads to, as a path in the repository; None for any other link.

    >>> linked_file("docs/guides/gpus.md", "../../examples/audit.py")
    'examples/audit.py'
    >>> linked_file("docs/method.md", "results.md#blood") is None
    True
    """
    if _ELSEWHERE.match(target):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target.partition("#")[0]))
    return None if path.startswith(f"{DOCS}/") else path


def site_link(page: str, target: str) -> str:
    """Return a link of a page as it has to be on the site, where the page and all that it leads to may lie elsewhere.

    Args:
        page: its path in the repository.
        target: of the link.
    """
    if _ELSEWHERE.match(target):
        return target
    path, mark, anchor = target.partition("#")
    to = posixpath.normpath(posixpath.join(posixpath.dirname(page), path))
    return posixpath.relpath(place_of(to), posixpath.dirname(place_of(page)) or ".") + mark + anchor


def place_of(path: str) -> str:
    """Return where a file of the repository is on the site, as mkdocs names sources.

    >>> place_of("docs/method.md"), place_of("CONTRIBUTING.md"), place_of("benchmarks/speed.py")
    ('method.md', 'files/CONTRIBUTING.md', 'files/benchmarks/speed.py.md')
    """
    if path.startswith(f"{DOCS}/"):
        return path.removeprefix(f"{DOCS}/")
    return f"{FILES}/{path}" if path.endswith(".md") else f"{FILES}/{path}.md"


def shown(root: Path, path: str) -> str:
    """Return the page that shows a file, or leads to those of a folder.

    Raises:
        LinkError: there is neither.
    """
    place = root / path
    if place.is_dir():
        names = sorted(one.name for one in place.iterdir() if not one.name.startswith((".", "__")))
        return "\n".join([f"# {path}/", "", *(f"- [{name}]({place.name}/{name})" for name in names)]) + "\n"
    if not place.is_file():
        raise LinkError(f"nothing in the repository: {path}")
    text = place.read_text(encoding="utf-8")
    if path.endswith(".md"):
        return text
    fence = "`" * (1 + max([2, *map(len, re.findall(r"`+", text))]))
    language = _LANGUAGES.get(place.suffix, "text") if len(text) < _COLOURED else "text"
    return f"{_UNSEARCHED}# {path}\n\n{fence}{language}\n{text.rstrip()}\n{fence}\n"


def linked_pages(root: Path) -> dict[str, str]:
    """Return the pages of all that pages lead to outside of ``docs/``, over others too, by path in the repository.

    Raises:
        LinkError: a page leads to what there is not; the message names both.
    """
    waiting = {
        str(page.relative_to(root)): page.read_text(encoding="utf-8") for page in sorted((root / DOCS).rglob("*.md"))
    }
    pages: dict[str, str] = {}
    while waiting:
        page, text = waiting.popitem()
        for target in targets(text):
            path = linked_file(page, target)
            if path is None or path in pages:
                continue
            try:
                pages[path] = shown(root, path)
            except LinkError as error:
                raise LinkError(f"{page}: ]({target}) leads to {error}") from error
            if path.endswith(".md") or (root / path).is_dir():
                waiting[path] = pages[path]
    return pages
