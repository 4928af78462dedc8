"""A Ray cluster of two nodes on this machine, each at an address of its own on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.faults.servers import end, free_port

RAY = str(Path(sys.executable).with_name("ray"))
ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if not key.startswith(("RAY_AUTH", "RAY_ADDRESS"))},
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}
"""Of whoever joins it."""


def _node(log: Path, address: str, *options: str) -> subprocess.Popen[bytes]:
    """Start a node of one core."""
    command = [RAY, "start", "--block", "--num-cpus", "1", "--node-ip-address", address, *options]
    with log.open("wb") as file:
        return subprocess.Popen(command, env=ENVIRONMENT, stdout=file, stderr=file, start_new_session=True)


def _raylet_of(address: str, port: int) -> int | None:
    """Return the process number of the node at an address, of the cluster at a port; None where there is none."""
    for folder in filter(lambda path: path.name.isdecimal(), Path("/proc").iterdir()):
        try:
            words = (folder / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
        except OSError:
            continue
        here = f"--node_ip_address={address}" in words and any(word.endswith(f":{port}") for word in words)
        if here and words[0].endswith("raylet"):
            return int(folder.name)
    return None


@contextmanager
def two_nodes(logs: Path) -> Iterator[tuple[str, int]]:
    """Yield the address of a cluster of two nodes, and the process number of the second one's raylet.

    Args:
        logs: folder for what the nodes say.
    """
    port, files = free_port(), [logs / "head.log", logs / "second.log"]
    with TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        head = _node(
            files[0],
            "127.0.0.2",
            *("--head", "--port", str(port), "--temp-dir", folder, "--include-dashboard", "false"),
            *("--dashboard-agent-listen-port", str(free_port())),
        )
        nodes = [head]
        try:
            deadline = time.monotonic() + 180
            raylets: list[int | None] = [None, None]
            while None in raylets:
                if time.monotonic() > deadline or any(one.poll() is not None for one in nodes):
                    raise RuntimeError("\n".join(file.read_text()[-1500:] for file in files if file.exists()))
                raylets = [_raylet_of(address, port) for address in ("127.0.0.2", "127.0.0.3")]
                if raylets[0] is not None and len(nodes) == 1:
                    agent = ("--dashboard-agent-listen-port", str(free_port()))
                    nodes.append(_node(files[1], "127.0.0.3", "--address", f"127.0.0.2:{port}", *agent))
                time.sleep(0.2)
            assert raylets[1] is not None
            yield f"127.0.0.2:{port}", raylets[1]
        finally:
            for one in reversed(nodes):
                end(one, 30)
