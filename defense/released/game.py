"""What both poisonings begin with: two sides of the public images, the inversion model that is expected, and its goals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedveil.defense.base import DefenseContext
from fedveil.defense.released.poisoning import Queries, Surrogate, alignment, away
from fedveil.fl.data.splits import halved


@dataclass(frozen=True, eq=False)
class Game:
    """The upper level of the game is to be learnt in it.

    Attributes:
        poison: what an attacker asks and trains its inversion model on.
        surrogate: that model.
        goals: where steps of its training are to point, stage by stage.
        stream: for what is learnt next.
    """

    poison: Queries
    surrogate: Surrogate
    goals: list[Tensor]
    stream: torch.Generator

    @classmethod
    def begun(cls, defense: str, model: nn.Module, context: DefenseContext, *, width: int, steps: int) -> Game:
        """Ask the model about the public images, half of which stand for an attacker's, and train the inversion model.

        Args:
            defense: its name.
            model: the finished classifier.
            context: holds the public images.
            width: of the inversion model, see `Surrogate.trained`.
            steps: of its training.

        Raises:
            FedveilError: there are too few public images to cut in two: a class has a single one.
        """
        halves = halved(context.public, f"defense {defense} (half of data.public_fraction)", context.seed)
        poison, protected = (Queries.of(model, half, context.device) for half in halves)
        stream = context.stream(defense)
        surrogate = Surrogate.trained(poison, width=width, steps=steps, stream=stream)
        return cls(poison, surrogate, away(surrogate, protected), stream)

    def told(self, answers: Tensor) -> dict[str, float]:
        """Return how well perturbed ``answers`` (n, k) to the queries do, for `Guard.diagnostics`.

        Cosine to the goals with and without the perturbation, and the mean L1 distance between the two.
        """
        asked = self.poison
        return {
            "alignment": alignment(self.surrogate, answers, asked.images, self.goals),
            "unmoved_alignment": alignment(self.surrogate, asked.confidences, asked.images, self.goals),
            "output_l1": float((answers - asked.confidences).abs().sum(1).mean()),
        }
