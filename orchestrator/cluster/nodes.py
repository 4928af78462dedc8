"""What the nodes of a cluster say of themselves: whether they run what this machine runs, and reach the record."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import socket
import tempfile
from dataclasses import dataclass

from fedveil.orchestrator.cluster.connection import first_line

PATIENCE = 5.0
"""Seconds within which a server has to accept a connection."""
ANSWER = 60.0
"""Seconds within which a node has to answer; its first worker imports Ray."""
COMPARED = ("ray", "torch", "mlflow", "numpy")
"""Packages whose versions have to agree, beside Python's."""


@dataclass(frozen=True)
class NodeReport:
    """One node's answer.

    Attributes:
        address: as Ray knows it.
        versions: of Python and of `COMPARED`; ``missing`` where one is not installed.
        unreached: why the server of the record accepts no connection from there; None where it does, or none was named.
        free_disk: bytes in the folder for temporary files.
    """

    address: str
    versions: dict[str, str]
    unreached: str | None
    free_disk: int


def unreachable(host: str, port: int) -> str | None:
    """Return why nothing accepts a connection there within `PATIENCE` seconds, or None."""
    try:
        socket.create_connection((host, port), timeout=PATIENCE).close()
    except OSError as error:
        return first_line(error)
    return None


def versions() -> dict[str, str]:
    """Return this process's versions, see `NodeReport`."""
    return {"python": platform.python_version(), **{name: installed(name) for name in COMPARED}}


def installed(package: str) -> str:
    """Return a package's version; ``missing`` where it is not installed, as fedveil itself in a job's working folder."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def report(address: str, server: tuple[str, int] | None) -> NodeReport:
    """Examine the machine that this runs on."""
    unreached = None if server is None else unreachable(*server)
    return NodeReport(address, versions(), unreached, shutil.disk_usage(tempfile.gettempdir()).free)


def survey(server: tuple[str, int] | None) -> dict[str, NodeReport | str]:
    """Ask each living node of the connected cluster, and return its answer by its address, or why there is none.

    Args:
        server: host and port of the record's server, if it has one.
    """
    import ray

    addresses = [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]
    # Each node has one unit of itself: so the question goes there and nowhere else, and takes no core.
    asked = {
        ray.remote(num_cpus=0, resources={f"node:{address}": 0.001})(report).remote(address, server): address
        for address in addresses
    }
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER)
    for question in late:
        ray.cancel(question)
    answers: dict[str, NodeReport | str] = {asked[question]: f"no answer within {ANSWER:g} s" for question in late}
    for question in done:
        try:
            answers[asked[question]] = ray.get(question)
        except ray.exceptions.RayError as error:  # fedveil is not installed there, for one
            answers[asked[question]] = str(error).strip().splitlines()[-1]
    return answers
