"""Label-preserving poisoning of whoever would train an inversion model on a released classifier's answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedveil.defense.base import DEFENSES, Defense, DefenseContext
from fedveil.defense.checks import MOST_STEPS, whole
from fedveil.defense.guard import Guard
from fedveil.defense.released.controls import check_budget
from fedveil.defense.released.game import Game
from fedveil.defense.released.perturbing import as_logits
from fedveil.defense.released.poisoning import Direction, learn_direction, pushed


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
        game = Game.begun("lpa", model, context, width=self.width, steps=self.surrogate_steps)
        network = learn_direction(
            game.surrogate,
            game.poison,
            game.goals,
            budget=self.strength,
            keep=True,
            steps=self.steps,
            stream=game.stream,
        )
        asked = game.poison.confidences
        answers = pushed(network, asked, asked.argmax(1), self.strength)
        return LabelPreserved(network.cpu(), self.strength, game.told(answers))


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
