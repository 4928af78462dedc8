"""A real PostgreSQL server for tests, on loopback."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.faults.servers import free_port

POSTGRES = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None, key=lambda found: int(found.parent.name))
"""Where Debian's package has its programs; None without it."""


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Yield the address of a database of a real PostgreSQL server on loopback, whose files lie in a new ``folder``."""
    assert POSTGRES is not None
    port, folder = free_port(), folder.absolute()
    folder.mkdir()
    # It refuses to run as root. Temporary folders of tests are their owner's alone, so the other user is lent this one.
    user = "postgres" if os.geteuid() == 0 else None
    if user is not None:
        shutil.chown(folder, user)
    made: dict[str, Any] = {"user": user, "cwd": folder, "env": {"PATH": os.environ["PATH"], "LC_ALL": "C"}}
    make = [POSTGRES / "initdb", "-D", ".", "-U", "mlflow", "--auth=trust", "--encoding=UTF8"]
    subprocess.run(make, check=True, capture_output=True, **made)
    command = [POSTGRES / "postgres", "-D", ".", "-p", str(port), "-h", "127.0.0.1", "-c", "unix_socket_directories="]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, "-c", "fsync=off"], stdout=log, stderr=log, **made)
    try:
        deadline = time.monotonic() + 60
        while subprocess.run(
            [POSTGRES / "pg_isready", "-h", "127.0.0.1", "-p", str(port)], capture_output=True
        ).returncode:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((folder / "log").read_text()[-3000:])
            time.sleep(0.1)
        yield f"postgresql+psycopg://mlflow@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGINT)  # a fast shutdown
        process.wait(60)
