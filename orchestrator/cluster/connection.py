"""Ray below the workers: joining or starting a cluster, and asking whether the workers can ever fit on it.

Ray is imported inside the functions: it reads some of the variables of `offline_environment` on import.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fedveil.fl.errors import FedveilError
from fedveil.orchestrator.tracking.settings import without_passwords

if TYPE_CHECKING:
    from ray.tune import PlacementGroupFactory
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

OFFLINE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
"""No usage statistics, no copy of a uv environment per worker, no log files that Tune writes unasked, and of MLflow no
news about the tables of its database. Tune leaves Ctrl-C alone: it would end one part of a sweep as if that were done."""

LOCAL_START_ATTEMPTS = 3
NODE_SLIVER = 0.001
"""Of the one unit of itself that Ray gives to each node: room for a thousand trial drivers."""
REACH_TIMEOUT = 10.0
"""Seconds within which a cluster's head has to accept a connection."""

# Ray counts resources in ten-thousandths; so do we, or 0.3 of a core would hold only two shares of 0.1.
_GRAIN = 10_000
LEAST_SHARE = 1 / _GRAIN
"""The least of a core or a GPU that a worker can ask for."""


def offline_environment() -> None:
    """Set the variables of `OFFLINE` that the user has not set. Call it before anything imports Ray."""
    for name, value in OFFLINE.items():
        os.environ.setdefault(name, value)


@contextmanager
def connect(
    address: str | None = None,
    *,
    cpus: int | None = None,
    log_to_driver: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> Iterator[None]:
    """Join a Ray cluster, or start one in this process, for the length of a ``with`` block.

    A connection that exists already (inside a Tune trial, say) is used and left as it is.

    Args:
        address: a cluster's address, ``auto`` for the one that runs on this machine, ``local`` to start one.
            None means ``RAY_ADDRESS``, which a Ray job sets, and where that is missing too, ``local``.
        cpus: cores that a cluster started here declares; None for all of the machine's. They are tickets, not
            a limit. An existing cluster keeps its own.
        log_to_driver: print here what the workers print.
        metadata: of the job, which Ray's dashboard shows; that of ``ray job submit`` comes before it.

    Raises:
        FedveilError: no cluster answers at ``address``, or the local one does not start.
    """
    offline_environment()
    import ray

    if ray.is_initialized():
        yield
        return
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    if where == "local":
        _start_local(cpus, log_to_driver, dict(metadata or {}))
    else:
        hint = ""
        try:
            _check_reachable(where)
            hint = "; if it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
            ray.init(
                address=where,
                log_to_driver=log_to_driver,
                logging_level=logging.ERROR,
                job_config=ray.job_config.JobConfig(metadata=dict(metadata or {})),
            )
        except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            raise FedveilError(
                f"no Ray cluster answers at {without_passwords(where)!r}: {without_passwords(first_line(error))}{hint}"
            ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise `OSError` where nothing listens. Ray itself tries for a minute or more, then ends the process."""
    host, colon, port = address.rpartition("://")[2].rpartition("@")[2].rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_TIMEOUT).close()


def _start_local(cpus: int | None, log_to_driver: bool, metadata: dict[str, str]) -> None:
    import ray

    # A local cluster listens on all of the machine's interfaces and runs what it is sent, so it is never left
    # open. Ray would make a token too, but in the home folder, where it changes how later clusters start. Ray
    # reads the token once per process, therefore it stays for the life of this one.
    if not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    for attempt in range(1, LOCAL_START_ATTEMPTS + 1):
        try:
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=log_to_driver,
                logging_level=logging.ERROR,
                job_config=ray.job_config.JobConfig(metadata=metadata),
            )
        except Exception as error:
            # Ray gives its node 30 seconds, which a cold disk or a busy machine can use up; the next attempt
            # finds everything in the page cache. Ray raises bare Exceptions here.
            ray.shutdown()
            if attempt == LOCAL_START_ATTEMPTS:
                raise FedveilError(f"Ray does not start on this machine: {first_line(error)}") from error
        else:
            return


def first_line(error: BaseException) -> str:
    """Return what the error says, cut to one line; Ray appends whole logs."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def placement_group(
    workers: int,
    *,
    cpus_per_worker: float = 1,
    gpus_per_worker: float = 0,
    driver_cpus: float = 1,
    driver_node: str | None = None,
    spread: bool = False,
) -> PlacementGroupFactory:
    """Return what a Tune trial has to reserve: bundle 0 for its driver, bundle 1 + i for worker i.

    Args:
        workers: how many.
        cpus_per_worker: cores of each.
        gpus_per_worker: share of a GPU of each.
        driver_cpus: cores of the driver; 0 only with ``driver_node``, as Tune drops an empty first bundle.
        driver_node: `own_node` of the node on which the driver has to be; None for any. The workers are free.
        spread: the bundles go to as many nodes as there are, not to as few as have room.

    Raises:
        FedveilError: a number is out of range.
    """
    bundle = _bundle(workers, cpus_per_worker, gpus_per_worker)
    if driver_cpus < 0 or (driver_cpus == 0 and driver_node is None):
        raise FedveilError(f"driver_cpus must be above 0, not {driver_cpus:g}; 0.01 will do for one that only waits")
    driver = {"CPU": driver_cpus} if driver_node is None else {"CPU": driver_cpus, driver_node: NODE_SLIVER}
    offline_environment()
    from ray.tune import PlacementGroupFactory

    bundles = [driver, *(dict(bundle) for _ in range(workers))]
    return PlacementGroupFactory(bundles, strategy="SPREAD" if spread else "PACK")


def own_node() -> str:
    """Return the name of the resource, ``node:ADDRESS``, that ties what asks for it to this process's node."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    return next(f"node:{node['NodeManagerAddress']}" for node in ray.nodes() if node["NodeID"] == own)


def room(*, cpus_per_worker: float = 1, gpus_per_worker: float = 0) -> int:
    """Return how many workers the connected cluster could hold if nobody else were there.

    Raises:
        FedveilError: a number is out of range.
    """
    wanted = _bundle(1, cpus_per_worker, gpus_per_worker)
    return sum(_room(node, wanted) for node in _nodes())


def check_fit(
    workers: int, *, cpus_per_worker: float = 1, gpus_per_worker: float = 0, spread: bool = False
) -> list[PlacementGroupSchedulingStrategy | str | None]:
    """Return where each worker is to start, or say why they can never all be there.

    Ray itself lets an actor that fits nowhere wait for ever. Inside a placement group (a Tune trial) worker i
    belongs in bundle 1 + i, and its place is the strategy for that bundle. Outside one, each worker has to
    fit on a single node whole, and its place is None, anywhere, or with ``spread`` Ray's ``SPREAD``. What others occupy
    now is not counted: they may leave.

    Raises:
        FedveilError: the workers do not fit; it says what was asked, what is there and what is missing.
    """
    from ray.util.placement_group import get_current_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    wanted = _bundle(workers, cpus_per_worker, gpus_per_worker)
    group = get_current_placement_group()
    if group is None:
        _check_nodes(workers, wanted)
        return ["SPREAD" if spread else None] * workers
    _check_bundles(workers, wanted, group.bundle_specs[1:])
    return [
        PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=1 + worker)
        for worker in range(workers)
    ]


def _bundle(workers: int, cpus: float, gpus: float) -> Mapping[str, float]:
    if workers < 1:
        raise FedveilError(f"workers must be at least 1, not {workers}")
    for name, value in (("cpus_per_worker", cpus), ("gpus_per_worker", gpus)):
        if value < 0:
            raise FedveilError(f"{name} must not be negative, not {value:g}")
        if 0 < value < LEAST_SHARE:
            raise FedveilError(f"{name} above 0 must be at least {LEAST_SHARE}, not {value:g}")
    if cpus == gpus == 0:
        raise FedveilError("a worker needs some of a CPU or a GPU: cpus_per_worker and gpus_per_worker are both 0")
    if gpus > 1 and gpus != int(gpus):
        raise FedveilError(f"gpus_per_worker above 1 must be a whole number, not {gpus:g}")
    return {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}


def _check_nodes(workers: int, wanted: Mapping[str, float]) -> None:
    nodes = _nodes()
    there = sum(_room(node, wanted) for node in nodes)
    if there < workers:
        raise FedveilError(
            f"{_asked(workers, wanted)} do not fit: the cluster has {_listed(nodes, wanted)}, room for"
            f" {there}; missing {_missing(workers, wanted, nodes)}; lower resources.workers or their share"
        )


def _check_bundles(workers: int, wanted: Mapping[str, float], bundles: Sequence[Mapping[str, float]]) -> None:
    fitting = [_room(bundle, wanted) >= 1 for bundle in bundles[:workers]]
    if sum(fitting) < workers:
        raise FedveilError(
            f"{_asked(workers, wanted)} do not fit: beside its driver's bundle the trial reserved"
            f" {_listed(bundles, wanted)}; missing {workers - sum(fitting)} bundle(s) of {amounts(wanted)};"
            " reserve the trial's resources with placement_group of fedveil.orchestrator.cluster.connection"
        )


def _nodes() -> list[Mapping[str, float]]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _room(there: Mapping[str, float], wanted: Mapping[str, float]) -> int:
    """How many workers that hold ``wanted`` each go into ``there``."""
    return min(
        round(there.get(name, 0.0) * _GRAIN) // round(amount * _GRAIN) for name, amount in wanted.items() if amount
    )


def _asked(workers: int, wanted: Mapping[str, float]) -> str:
    return f"{workers} worker(s) with {amounts(wanted)} each"


def amounts(resources: Mapping[str, float]) -> str:
    """Return the resources in words.

    >>> amounts({"CPU": 2.0, "GPU": 0.5})
    '2 CPU and 0.5 GPU'
    """
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items())


def _listed(places: Sequence[Mapping[str, float]], wanted: Mapping[str, float]) -> str:
    if not places:
        return "nothing"
    return ", ".join(f"[{amounts({name: place.get(name, 0.0) for name in wanted})}]" for place in places)


def _missing(workers: int, wanted: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> str:
    short = {name: workers * amount - sum(node.get(name, 0.0) for node in nodes) for name, amount in wanted.items()}
    lacking = {name: amount for name, amount in short.items() if amount > 0}
    return amounts(lacking) if lacking else "a node that holds a worker whole"
