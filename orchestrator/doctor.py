"""``fedveil doctor``: is this machine fit for an experiment, and if not, what to do."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from packaging.requirements import Requirement
from rich.markup import escape

from fedveil.fl.errors import FedveilError
from fedveil.fl.memory import GIB, free_memory
from fedveil.orchestrator.cluster.connection import first_line
from fedveil.orchestrator.cluster.nodes import unreachable
from fedveil.orchestrator.tracking.settings import without_passwords

if TYPE_CHECKING:
    from fedveil.orchestrator.cluster.nodes import NodeReport

LITTLE_MEMORY = 4.0
LITTLE_DISK = 2.0
"""GiB below which the doctor warns: two workers with PyTorch take about 2 GiB, a sweep's checkpoints some 100 MiB."""


class Level(IntEnum):
    """How bad a finding is."""

    OK = 0
    WARN = 1
    FAIL = 2


COLOURS = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    Attributes:
        what: was looked at.
        level: how bad it is.
        text: what was found.
        advice: what to do; empty where nothing has to be done.
    """

    what: str
    level: Level
    text: str
    advice: str = ""

    def line(self) -> str:
        """Return the finding for a rich console."""
        colour = COLOURS[self.level]
        advice = f" -> {self.advice}" if self.advice else ""
        return f"[{colour}]{self.level.name.lower():4}[/{colour}]  {self.what:10}  {escape(self.text + advice)}"


def examine(uri: str) -> Iterator[Finding]:
    """Yield what is found, one thing after the other. Nothing is left behind, and nothing started but a question per node.

    Args:
        uri: where MLflow is to record.
    """
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "packages": _packages,
        "devices": _processors,
        "memory": _memory,
        "data": _data,
        "mlflow uri": lambda: _mlflow(uri),
        "ray": _ray,
        "ray token": _token,
        "nodes": lambda: _nodes(uri),
        "disk": _disk,
    }
    yield Finding("python", Level.OK, ".".join(map(str, sys.version_info[:3])))
    for what, check in checks.items():
        try:
            yield from check()
        except ImportError as error:
            yield Finding(what, Level.FAIL, first_line(error), "see the packages above")


def _packages() -> Iterator[Finding]:
    """Compare what is installed with what fedveil asks for: the pins are in its own metadata."""
    try:
        wanted = importlib.metadata.requires("fedveil") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("packages", Level.WARN, "fedveil itself is not installed", "pip install --editable .")
        return
    shown = ("torch", "ray", "mlflow")
    for requirement in map(Requirement, wanted):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name, pin = requirement.name, requirement.specifier
        advice = f'pip install "{name}{pin}"'
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, Level.FAIL, "is not installed", advice)
            continue
        if not pin.contains(version, prereleases=True):
            yield Finding(name, Level.FAIL, f"{version}, but fedveil needs {pin}", advice)
        elif name in shown:
            yield Finding(name, Level.OK, f"{version} (needs {pin})")


def _processors() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    advice = "" if cores > 1 else "set resources.workers to 1"
    yield Finding("cpu", Level.OK if cores > 1 else Level.WARN, f"{cores} core(s)", advice)
    import torch

    if not torch.cuda.is_available():
        yield Finding("gpu", Level.OK, "none that PyTorch can use; workers run on CPU")
        return
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    yield Finding("gpu", Level.OK, f"{len(names)}: {', '.join(names)}; ask for a share by resources.gpus_per_worker")


def _memory() -> Iterator[Finding]:
    known = free_memory()
    if known is None:
        return
    free = known / GIB
    if free < LITTLE_MEMORY:
        advice = "close other programs or set resources.workers to 1"
        yield Finding("memory", Level.WARN, f"{free:.1f} GiB free", advice)
    else:
        yield Finding("memory", Level.OK, f"{free:.1f} GiB free")


def _data() -> Iterator[Finding]:
    from fedveil.fl.data import available
    from fedveil.fl.data.search import search_folders

    try:
        folders = search_folders()
        present = [entry.name for entry in available() if entry.present]
    except FedveilError as error:
        yield Finding("data", Level.FAIL, str(error), "correct or unset FEDVEIL_DATA")
        return
    where = ", ".join(map(str, folders)) or "no folder"
    yield Finding("data", Level.OK, f"here: {', '.join(present)} (looked in {where})")


def _mlflow(uri: str) -> Iterator[Finding]:
    from fedveil.orchestrator.config.uri import uri_fault

    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        yield _server(uri, parts)
    elif parts.scheme == "sqlite":
        file = Path(uri.removeprefix("sqlite:///"))
        trouble = _unwritable(file.absolute().parent)
        if trouble:
            yield Finding("mlflow uri", Level.FAIL, f"{uri}: {trouble}", "choose another folder by MLFLOW_TRACKING_URI")
        else:
            state = "exists" if file.exists() else "will be made by the first experiment"
            yield Finding("mlflow uri", Level.OK, f"{uri} {state}")
    elif fault := uri_fault(uri):
        yield Finding("mlflow uri", Level.FAIL, f"{without_passwords(uri)}: nothing that MLflow records in", fault)
    else:
        yield Finding("mlflow uri", Level.WARN, f"{without_passwords(uri)}: this kind of store was not tried")


def _server(uri: str, parts: SplitResult) -> Finding:
    """Whether an MLflow server answers there, and takes the login."""
    from fedveil.orchestrator.report.recorded import mlflow_client

    advice = "start the server, or unset MLFLOW_TRACKING_URI to record in a file here"
    trouble = unreachable(parts.hostname or "", _port(parts))  # MLflow's client would try for a while
    if trouble:
        return Finding("mlflow uri", Level.FAIL, f"{without_passwords(uri)} does not answer ({trouble})", advice)
    try:
        with mlflow_client(uri) as client:
            client.search_experiments(max_results=1)
    except FedveilError as error:
        return Finding("mlflow uri", Level.FAIL, str(error), "see the server's log, and whether this is its address")
    return Finding("mlflow uri", Level.OK, f"{without_passwords(uri)} answers")


def _ray() -> Iterator[Finding]:
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        yield Finding("ray", Level.OK, "RAY_ADDRESS is not set: each command starts a cluster of its own here")
        return
    place = address.rpartition("@")[2].rpartition("://")[2].partition("/")[0]
    shown = without_passwords(address)
    host, colon, port = place.rpartition(":")
    if not colon or not port.isdecimal():
        if address in ("auto", "local"):
            yield Finding("ray", Level.OK, f"RAY_ADDRESS is {address}")
        else:
            yield Finding("ray", Level.WARN, f"RAY_ADDRESS is {shown}, which names no port", "use HOST:PORT")
        return
    trouble = unreachable(host.strip("[]"), int(port))
    if trouble:
        advice = "start the cluster, or unset RAY_ADDRESS to run here"
        yield Finding("ray", Level.FAIL, f"RAY_ADDRESS {shown} does not answer ({trouble})", advice)
    else:
        yield Finding("ray", Level.OK, f"RAY_ADDRESS {shown} accepts connections")


def _nodes(uri: str) -> Iterator[Finding]:
    """Join the cluster that RAY_ADDRESS names, if it answers, and ask its nodes. Addresses of Ray clients are not tried."""
    from fedveil.orchestrator.cluster.connection import connect
    from fedveil.orchestrator.cluster.nodes import survey

    address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "local") or "://" in address or any(finding.level is Level.FAIL for finding in _ray()):
        return
    parts = urlsplit(uri)
    server = (parts.hostname or "", _port(parts)) if parts.scheme in ("http", "https") else None
    try:
        with connect(address):
            answers = survey(server)
    except FedveilError as error:
        yield Finding("nodes", Level.FAIL, str(error), "see the line on the token, and the head node's log")
        return
    yield from _compared(answers, uri)


def _compared(answers: Mapping[str, NodeReport | str], uri: str) -> Iterator[Finding]:
    """Say what keeps a node from taking part, and what only holds on one."""
    from fedveil.orchestrator.cluster.nodes import versions

    own = versions()
    for address, answer in sorted(answers.items()):
        what = f"node {address}"
        if isinstance(answer, str):
            yield Finding(what, Level.FAIL, answer, "install fedveil on each node, at this version")
            continue
        other = [
            f"{name} {answer.versions[name]}, here {own[name]}" for name in own if answer.versions[name] != own[name]
        ]
        if other:
            yield Finding(what, Level.FAIL, "; ".join(other), "install the same versions on all nodes")
        if answer.unreached is not None:
            text = f"does not reach {without_passwords(uri)} ({answer.unreached})"
            yield Finding(what, Level.FAIL, text, "give the MLflow server an address that all nodes reach")
        if answer.free_disk < LITTLE_DISK * GIB:
            yield Finding(what, Level.WARN, f"{answer.free_disk / GIB:.1f} GiB free for temporary files", "make room")
        elif not other and answer.unreached is None:
            yield Finding(what, Level.OK, f"fit, {answer.free_disk / GIB:.1f} GiB free for temporary files")
    if len(answers) > 1 and uri.startswith("sqlite:"):
        text = f"{uri} is a file of this machine, and the cluster has {len(answers)} nodes"
        yield Finding(
            "mlflow uri", Level.WARN, text, "start an MLflow server that all reach, and set MLFLOW_TRACKING_URI"
        )


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


def _token() -> Iterator[Finding]:
    """A cluster that was started with a token refuses clients that do not say that they have it."""
    mode = os.environ.get("RAY_AUTH_MODE")
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    default = Path("~/.ray/auth_token").expanduser()
    if mode == "disabled":
        advice = "Ray listens on all interfaces and runs what it is sent: only do this on a machine of your own"
        yield Finding("ray token", Level.WARN, "RAY_AUTH_MODE is disabled: clusters started here are open", advice)
    elif named and not Path(named).expanduser().is_file():
        yield Finding("ray token", Level.FAIL, f"RAY_AUTH_TOKEN_PATH: there is no {named}", "correct or unset it")
    elif mode == "token" and not (named or os.environ.get("RAY_AUTH_TOKEN") or default.is_file()):
        advice = "set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token"
        yield Finding("ray token", Level.FAIL, "RAY_AUTH_MODE is token, but there is none", advice)
    elif mode is None and not named and not os.environ.get("RAY_AUTH_TOKEN") and default.is_file():
        text = f"{default} exists, so 'ray start' makes clusters that ask for it; 'ray job submit' fails with 401"
        yield Finding("ray token", Level.WARN, text, "export RAY_AUTH_MODE=token where you submit jobs")
    else:
        yield Finding("ray token", Level.OK, "no trap found")


def _disk() -> Iterator[Finding]:
    for what, folder in (("folder", Path.cwd()), ("temp", Path(tempfile.gettempdir()))):
        trouble = _unwritable(folder)
        if trouble:
            advice = "work in a folder of your own" if what == "folder" else "set TMPDIR to a folder of your own"
            yield Finding(what, Level.FAIL, f"{folder}: {trouble}", advice)
            continue
        free = shutil.disk_usage(folder).free / GIB
        level, advice = (Level.OK, "") if free >= LITTLE_DISK else (Level.WARN, "make room: results are written there")
        yield Finding(what, level, f"{folder} is writable, {free:.1f} GiB free", advice)


def _unwritable(folder: Path) -> str | None:
    """Return why no file can be made in a folder, by trying, or None."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return str(error.strerror or error)
