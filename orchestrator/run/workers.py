"""How many workers each trial gets where the experiment leaves it open."""

from __future__ import annotations

from fedveil.orchestrator.cluster.connection import room
from fedveil.orchestrator.config import Experiment


def workers_of(experiment: Experiment, *, at_once: int) -> int:
    """Return a trial's workers: as many as asked for, or its share of the connected cluster.

    Trials side by side come before workers of one trial: much of a trial (learning a defence, or an inverse of it) is one
    task after another, while which all workers but one idle.

    Args:
        experiment: with or without ``resources.workers``.
        at_once: trials that may run side by side, at least 1.
    """
    resources = experiment.resources
    if resources.workers is not None:
        return resources.workers
    there = room(cpus_per_worker=resources.cpus_per_worker, gpus_per_worker=resources.gpus_per_worker)
    return max(1, min(experiment.fl.pieces, there // at_once))
