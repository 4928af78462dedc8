from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from rich.console import Console

from fedveil.orchestrator import cli, commands
from fedveil.orchestrator.cli import main
from fedveil.orchestrator.config import Experiment, plugins
from fedveil.orchestrator.interrupts import can_be_resumed
from fedveil.orchestrator.listing import KINDS
from fedveil.orchestrator.report import TrialRow
from fedveil.orchestrator.report.recorded import rows_as_json, rows_from_mlflow
from fedveil.orchestrator.run.checkpoint import save_records
from fedveil.orchestrator.run.paths import ExperimentPaths
from fedveil.orchestrator.run.results import RunResult
from fedveil.orchestrator.run.setup import Setup
from fedveil.orchestrator.tracking.names import KIND_TAG

TINY = """
experiment: tiny
data: {name: "npz:two.npz"}
model: {name: convnet, width: 4}
fl: {clients: 2, rounds: 1}
audit: {victims: 2, gallery: 10}
"""
CONNECT = "fedveil.orchestrator.run.api.connect"
HALVES = """
from dataclasses import dataclass
from fedveil.fl.partition import PARTITIONS, Partition

@PARTITIONS.register("halves")
@dataclass(frozen=True)
class Halves(Partition):
    '''Two clients, one half each.'''
"""
SEARCH = "search: {panel: [{seed: 1}]}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, in which nothing may start Ray."""

    def started(*arguments: object, **options: object) -> None:
        raise AssertionError("this got as far as Ray")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("FEDVEIL_DATA", raising=False)
    monkeypatch.setattr(CONNECT, started)
    images = np.random.default_rng(0).integers(0, 256, (60, 12, 12), dtype=np.uint8)
    arrays = {f"{split}_images": images for split in ("train", "val", "test")}
    labels = {f"{split}_labels": np.arange(60) % 2 for split in ("train", "val", "test")}
    np.savez(tmp_path / "two.npz", **arrays, **labels)
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    (tmp_path / "sweep.yaml").write_text(TINY + SEARCH, encoding="utf-8")
    return tmp_path


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


@pytest.mark.parametrize(
    "arguments", [[], ["walk"], ["run"], ["data"], ["list", "a"], ["run", "a", "b"], ["ui", "--port", "x"]]
)
def test_a_wrong_command_line_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: fedveil" in capsys.readouterr().err


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


def test_a_log_leaves_no_column_out_and_a_window_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ["utility/accuracy", "utility/clean_accuracy", "privacy/mse", "privacy/trained_mse", "privacy/baseline_mse"]
    keys += ["privacy/psnr", "privacy/ssim", "privacy/identification_rate", "cost/train_seconds", "cost/attack_seconds"]
    row = TrialRow("t", "FINISHED", {"defense.name": "latent", "seed": 0}, dict.fromkeys(keys, 0.5))
    monkeypatch.setattr("fedveil.orchestrator.report.recorded.rows_from_mlflow", lambda *_: [row])
    monkeypatch.setattr("fedveil.orchestrator.report.recorded.records_from_mlflow", lambda *_: {})
    said = {}
    for columns in (None, "60"):
        monkeypatch.delenv("COLUMNS", raising=False) if columns is None else monkeypatch.setenv("COLUMNS", columns)
        assert main(["report", "x"]) == 0
        said[columns] = capsys.readouterr().out
    assert "SSIM" in said[None]
    assert "Left out" not in said[None]
    assert "Left out where the window is narrow: " in " ".join(said["60"].split())


def test_results_that_the_disk_does_not_take_hide_nothing_else(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = TrialRow("t", "FAILED", {"defense.name": "latent"}, {}, error="boom")
    monkeypatch.setattr("fedveil.orchestrator.report.recorded.rows_from_mlflow", lambda *_: [row])
    monkeypatch.setattr("fedveil.orchestrator.report.recorded.records_from_mlflow", lambda *_: {})
    assert main(["report", "x", "--json", "/dev/full"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "--json: /dev/full: No space left on device; fedveil report x --json FILE writes the same" in said
    assert "boom" in said
    assert main(["report", "x", "--json", "/dev/null"]) == 0


def test_data_get_prints_the_place(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Longer than a terminal, with what a markup language would swallow: scripts take the line as it is.
    place = folder / ("long-" * 30) / "[bold]" / "x.npz"
    monkeypatch.setattr("fedveil.fl.data.fetch", lambda name, size: place)
    assert main(["data", "get", "mnist"]) == 0
    assert capsys.readouterr().out == f"{place}\n"


@contextmanager
def _connected(*arguments: object, **options: object) -> Iterator[None]:
    yield


@pytest.mark.parametrize(
    ("status", "code", "uri", "option"),
    [
        ("FINISHED", 0, "sqlite:///mlflow.db", ""),
        ("FAILED", 1, "http://ann:secret@mlflow:5000", " --uri http://mlflow:5000"),
        ("KILLED", 0, "sqlite:////somewhere/else.db", " --uri sqlite:////somewhere/else.db"),
    ],
)
def test_a_run_writes_its_results_and_says_whether_it_failed(
    status: str,
    code: int,
    uri: str,
    option: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run_single(experiment: Experiment, setup: Setup, console: Console, *, resume: bool) -> RunResult:
        assert experiment.fl.rounds == 3
        assert not resume
        assert len(setup.shards) == experiment.fl.clients
        metrics = {"utility/accuracy": 0.5, "privacy/mse": float("nan")}
        row = TrialRow("t", status, {"seed": 0}, metrics, None if status == "FINISHED" else "boom")
        own = ExperimentPaths(folder).trial("t")
        own.folder.mkdir(parents=True)
        save_records((), own.records)
        own.grid.touch()
        return RunResult("tiny", (row,), folder, uri)

    monkeypatch.setattr(CONNECT, _connected)
    monkeypatch.setattr("fedveil.orchestrator.run.single.run_single", run_single)
    assert main(["run", "tiny.yaml", "--set", "fl.rounds=3", "--json", "r.json"]) == code
    ended = capsys.readouterr().out.splitlines()[-4:]
    assert ended[:2] == ["pictures    trials/t/reconstruction.png", "per trial   trials"]
    # The shell in which they are typed may not have the job's variables.
    assert ended[2].endswith(f"fedveil ui{option}")
    assert ended[3].endswith(f"fedveil report tiny{option} --html tiny.html")
    written = json.loads(
        (folder / "r.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON")
    )
    assert written == {
        "experiment": "tiny",
        "trials": [
            {
                "name": "t",
                "status": status,
                "params": {"seed": 0},
                "metrics": {"utility/accuracy": 0.5, "privacy/mse": None},
                "error": None if status == "FINISHED" else "boom",
            }
        ],
        "settings": [
            {"name": "t", "seeds": [0], "metrics": {"utility/accuracy": 0.5, "privacy/mse": None}, "intervals": {}}
        ]
        if status == "FINISHED"
        else [],
    }


def test_interrupted(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*arguments: object, resume: bool) -> None:
        if not resume:
            can_be_resumed()
        raise KeyboardInterrupt

    monkeypatch.setattr(CONNECT, _connected)
    monkeypatch.setattr("fedveil.orchestrator.run.single.run_single", interrupt)
    monkeypatch.setattr("sys.argv", ["/usr/bin/fedveil"])
    assert main(["run", "tiny.yaml", "--set", "tracking.uri=http://me:secret@127.0.0.1:9"]) == 130
    again = "fedveil run tiny.yaml --set tracking.uri=http://127.0.0.1:9 --resume"
    assert capsys.readouterr().err == f"fedveil: interrupted; go on with: {again}\n"
    assert main(["run", "tiny.yaml", "--resume"]) == 130  # before it was found
    assert capsys.readouterr().err == "fedveil: interrupted; go on with: fedveil run tiny.yaml --resume\n"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A record with two experiments; the first has a sweep with a finished and a failed trial."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('record') / 'mlflow.db'}"
    client = MlflowClient(uri)
    first, _ = client.create_experiment("first"), client.create_experiment("second")
    for start, (name, kind, status) in enumerate(
        [("sweep", "sweep", "FINISHED"), ("b", "trial", "FINISHED"), ("a", "trial", "FAILED")]
    ):
        run = client.create_run(first, start_time=start, tags={KIND_TAG: kind}, run_name=name).info.run_id
        client.log_param(run, "defense.name", "latent")
        client.log_metric(run, "privacy/mse", 0.25)
        if status == "FAILED":
            client.set_tag(run, "error", "boom")
        client.set_terminated(run, status)
    return uri


def test_trials_come_back_from_mlflow_oldest_first(store: str) -> None:
    rows = rows_from_mlflow(store, "first")
    params, metrics = {"defense.name": "latent"}, {"privacy/mse": 0.25}
    assert rows == [
        TrialRow("b", "FINISHED", params, metrics),
        TrialRow("a", "FAILED", params, metrics, "boom"),
    ]
    assert rows_from_mlflow(store, "second") == []
    assert [trial["name"] for trial in rows_as_json("first", rows)["trials"]] == ["b", "a"]


def test_report(store: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert main(["report", "first", "--json", "r.json"]) == 0
    assert [trial["status"] for trial in json.loads((folder / "r.json").read_text())["trials"]] == [
        "FINISHED",
        "FAILED",
    ]
    assert "boom" in capsys.readouterr().out
    assert main(["report", "third"]) == 2
    assert capsys.readouterr().err == f"fedveil: no experiment 'third' at {store}; there are: first, second\n"


def test_a_dead_server_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "x", "--uri", "http://127.0.0.1:9"]) == 2
    printed = capsys.readouterr().err
    assert printed == "fedveil: MLflow at http://127.0.0.1:9 does not answer (Connection refused)\n"


def test_ui_of_a_server_is_its_address(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ui", "--uri", "http://server:5000"]) == 0
    assert capsys.readouterr().out == "MLflow runs at http://server:5000\n"


def test_a_reader_that_has_had_enough_is_no_error() -> None:
    command = f"{sys.executable} -m orchestrator schema | head -n 1"
    found = subprocess.run(
        ["bash", "-c", command], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert (found.stdout, found.stderr) == ("{\n", "")
