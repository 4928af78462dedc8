from __future__ import annotations

import io
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Literal

import pytest
from rich.console import Console

from fedveil.attacks import InvertingGradients
from fedveil.fl.errors import FedveilError
from fedveil.fl.registry import Registry
from fedveil.orchestrator.listing import KINDS, Entry, Kind, Setting, show_all, show_one

ENTRIES = [pytest.param(kind, entry, id=f"{kind}-{entry.name}") for kind in KINDS for entry in KINDS[kind].entries()]


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Brush:
    """A brush.

    Attributes:
        width: in pixels,
            at least 1.
    """

    width: int = 3


@dataclass(frozen=True, kw_only=True)
class Paint:
    """Paint over it (Doe et al. 2020, arXiv 2001.00001).

    As Roe and Poe 2019 do, with ``colour``; in May 2021 nobody did.

    Attributes:
        strength: above 0.
        low, high: ends of the range.

    Raises:
        Nothing: that is to be listed.
    """

    strength: float
    low: float = 0.0
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Sprayed(Paint):
    """Sprayed.

    Attributes:
        high: of the spray.
    """

    mode: Literal["thick", "thin"] = "thin"
    colour: Colour | None = None
    sizes: tuple[int, ...] = (1, 2)
    fast: bool = False
    brush: Brush = Brush()


def paints() -> Kind:
    registry: Registry[type] = Registry("paint")
    registry.register("paint")(Paint)
    registry.register("sprayed")(Sprayed)
    return Kind(registry, "paint: {name: NAME}")


def test_an_entry_is_read_from_the_class_its_parents_and_its_sections() -> None:
    paint, sprayed = paints().entries()
    assert paint == Entry(
        "paint",
        "Paint over it (Doe et al. 2020, arXiv 2001.00001).\n\nAs Roe and Poe 2019 do, with colour; in May 2021 nobody did.",
        (("Doe et al. 2020", "arXiv 2001.00001"), ("Roe and Poe 2019", "")),
        (
            Setting("strength", "number", "required", "above 0."),
            Setting("low", "number", "0.0", "ends of the range."),
            Setting("high", "number | null", "null", "ends of the range."),
        ),
    )
    assert sprayed.summary == "Sprayed."
    assert sprayed.settings[2:] == (
        Setting("high", "number | null", "null", "of the spray."),
        Setting("mode", "thick | thin", "thin", ""),
        Setting("colour", "red | blue | null", "null", ""),
        Setting("sizes", "list of whole number", "(1, 2)", ""),
        Setting("fast", "true | false", "false", ""),
        Setting("brush.width", "whole number", "3", "in pixels, at least 1."),
    )


def shown(kind: Kind, *name: str) -> list[str]:
    console = Console(width=80, record=True, file=io.StringIO())
    (show_one if name else show_all)(kind, *name, console)  # type: ignore[operator]
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_the_screen() -> None:
    assert shown(paints()) == [
        "name     what it is                                          paper",
        "paint    Paint over it (Doe et al. 2020, arXiv 2001.00001).  Doe et al. 2020",
        "sprayed  Sprayed.",
    ]
    assert shown(paints(), "paint") == [
        "paint   paint: {name: paint}",
        "",
        "Paint over it (Doe et al. 2020, arXiv 2001.00001).",
        "",
        "As Roe and Poe 2019 do, with colour; in May 2021 nobody did.",
        "",
        "Paper: Doe et al. 2020, arXiv 2001.00001",
        "Paper: Roe and Poe 2019",
        "",
        "setting   type           default   meaning",
        "strength  number         required  above 0.",
        "low       number         0.0       ends of the range.",
        "high      number | null  null      ends of the range.",
    ]
    with pytest.raises(FedveilError, match="unknown paint 'nothing'; allowed: paint, sprayed"):
        shown(paints(), "nothing")


def test_a_class_that_cannot_be_configured_is_listed_with_the_reason() -> None:
    registry: Registry[type] = Registry("paint")

    @registry.register("plain")
    class Plain:
        """Plain."""

    (entry,) = Kind(registry, "NAME").entries()
    assert (
        entry.settings[0].meaning
        == "class Plain is no dataclass; decorate it with @dataclass(frozen=True, kw_only=True)"
    )


@pytest.mark.parametrize(("kind", "entry"), ENTRIES)
def test_everything_shipped_says_what_it_is_and_what_each_setting_means(kind: str, entry: Entry) -> None:
    assert entry.summary
    assert [setting.key for setting in entry.settings if not setting.meaning] == []
    lines = shown(KINDS[kind], entry.name)
    assert max(map(len, lines)) <= 80
    assert not any("…" in line or "`" in line for line in lines)


def test_what_attacks_models_and_data_have_beside_settings() -> None:
    def found(kind: str, name: str) -> Entry:
        (entry,) = (entry for entry in KINDS[kind].entries() if entry.name == name)
        return entry

    assert ">>>" in (InvertingGradients.__doc__ or "")
    assert ">>>" not in found("attacks", "inverting_gradients").text
    assert found("attacks", "adaptive").text.endswith(
        "Is granted, beside the update: auxiliary_data, defense_algorithm."
    )
    assert "inverse.steps" in [setting.key for setting in found("attacks", "adaptive").settings]
    assert found("attacks", "inverting_gradients").papers[0] == ("Geiping et al. 2020", "arXiv 2003.14053")
    assert [setting.key for setting in found("models", "convnet").settings] == ["norm", "width"]
    assert found("models", "lenet").papers == (("Zhu et al. 2019", "arXiv 1906.08935"),)
    assert found("data", "mni152").settings == (Setting("size", "28 to 64", "32", "pixels a side"),)
    assert found("data", "npz:PATH").settings == ()


def test_own_files_are_shown_by_the_name_that_the_list_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDVEIL_DATA", str(tmp_path))
    (tmp_path / "own.npz").write_bytes(b"")
    lines = shown(KINDS["data"], "npz:own.npz")
    assert lines[0] == "npz:own.npz   data: {name: npz:own.npz}"
    assert str(tmp_path / "own.npz") in "".join(lines)
    with pytest.raises(FedveilError, match=r"npz:other\.npz: there is no 'other\.npz' in "):
        shown(KINDS["data"], "npz:other.npz")
    with pytest.raises(FedveilError, match=r"unknown data set 'npz:'; allowed: .* npz:PATH"):
        shown(KINDS["data"], "npz:")
