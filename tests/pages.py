"""The code blocks of README and of the documentation's pages."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TUTORIAL = ROOT / "docs" / "tutorial.md"
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# ([\w-]+\.(?:py|yaml))(?:\n|$)")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: where it stands.
        line: of its first fence, from 1.
        language: ``python``, ``yaml``, ``text`` (what a command prints), or empty: commands for a shell.
        text: what is in it.
    """

    page: Path
    line: int
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The name of the file that it is, if its first line says so."""
        named = _FILE.match(self.text)
        return named[1] if named else None

    def commands(self) -> list[list[str]]:
        """Return the commands of a block for a shell, in words, each on one line, without remarks."""
        if self.language:
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks_of(page: Path) -> list[Block]:
    """Return a page's blocks in their order."""
    text = page.read_text(encoding="utf-8")
    return [Block(page, text.count("\n", 0, at.start()) + 1, at[1], at[2]) for at in _BLOCK.finditer(text)]


def write_files(blocks: Iterable[Block]) -> set[str]:
    """Write the files that blocks are into the working folder, and return their names."""
    files = {block.file: block.text for block in blocks if block.file}
    for name, text in files.items():
        Path(name).write_text(text, encoding="utf-8")
    return set(files)
