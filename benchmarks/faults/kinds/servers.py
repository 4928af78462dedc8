"""MLflow's server, or its database, that does not answer."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from benchmarks.faults.servers import MlflowServer, free_port, losing_answers, mute
from benchmarks.faults.stage import Stage, fault


@contextmanager
def _server(stage: Stage) -> Iterator[MlflowServer]:
    """Run a server over the file from which the outcome is read."""
    folder = stage.folder / "server"
    folder.mkdir()
    server = MlflowServer(folder, free_port())
    server.start()
    stage.uri = server.uri
    try:
        yield server
    finally:
        server.stop()
        stage.uri = f"sqlite:///{folder / 'mlflow.db'}"


@fault("server-away", "the MLflow server away for a while", "sweep")
def server_away(stage: Stage) -> None:
    """The spool keeps what it misses."""
    with _server(stage) as server:
        command = stage.start("sweep")
        stage.anywhen(command)
        server.stop()
        time.sleep(stage.chance.uniform(0, 3))
        server.start()
        stage.finish(command)
        _deliver_rest(stage)


@fault("server-gone", "the MLflow server away to the end, back for a resume", "sweep")
def server_gone(stage: Stage) -> None:
    """The spool keeps everything, and who resumes delivers it."""
    with _server(stage) as server:
        command = stage.start("sweep")
        stage.anywhen(command)
        server.stop()
        stage.finish(command)
        server.start()
        _deliver_rest(stage)


@fault("server-mute", "the MLflow server accepts and never answers, mended for a resume", "sweep")
def server_mute(stage: Stage) -> None:
    """Nothing waits for it."""
    folder, port = stage.folder / "server", free_port()
    folder.mkdir()
    stage.uri = f"http://127.0.0.1:{port}"
    with mute(port):
        stage.strike(moment="the start")
        stage.finish(stage.start("sweep"))
    server = MlflowServer(folder, port)
    server.start()
    try:
        stage.finish(stage.start("sweep", "--resume"))
    finally:
        server.stop()
        stage.uri = f"sqlite:///{folder / 'mlflow.db'}"


@fault("answers-lost", "answers of the MLflow server lost", "sweep")
def answers_lost(stage: Stage) -> None:
    """The server carries out what the client is not told of."""
    with _server(stage) as server:
        to = stage.chance.choice(["runs/create", "runs/log-batch", "runs/update", "experiments/create"])
        with losing_answers(server.uri, to=to, times=stage.chance.randint(1, 4)) as uri:
            stage.uri = uri
            stage.strike(moment=f"answers to {to}")
            stage.finish(stage.start("sweep"))
            _deliver_rest(stage)


@fault("database-locked", "MLflow's SQLite file locked", "sweep")
def database_locked(stage: Stage) -> None:
    """By another process, for longer than SQLite waits."""
    command = stage.start("sweep")
    file = stage.folder / "mlflow.db"
    while not file.exists():
        time.sleep(0.1)
    stage.anywhen(command)
    with closing(sqlite3.connect(file, timeout=60, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        time.sleep(stage.chance.uniform(3, 12))
        other.execute("ROLLBACK")
    stage.finish(command)
    _deliver_rest(stage)


def _deliver_rest(stage: Stage) -> None:
    """What waits still is delivered by whoever resumes the sweep."""
    spool = stage.runs / "faults" / "spool"
    if any(path.is_dir() for path in spool.iterdir()):
        stage.finish(stage.start("sweep", "--resume"))
