"""What a batch of victims leaves an attack to match: one update each, or several of the same images, in one step or many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedveil.attacks.base import Knowledge, Observation
from fedveil.attacks.engine.distances import Distance, cosine_distance, squared_distance
from fedveil.attacks.engine.joint import Joint
from fedveil.attacks.engine.objective import Problem, objective
from fedveil.attacks.engine.unrolled import Path, Unrolled
from fedveil.attacks.optimizers import Objective
from fedveil.attacks.priors import Prior


@dataclass(frozen=True, eq=False)
class Match:
    """V victims (or victims times restarts) whose images are looked for.

    Attributes:
        problems: one for each observation of the victims; all are of the same images.
        observations: (V) the first of each victim.
        knowledge: what the attacker holds.
        path: how the clients trained, where their steps are unrolled; otherwise one gradient stands for them.
        warm: the start is the result of an earlier run.
    """

    problems: tuple[Problem, ...]
    observations: tuple[Observation, ...]
    knowledge: Knowledge
    path: Path | None = None
    warm: bool = False

    @property
    def labels(self) -> Tensor:
        """(V, B), those that the attack uses."""
        return self.problems[0].labels

    @property
    def sized(self) -> bool:
        """What is matched fits the target in length too, see `Problem`."""
        return self.path is not None or all(problem.sized for problem in self.problems)

    def objective(self, *, distance: Distance = cosine_distance, priors: Sequence[Prior] = ()) -> Objective:
        """Return the distance between gradients, the mean of those of all observations, and the priors' sum."""
        each: list[Objective] = [
            objective(problem, distance=distance, priors=priors)
            if self.path is None
            else Unrolled(problem, self.path, distance, tuple(priors))
            for problem in self.problems
        ]
        return each[0] if len(each) == 1 else Mean(tuple(each))

    def joint(self, *, distance: Distance = squared_distance, priors: Sequence[Prior] = ()) -> Joint:
        """Return the same as an objective of images and labels; of several observations, it is that of the first."""
        problem, model = self.problems[0], self.knowledge.model
        path = self.path or Path(1, torch.ones(len(self.observations), device=problem.labels.device))
        shape = (self.observations[0].batch_size, *model.image_shape)
        return Joint(problem, shape, model.classes, path, distance, tuple(priors))


@dataclass(frozen=True, eq=False)
class Mean:
    """The mean of several objectives of the same variables: one image has to explain all that was observed of it."""

    objectives: tuple[Objective, ...]

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Objective`."""
        values, slopes = zip(*(one(x) for one in self.objectives), strict=True)
        return torch.stack(values).mean(0), torch.stack(slopes).mean(0)

    def take(self, at: Tensor) -> Mean:
        """See `Objective`."""
        return Mean(tuple(one.take(at) for one in self.objectives))
