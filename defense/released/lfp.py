"""Label-flipping poisoning: few answers are changed much, those that weigh most in an inversion model's training."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedveil.defense.base import DEFENSES, Defense, DefenseContext
from fedveil.defense.checks import MOST_STEPS, whole
from fedveil.defense.guard import Guard
from fedveil.defense.released.controls import check_budget
from fedveil.defense.released.game import Game
from fedveil.defense.released.perturbing import as_logits
from fedveil.defense.released.poisoning import (
    BATCH,
    RATE,
    Direction,
    Queries,
    Surrogate,
    learn_direction,
    pushed,
)
from fedveil.defense.seeded import seeded
from fedveil.fl.errors import SettingError
from fedveil.fl.progress import paced
from fedveil.fl.stepping import Adam


@DEFENSES.register("lfp")
@dataclass(frozen=True, kw_only=True)
class LabelFlippingPoisoning(Defense[None]):
    """A small share of the answers is moved far, and may change its label; all others stay as they are (LFP).

    Zhou et al. 2024 (arXiv 2412.07575), who say that a selected subset is perturbed and not how it is selected. Here it is
    the queries whose own gradient in the inversion model is longest, for these can turn a step most; a network reads the
    length of it in the answer, as no image is at hand when a query comes. All else is as in `lpa`.

    Attributes:
        strength: L1 distance that a selected answer is moved, 0.001 to 2.
        fraction: share of public images whose answers would be selected, above 0 and at most 0.5.
        steps: of the generator's training.
        surrogate_steps: of the inversion model that it aligns with.
        width: channels of that inversion model at full resolution.
    """

    strength: float = 1.5
    fraction: float = 0.05
    steps: int = 300
    surrogate_steps: int = 600
    width: int = 16

    def __post_init__(self) -> None:
        check_budget("lfp", self.strength)
        if not 0 < self.fraction <= 0.5:
            raise SettingError("lfp", "fraction", self.fraction, "it has to be above 0 and at most 0.5")
        whole("lfp", most=MOST_STEPS, steps=(self.steps, 1), surrogate_steps=(self.surrogate_steps, 1))
        whole("lfp", most=1024, width=(self.width, 1))

    def guard(self, model: nn.Module, context: DefenseContext, public: None) -> Guard:
        """See `Defense.guard`.

        Raises:
            FedveilError: a class has a single public image.
        """
        game = Game.begun("lfp", model, context, width=self.width, steps=self.surrogate_steps)
        poison, stream = game.poison, game.stream
        weight = learn_weight(game.surrogate, poison, steps=self.steps, stream=stream)
        with torch.no_grad():
            weights = weight(poison.confidences.float())[:, 0]
        least = float(weights.sort().values[-math.ceil(self.fraction * len(weights))])
        chosen = weights >= least
        network = learn_direction(
            game.surrogate,
            poison.take(chosen),
            game.goals,
            budget=self.strength,
            keep=False,
            steps=self.steps,
            stream=stream,
        )
        answers = poison.confidences.clone()
        answers[chosen] = pushed(network, answers[chosen], None, self.strength)
        flipped = float((answers.argmax(1) != poison.confidences.argmax(1)).double().mean())
        told = {**game.told(answers), "flipped": flipped}
        return LabelFlipped(weight.cpu(), network.cpu(), least, self.strength, told)


class LabelFlipped(Guard):
    """Answers of which those with a large weight are moved.

    Args:
        weight: how much an answer weighs, on the CPU.
        network: the direction, on the CPU.
        least: the weight from which on an answer is moved.
        budget: L1 distance on the simplex.
        told: numbers about its training.
    """

    def __init__(
        self, weight: Direction, network: Direction, least: float, budget: float, told: dict[str, float]
    ) -> None:
        self.weight = weight
        self.network = network
        self.least = least
        self.budget = budget
        self._told = told

    @torch.no_grad()
    def __call__(self, logits: Tensor) -> Tensor:
        """See `Guard.__call__`."""
        here = logits.cpu()
        answers = here.double().softmax(1)
        chosen = self.weight(answers.float())[:, 0] >= self.least
        turned = as_logits(pushed(self.network, answers, None, self.budget), here)
        return torch.where(chosen[:, None], turned, here).to(logits.device)

    def diagnostics(self) -> dict[str, float]:
        """As for `lpa`; and the share of public images whose label changes."""
        return dict(self._told)


def learn_weight(surrogate: Surrogate, queries: Queries, *, steps: int, stream: torch.Generator) -> Direction:
    """Learn to read in an answer how long its image's own gradient is at the end of the surrogate's training: its logarithm.

    Args:
        surrogate: the inversion model.
        queries: answers with images.
        steps: of Adam.
        stream: the only source of randomness.
    """
    last = len(surrogate.stages) - 1
    lengths = torch.stack(
        [
            surrogate.gradient(last, queries.confidences[at : at + 1], queries.images[at : at + 1]).norm()
            for at in range(len(queries))
        ]
    )
    wanted = lengths.clamp_min(1e-12).log()
    centre, spread = wanted.mean(), wanted.std().clamp_min(1e-6)
    network = seeded(lambda: Direction(queries.confidences.shape[1], 1), stream).to(wanted.device)
    optimizer = Adam(network.parameters(), learning_rate=RATE)
    for _ in paced(steps, "learning to mislead"):
        at = torch.randint(len(queries), (BATCH,), generator=stream).to(wanted.device)
        found = network(queries.confidences[at].float())[:, 0]
        optimizer.zero_grad()
        F.mse_loss(found, (wanted[at] - centre) / spread).backward()
        optimizer.step()
    return network.eval().requires_grad_(False)
