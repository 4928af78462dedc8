from __future__ import annotations

import io
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from mlflow import MlflowClient
from rich.console import Console

from benchmarks.faults.servers import free_port
from fedveil.fl.errors import FedveilError
from fedveil.orchestrator.report.recorded import experiment_views
from fedveil.orchestrator.ui import serve


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """A record with two experiments."""
    found = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(found)
    for name in ("first", "second"):
        client.create_experiment(name)
    return found


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which something else listens."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield int(other.getsockname()[1])


def test_links_are_told_when_they_answer_and_ctrl_c_ends_it(uri: str, tmp_path: Path) -> None:
    port = free_port()
    # A background process of some shells ignores SIGINT, and its children with it.
    start = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    start += "import sys; from fedveil.orchestrator.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", start, "ui", "--uri", uri, "--port", str(port), "--no-browser"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True)
    assert process.stdout is not None
    try:
        told = []
        for line in process.stdout:
            told.append(line.strip())
            if told[-1] == "Ctrl-C ends it.":
                break
        assert told[-1:] == ["Ctrl-C ends it."], (tmp_path / "log").read_text()
        links = {f"{name}:  http://127.0.0.1:{port}{path}" for name, path in experiment_views(uri).items()}
        assert len(links) == 2
        assert links <= set(told)
        assert urlopen(f"http://127.0.0.1:{port}/health", timeout=10).status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        with pytest.raises(OSError, match="refused"):
            urlopen(f"http://127.0.0.1:{port}/health", timeout=10)
    finally:
        process.kill()
        process.wait()


def test_a_port_that_is_taken_is_one_sentence(uri: str, taken: int) -> None:
    with pytest.raises(FedveilError, match=f"before it answered at http://127.0.0.1:{taken}; .* choose another --port"):
        serve(uri, taken, experiment_views(uri), Console(file=io.StringIO()), browser=False)
