from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.faults.servers import serving
from fedveil.orchestrator import doctor
from fedveil.orchestrator.cli import main
from fedveil.orchestrator.cluster import nodes
from fedveil.orchestrator.cluster.nodes import NodeReport
from fedveil.orchestrator.doctor import Finding, Level, examine

SQLITE = "sqlite:///mlflow.db"


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder and home, with none of the variables that the doctor reads."""
    for name in ("FEDVEIL_DATA", "MLFLOW_TRACKING_URI", *(n for n in os.environ if n.startswith("RAY_A"))):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def listening() -> Iterator[int]:
    """The port of something that accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def found(what: str, uri: str = SQLITE) -> Finding:
    (finding,) = [finding for finding in examine(uri) if finding.what == what]
    return finding


def test_a_healthy_machine(machine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "free_memory", lambda: 8 * 2**30)
    findings = list(examine(SQLITE))
    assert [f.what for f in findings if f.level is Level.FAIL] == []
    whats = [f.what for f in findings]
    assert whats[0] == "python"
    assert {"torch", "ray", "mlflow", "cpu", "gpu", "memory", "data", "mlflow uri", "ray token", "folder"} <= set(whats)
    assert "mni152" in found("data").text
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(findings)
    assert all(re.match(r"(ok|warn|fail) +\w", line) for line in lines)
    assert list(machine.iterdir()) == []


def test_a_failure_is_exit_code_1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mlruns")
    assert main(["doctor"]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fail")]
    assert "mlruns: nothing that MLflow records in -> allowed: sqlite:///FILE, http://HOST:PORT," in line


def test_pins_are_those_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "optuna":
            raise importlib.metadata.PackageNotFoundError(name)
        return {"ray": "2.9.0"}.get(name) or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    by_name = {f.what: f for f in doctor._packages() if f.level is Level.FAIL}
    assert sorted(by_name) == ["optuna", "ray"]
    assert by_name["ray"].text.startswith("2.9.0, but fedveil needs ")
    assert ">=2.60" in by_name["ray"].advice
    assert by_name["optuna"].text == "is not installed"


def test_fedveil_itself_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    assert [(f.what, f.level) for f in doctor._packages()] == [("packages", Level.WARN)]


def test_a_package_that_does_not_import_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[Finding]:
        raise ImportError("libcudart is missing")
        yield

    monkeypatch.setattr(doctor, "_data", broken)
    assert found("data") == Finding("data", Level.FAIL, "libcudart is missing", "see the packages above")


def test_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"card {index}")
    cpu, gpu = doctor._processors()
    assert cpu == Finding("cpu", Level.WARN, "1 core(s)", "set resources.workers to 1")
    assert gpu.text.startswith("2: card 0, card 1;")


@pytest.mark.parametrize(("free", "level"), [(8.0, Level.OK), (1.5, Level.WARN)])
def test_memory(free: float, level: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "free_memory", lambda: int(free * 2**30))
    (finding,) = doctor._memory()
    assert (finding.level, finding.text) == (level, f"{free} GiB free")


def test_data_folders(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDVEIL_DATA", str(machine / "none"))
    assert found("data").level is Level.FAIL
    assert "there is no folder" in found("data").text
    monkeypatch.setenv("FEDVEIL_DATA", str(machine))
    (machine / "mine.npz").touch()
    assert "npz:mine.npz" in found("data").text


@contextmanager
def server(code: int, body: bytes) -> Iterator[str]:
    """The address, without its scheme, of one that answers all requests so."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with serving(Answers) as port:
        yield f"127.0.0.1:{port}"


def test_mlflow_servers(machine: Path) -> None:
    with server(200, b'{"experiments": []}') as place:
        there = found("mlflow uri", f"http://user:secret@{place}")
        assert there == Finding("mlflow uri", Level.OK, f"http://{place} answers")
    with server(401, b"You are not authenticated.") as place:
        locked = found("mlflow uri", f"http://user:secret@{place}")
        assert (locked.level, locked.text) == (
            Level.FAIL,
            f"MLflow at http://{place} refuses the login; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        )
    with server(404, b"a page of something else") as place:
        other = found("mlflow uri", f"http://{place}")
        assert (other.level, "does not answer" in other.text, "404" in other.text) == (Level.FAIL, True, True)


def test_mlflow_servers_that_are_away() -> None:
    gone = found("mlflow uri", "http://user:secret@127.0.0.1:9")
    assert gone.level is Level.FAIL
    assert gone.text.startswith("http://127.0.0.1:9 does not answer (")
    assert "start the server" in gone.advice


@pytest.mark.parametrize(
    ("uri", "level", "text"),
    [
        (SQLITE, Level.OK, f"{SQLITE} will be made by the first experiment"),
        ("sqlite:///none/mlflow.db", Level.FAIL, "sqlite:///none/mlflow.db: No such file or directory"),
        ("file:///tmp/mlruns", Level.FAIL, "file:///tmp/mlruns: nothing that MLflow records in"),
        ("postgresql://u:p@db/x", Level.WARN, "postgresql://db/x: this kind of store was not tried"),
    ],
)
def test_mlflow_stores(uri: str, level: Level, text: str) -> None:
    finding = found("mlflow uri", uri)
    assert (finding.level, finding.text) == (level, text)


@pytest.mark.parametrize(
    ("address", "level"),
    [("auto", Level.OK), ("ray://head", Level.WARN), ("127.0.0.1:9", Level.FAIL), ("http://127.0.0.1:9", Level.FAIL)],
)
def test_ray_addresses(address: str, level: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    (finding,) = doctor._ray()
    assert finding.level is level
    assert address in finding.text
    assert bool(finding.advice) == (level is not Level.OK)


def test_a_ray_cluster_that_answers(listening: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"ray://127.0.0.1:{listening}")
    assert [f.level for f in doctor._ray()] == [Level.OK]


@pytest.mark.parametrize(
    ("variables", "file", "level", "word"),
    [
        ({}, False, Level.OK, "no trap"),
        ({}, True, Level.WARN, "401"),
        ({"RAY_AUTH_MODE": "token"}, True, Level.OK, "no trap"),
        ({"RAY_AUTH_MODE": "token"}, False, Level.FAIL, "there is none"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t"}, False, Level.OK, "no trap"),
        ({"RAY_AUTH_TOKEN": "t"}, True, Level.OK, "no trap"),
        ({"RAY_AUTH_TOKEN_PATH": "nowhere"}, False, Level.FAIL, "there is no nowhere"),
        ({"RAY_AUTH_MODE": "disabled"}, True, Level.WARN, "are open"),
    ],
)
def test_token_traps(
    variables: dict[str, str], file: bool, level: Level, word: str, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if file:
        (machine / ".ray").mkdir()
        (machine / ".ray" / "auth_token").write_text("t")
    (finding,) = doctor._token()
    assert (finding.level, word in finding.text) == (level, True)


def test_disks(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(machine)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=2**29))
    folder, temp = doctor._disk()
    assert (folder.level, temp.level) == (Level.WARN, Level.WARN)
    assert folder.text == f"{machine} is writable, 0.5 GiB free"
    monkeypatch.setattr(doctor, "_unwritable", lambda folder: "Read-only file system")
    assert [f.level for f in doctor._disk()] == [Level.FAIL, Level.FAIL]


def test_a_line_keeps_brackets() -> None:
    finding = Finding("data", Level.WARN, "a[b]", "[/c]")
    assert finding.line() == r"[yellow]warn[/yellow]  data        a\[b] -> \[/c]"


def answer(address: str, **changes: Any) -> NodeReport:
    plain = {"versions": nodes.versions(), "unreached": None, "free_disk": 9 * 2**30}
    return NodeReport(address, **{**plain, **changes})


def test_nodes_that_can_take_part_and_those_that_cannot() -> None:
    old = {**nodes.versions(), "torch": "1.0", "mlflow": "missing"}
    answers: dict[str, NodeReport | str] = {
        "10.0.0.1": answer("10.0.0.1"),
        "10.0.0.2": answer("10.0.0.2", versions=old),
        "10.0.0.3": answer("10.0.0.3", unreached="timed out"),
        "10.0.0.4": answer("10.0.0.4", free_disk=2**30),
        "10.0.0.5": "ModuleNotFoundError: No module named 'fedveil'",
    }
    found = list(doctor._compared(answers, "http://me:hunter2@mlflow:5000"))
    own = nodes.versions()
    assert [(f.what, f.level, f.text) for f in found] == [
        ("node 10.0.0.1", Level.OK, "fit, 9.0 GiB free for temporary files"),
        ("node 10.0.0.2", Level.FAIL, f"torch 1.0, here {own['torch']}; mlflow missing, here {own['mlflow']}"),
        ("node 10.0.0.3", Level.FAIL, "does not reach http://mlflow:5000 (timed out)"),
        ("node 10.0.0.4", Level.WARN, "1.0 GiB free for temporary files"),
        ("node 10.0.0.5", Level.FAIL, "ModuleNotFoundError: No module named 'fedveil'"),
    ]


def test_a_sqlite_record_on_several_nodes() -> None:
    one: dict[str, NodeReport | str] = {"10.0.0.1": answer("10.0.0.1")}
    assert all(f.level is Level.OK for f in doctor._compared(one, SQLITE))
    (line,) = [f for f in doctor._compared({**one, "10.0.0.2": answer("10.0.0.2")}, SQLITE) if f.level is Level.WARN]
    assert "the cluster has 2 nodes" in line.text
    assert "start an MLflow server" in line.advice


@pytest.mark.usefixtures("ray_cluster")
def test_the_nodes_of_a_running_cluster_are_asked(listening: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    monkeypatch.setenv("RAY_ADDRESS", address)
    (node,) = doctor._nodes(f"http://127.0.0.1:{listening}")
    assert (node.level, node.what) == (Level.OK, f"node {address.rpartition(':')[0]}")
    (node,) = doctor._nodes("http://127.0.0.1:9")
    assert node.level is Level.FAIL
    assert node.text.startswith("does not reach http://127.0.0.1:9 (")


@pytest.mark.parametrize("address", [None, "local", "ray://127.0.0.1:1", "127.0.0.1:1"])
def test_nobody_is_asked_where_no_cluster_answers(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "survey", lambda _: pytest.fail("asked"))
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    assert list(doctor._nodes(SQLITE)) == []
