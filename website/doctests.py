"""Examples in docstrings, which stand among the prose, become code blocks of the reference."""

from __future__ import annotations

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^(?P<indent> *)>>> .*\n?(?:(?P=indent)\S.*\n?)*", re.MULTILINE)


def fenced(text: str) -> str:
    """Return a docstring in which each example, up to the next blank line, is a fenced block.

    >>> print(fenced("Add.\\n\\n>>> 1 + 1\\n2\\n\\nMore."))
    Add.
    <BLANKLINE>
    ```pycon
    >>> 1 + 1
    2
    ```
    <BLANKLINE>
    More.
    """
    return _EXAMPLE.sub(_block, text)


def _block(found: re.Match[str]) -> str:
    indent, example = found["indent"], found[0].rstrip("\n")
    end = "\n" if found[0].endswith("\n") else ""
    return f"{indent}```pycon\n{example}\n{indent}```{end}"


class Doctests(griffe.Extension):
    """Does so to all docstrings that are read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change an object's docstring."""
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)
