"""Label-preserving poisoning of whoever would train an inversion model on a released classifier's answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedveil.defense.base import DEFENSES, MOST_STEPS, Defense, DefenseContext, whole
from fedveil.defense.guard import Guard
from fedveil.defense.released.controls import check_budget
from fedveil.defense.released.perturbing import as_logits
from fedveil.defense.released.poisoning import (
    Direction,
    Queries,
    Surrogate,
    alignment,
    away,
    learn_direction,
    pushed,
)
from fedveil.fl.data.splits import halved


@DEFENSES.register("lpa")
@dataclass(frozen=True, kw_only=True)
class LabelPreservingPoisoning(Defense[None]):
    """Every answer is moved a little, to where it spoils an inversion model's training; no label changes (LPA).

    Zhou et al. 2024 (arXiv 2412.07575). What is public says that the perturbations are the upper level of a game, whose
    lower level is the attacker's training, and that they are found by gradient alignment and amortised by a generator. The
    rest is chosen here. Half of the public images stand for the attacker's queries, the other half for the protected images,
    since the server that releases the model holds none of its clients'. The generator is a network from an answer to a
    direction, without noise, so that asking again tells nothing more (the paper's is a VAE). The budget is an L1 distance on
    the simplex. All answers pass it, the victims' too.

    Attributes:
        strength: L1 distance that an answer may be moved, 0.001 to 2.
        steps: of the generator's training; each takes a gradient of a gradient of 64 images.
        surrogate_steps: of the inversion model that it aligns with.
        width: channels of that inversion model at full resolution.
    """

    strength: float = 0.1
    steps: int = 300
    surrogate_steps: int = 600
    width: int = 16

    def __post_init__(self) -> None:
        check_budget("lpa", self.strength)
        whole("lpa", most=MOST_STEPS, steps=(self.steps, 1), surrogate_steps=(self.surrogate_steps, 1))
        whole("lpa", most=1024, width=(self.width, 1))

    def guard(self, model: nn.Module, context: DefenseContext, public: None) -> Guard:
        """See `Defense.guard`.

        Raises:
            FedveilError: a class has a single public image.
        """
        poison, protected = two_sides("lpa", model, context)
        stream = context.stream("lpa")
        surrogate = Surrogate.trained(poison, width=self.width, steps=self.surrogate_steps, stream=stream)
        goals = away(surrogate, protected)
        network = learn_direction(
            surrogate, poison, goals, budget=self.strength, keep=True, steps=self.steps, stream=stream
        )
        answers = pushed(network, poison.confidences, poison.confidences.argmax(1), self.strength)
        told = {
            "alignment": alignment(surrogate, answers, poison.images, goals),
            "unmoved_alignment": alignment(surrogate, poison.confidences, poison.images, goals),
            "output_l1": float((answers - poison.confidences).abs().sum(1).mean()),
        }
        return LabelPreserved(network.cpu(), self.strength, told)


class LabelPreserved(Guard):
    """Answers moved by a learnt direction.

    Args:
        network: the direction, on the CPU.
        budget: L1 distance on the simplex.
        told: numbers about its training.
    """

    def __init__(self, network: Direction, budget: float, told: dict[str, float]) -> None:
        self.network = network
        self.budget = budget
        self._told = told

    @torch.no_grad()
    def __call__(self, logits: Tensor) -> Tensor:
        """See `Guard.__call__`."""
        here = logits.cpu()
        answers = pushed(self.network, here.double().softmax(1), here.argmax(1), self.budget)
        return as_logits(answers, here).to(logits.device)

    def diagnostics(self) -> dict[str, float]:
        """Cosine to the goal with and without the perturbation, on public images, and the mean L1 distance."""
        return dict(self._told)


def two_sides(defense: str, model: nn.Module, context: DefenseContext) -> tuple[Queries, Queries]:
    """Ask the model about the public images; return those that stand for an attacker's queries, and the protected ones.

    Args:
        defense: its name.
        model: the finished classifier.
        context: holds the public images.

    Raises:
        FedveilError: there are too few to cut in two.
    """
    halves = halved(context.public, f"defense {defense} (half of data.public_fraction)", context.seed)
    poison, protected = (Queries.of(model, half, context.device) for half in halves)
    return poison, protected
