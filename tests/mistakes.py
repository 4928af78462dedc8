"""What a file of an experiment is told, line by line."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedveil.orchestrator.config import ConfigError, load_experiment

JARGON = ("nput should", "literal[", "instance of", "Section", "constrained", "Value error", "dictionary", "pydantic")


def lines_of(text: str, *overrides: str, folder: Path) -> list[str]:
    """Return the lines of the refusal of an experiment file, without the file's name."""
    file = folder / "e.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as refusal:
        load_experiment(file, overrides)
    assert str(refusal.value) == "\n".join(refusal.value.lines)
    for line in refusal.value.lines:
        assert not any(word in line for word in JARGON), line
    return [line.replace(str(file), "FILE") for line in refusal.value.lines]
