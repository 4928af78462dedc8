"""What the command line says of mistakes: one line each, before Ray starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedveil.orchestrator import commands
from fedveil.orchestrator.cli import main


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["run", "none.yaml"], "none.yaml: cannot be read (No such file or directory)"),
        (["run", "/dev/zero"], "/dev/zero: cannot be read (it is a folder, a pipe or a device); allowed: plain files"),
        (["run", "tiny.yaml", "--set", "fl.rounds=0"], "fl.rounds: given 0; allowed: 1 or more"),
        (
            ["run", "tiny.yaml", "--set", "data={name: mni152, size: 20}"],
            "data.size: given 20; allowed: 28 to 64",
        ),
        (["run", "tiny.yaml", "--set", "data.name=npz:no.npz"], "data.name: npz:no.npz: there is no 'no.npz'"),
        (["run", "tiny.yaml", "--set", "audit.victims=400"], "audit.victims: 400 in batches of 1; the 2 audited"),
        (["run", "tiny.yaml", "--json", "no/r.json"], "--json no/r.json: there is no folder "),
        (["run", "tiny.yaml", "--json", "."], "--json .: this is a folder; name a file"),
        (["run", "sweep.yaml"], "sweep.yaml: has a 'search' section; run it with: fedveil sweep sweep.yaml"),
        (["sweep", "tiny.yaml"], "tiny.yaml: has no 'search' section; run it with: fedveil run tiny.yaml"),
        (["sweep", "sweep.yaml", "--set", "data={name: mni152, size: 20}"], "data.size: given 20"),
        (
            ["sweep", "sweep.yaml", "--set", "search.panel=[{seed: 1}, {fl.clients: 70}]"],
            "search.panel.1: ",
        ),
        (
            ["sweep", "sweep.yaml", "--set", "search.space={audit.victims: {grid: [2, 400]}}"],
            "search.space: audit.victims: 400 in batches of 1",
        ),
        (["report", "x"], "sqlite:///"),
        (["report", "x", "--json", "no/r.json"], "--json no/r.json: there is no folder "),
        (["ui"], "sqlite:///"),
        (["run", "tiny.yaml", "--plugin", "./no.py"], "--plugin: ./no.py: there is no such file in "),
        (["report", "x", "--plugin", "./no.py"], "--plugin: ./no.py: there is no such file in "),
        (["run", "tiny.yaml", "--set", "plugins=[./no.py]"], "plugins: ./no.py: there is no such file in "),
        (["list", "models", "nothing"], "unknown model 'nothing'; allowed: convnet, lenet, mlp, resnet18, resnet20"),
        (["data", "get", "nothing"], "unknown data set 'nothing'; allowed: "),
        (["data", "get", "mni152", "--size", "7"], "mni152: size is 7"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2_before_ray(
    arguments: list[str], line: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.iterdir())
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"fedveil: {line}")
    assert printed.err.count("\n") == 1
    assert sorted(folder.iterdir()) == before


def test_each_mistake_is_a_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "tiny.yaml", "--set", "fl.rounds=0", "--set", "model.nam=lenet"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "fedveil: model.nam: unknown key; allowed: name, norm, width",
        "fedveil: fl.rounds: given 0; allowed: 1 or more",
    ]


def test_no_permission_to_write_the_results(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands.os, "access", lambda path, mode: False)
    assert main(["run", "tiny.yaml", "--json", "r.json"]) == 2
    assert capsys.readouterr().err == "fedveil: --json r.json: no permission to write there\n"


def test_a_warning_is_one_line_said_once(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 28, 28), dtype=np.uint8)
    arrays = {f"{split}_images": images for split in ("train", "val", "test")}
    labels = {f"{split}_labels": np.arange(60)[:, None] % 2 for split in ("train", "val", "test")}
    monkeypatch.setenv("FEDVEIL_DATA", str(folder))
    for name in ("pneumoniamnist", "breastmnist"):
        np.savez(folder / f"{name}.npz", **arrays, **labels)
        assert main(["run", "tiny.yaml", "--set", f"data.name={name}", "--set", "audit.victims=400"]) == 2
        warned, error = capsys.readouterr().err.splitlines()
        assert warned.startswith(f"fedveil: {folder}/{name}.npz is not the official file: its md5 is ")
        assert error.startswith("fedveil: audit.victims: 400")


PROBE = """
import sys
from fedveil.orchestrator.cli import main
code = main(["run", "tiny.yaml", "--set", "fl.clients=-3"])
sys.exit(99 if "ray" in sys.modules else code)
"""


def test_in_a_process_of_its_own_a_mistake_never_imports_ray(folder: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", PROBE], cwd=folder, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "fedveil: fl.clients: given -3; allowed: 1 or more\n"


@pytest.mark.parametrize(
    "arguments", [[], ["walk"], ["run"], ["data"], ["list", "a"], ["run", "a", "b"], ["ui", "--port", "x"]]
)
def test_a_wrong_command_line_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: fedveil" in capsys.readouterr().err


def test_a_dead_server_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "x", "--uri", "http://127.0.0.1:9"]) == 2
    printed = capsys.readouterr().err
    assert printed == "fedveil: MLflow at http://127.0.0.1:9 does not answer (Connection refused)\n"
