"""Help, lists and places: the commands that run nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fedveil.orchestrator import cli
from fedveil.orchestrator.cli import main
from fedveil.orchestrator.config import plugins
from fedveil.orchestrator.listing import KINDS

HALVES = """
from dataclasses import dataclass
from fedveil.fl.partition import PARTITIONS, Partition

@PARTITIONS.register("halves")
@dataclass(frozen=True)
class Halves(Partition):
    '''Two clients, one half each.'''
"""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["init", "run", "sweep", "report", "list", "data", "schema", "doctor", "ui"]),
        (["init"], ["--data NAME", "FILE", "first.yaml"]),
        (["schema"], ["--plugin MODULE"]),
        (
            ["run"],
            ["--resume", "--set KEY=VALUE", "--plugin MODULE", "--json FILE", "--ray ADDRESS", "experiment file"],
        ),
        (
            ["list"],
            ["--plugin MODULE", "defenses, attacks,", "model_inversions,", "strategies,", "partitions", "NAME"],
        ),
        (["sweep"], ["--resume", "--set KEY=VALUE", "--json FILE"]),
        (["report"], ["--uri", "--json FILE", "--html FILE", "experiment"]),
        (["data"], ["list", "get"]),
        (["data", "list"], ["usage"]),
        (["data", "get"], ["--size", "name"]),
        (["doctor"], ["--uri", "--update FILE", "--model MODULE:NAME", "--weights FILE", "{gradient,delta,weights}"]),
        (["ui"], ["--uri", "--port", "--no-browser"]),
    ],
)
def test_help(arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert [word for word in words if word not in text] == []


def test_what_can_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"fedveil list {kind}" for kind in KINDS]


def test_list(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_installed", {})
    monkeypatch.setattr(plugins._carried, "sources", {})
    monkeypatch.setattr(KINDS["partitions"].registry, "_entries", dict(KINDS["partitions"].registry._entries))
    (folder / "halves.py").write_text(HALVES, encoding="utf-8")
    assert main(["list", "partitions", "--plugin", "halves"]) == 0
    assert "halves     Two clients, one half each." in capsys.readouterr().out
    assert main(["list", "partitions", "halves"]) == 0
    assert "data: {partition: {kind: halves}}" in capsys.readouterr().out
    assert tuple(KINDS) == cli.LISTED


def test_data_list(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["data", "list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert {"mni152", "pneumoniamnist", "cifar10", "mnist", "fashionmnist"} <= lines.keys()
    assert "28 to 64" in lines["mni152"]
    assert "28, 64, 128, 224" in lines["pneumoniamnist"]
    assert lines["pneumoniamnist"].rstrip().endswith("MedMNIST v2 (Zenodo)")


def test_no_name_is_cut_in_a_narrow_window(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FEDVEIL_DATA", str(folder))
    (folder / "two.npz").rename(folder / "a_data_set_of_our_own.npz")
    assert main(["data", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    (own,) = [line for line in lines if "npz:a_data_set_of_our_own.npz" in line]
    assert own.split()[1] == "yes"
    assert not any("…" in line for line in lines)
    # No word of a source is broken: there is no room for them, and the last line says where they stand.
    assert not any("Zenodo" in line for line in lines)
    assert lines[-1] == "fedveil list data NAME says where one comes from"


@pytest.mark.parametrize("columns", [80, 120])
def test_a_name_longer_than_the_window_runs_on(
    columns: int, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FEDVEIL_DATA", str(folder))
    name = f"{'long_' * 30}.npz"
    (folder / "two.npz").rename(folder / name)
    assert main(["data", "list"]) == 0
    assert any(line.split()[:2] == [f"npz:{name}", "yes"] for line in capsys.readouterr().out.splitlines())


def test_data_get_prints_the_place(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Longer than a terminal, with what a markup language would swallow: scripts take the line as it is.
    place = folder / ("long-" * 30) / "[bold]" / "x.npz"
    monkeypatch.setattr("fedveil.fl.data.fetch", lambda name, size: place)
    assert main(["data", "get", "mnist"]) == 0
    assert capsys.readouterr().out == f"{place}\n"


def test_ui_of_a_server_is_its_address(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ui", "--uri", "http://server:5000"]) == 0
    assert capsys.readouterr().out == "MLflow runs at http://server:5000\n"


def test_a_reader_that_has_had_enough_is_no_error() -> None:
    command = f"{sys.executable} -m orchestrator schema | head -n 1"
    found = subprocess.run(
        ["bash", "-c", command], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert (found.stdout, found.stderr) == ("{\n", "")
