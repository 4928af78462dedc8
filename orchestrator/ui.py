"""`fedveil ui`: MLflow's own server over the local record, until it is stopped, with a browser on the newest experiment."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import webbrowser
from collections.abc import Mapping
from urllib.error import URLError
from urllib.request import urlopen

from rich.console import Console

from fedveil.fl.errors import FedveilError

_PATIENCE = 180.0
"""Seconds for the server to answer; on a slow machine it takes some tens."""
_LEAVE = 10.0


def serve(uri: str, port: int, views: Mapping[str, str], console: Console, *, browser: bool) -> int:
    """Run MLflow's server on loopback until it ends or Ctrl-C comes, and return its exit status.

    Args:
        uri: of the record.
        port: to listen on.
        views: by experiment, the newest first, what opens its saved view (`experiment_views`).
        console: is told the links as soon as they answer.
        browser: open the first one.

    Raises:
        FedveilError: the server ends before it answers.
    """
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ}
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", "127.0.0.1"]
    server = subprocess.Popen([*command, "--port", str(port), "--workers", "1"], env=environment)
    address = f"http://127.0.0.1:{port}"
    console.print(f"MLflow starts at {address}, which may take a minute ...", markup=False)
    try:
        _wait_for(server, address)
        for name, path in views.items():
            console.print(f"{name}:  {address}{path}", soft_wrap=True, markup=False)
        console.print("Ctrl-C ends it.")
        if browser and views:
            webbrowser.open(address + next(iter(views.values())))
        return server.wait()
    finally:
        _end(server)


def _wait_for(server: subprocess.Popen[bytes], address: str) -> None:
    until = time.monotonic() + _PATIENCE
    while True:
        # Whoever else listens there answers, too: ours has to be alive.
        if server.poll() is not None:
            raise FedveilError(
                f"ui: MLflow's server ended with status {server.returncode} before it answered at {address}; what it says"
                " stands above. Another process may listen there: choose another --port"
            )
        if _answers(address):
            return
        if time.monotonic() > until:
            raise FedveilError(f"ui: MLflow's server does not answer at {address} after {_PATIENCE:.0f} s")
        time.sleep(0.3)


def _answers(address: str) -> bool:
    try:
        with urlopen(f"{address}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


def _end(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(_LEAVE)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
