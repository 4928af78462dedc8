"""How many victims are optimised together: as many as fit the memory that is free, never more than pays.

Victims do not see each other, and `fedveil.attacks.engine.objective` evaluates them in groups whose size no chunk
changes, so that results do not depend on how much memory there was, but for rounding where there was hardly any.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedveil.attacks.engine.distances import cosine_distance
from fedveil.attacks.engine.objective import FEW, victims_that_fit
from fedveil.attacks.engine.step import size_of
from fedveil.attacks.target.problem import Problem

MOST = {"cpu": 64, "cuda": 512}
"""Victims times restarts that are optimised together at most, by kind of device."""

Job = tuple[int, int]
"""The number of a victim, and that of a restart."""


def fitting(
    problem: Problem, jobs: int, *, image_copies: int, observations: int = 1, replayed_steps: int | None = None
) -> int:
    """Return how many of so many jobs can be optimised together within a share of the free memory.

    Args:
        problem: with one victim or more of that kind.
        jobs: victims times restarts, at least 1.
        image_copies: how many times over the optimiser keeps what is as large as a victim's images.
        observations: of each victim, which are all held at once.
        replayed_steps: of local training; victims that are unrolled are evaluated all at once, and not in groups.

    Returns:
        At least 1, and at most `MOST`.
    """
    most = min(jobs, MOST.get(problem.labels.device.type, MOST["cpu"]))
    if most <= FEW:
        return most
    target = [tensor[0].nbytes for tensor in problem.target.values()]
    channels, height, width = problem.model.image_shape
    image = channels * height * width * next(iter(problem.target.values())).element_size()
    kept = image_copies * problem.labels.shape[1] * image + (observations - 1) * sum(target)
    if replayed_steps is not None:
        kept += size_of(problem, cosine_distance).peak + replayed_steps * sum(target)
    return min(most, victims_that_fit(problem, kept))


def pieces(jobs: Sequence[Job], restarts: int, chunk: int) -> list[Sequence[Job]]:
    """Cut jobs into chunks; all restarts of a victim stay together where that many are allowed."""
    size = max(1, chunk // restarts) * restarts if chunk >= restarts else chunk
    return [jobs[at : at + size] for at in range(0, len(jobs), size)]
