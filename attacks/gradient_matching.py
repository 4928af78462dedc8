"""What all attacks share that match gradients: the target, the place, random starts, chunks, the choice by own loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from fedveil.attacks.base import Attack, Earlier, Knowledge, Observation
from fedveil.attacks.engine import Problem
from fedveil.attacks.labels import labels_of
from fedveil.attacks.matching import Tensors
from fedveil.attacks.progress import begin, progress
from fedveil.defense.base import at_least
from fedveil.defense.devices import on_device
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import ClientUpdate, Reconstruction
from fedveil.fl.seeding import torch_stream


def target_gradient(update: ClientUpdate) -> dict[str, Tensor]:
    """Return the gradient to match: as sent, or -delta / (steps * learning rate), the mean gradient along the path."""
    return {name: update.gradient_scale * tensor for name, tensor in update.tensors.items()}


def match_at(observation: Observation, alpha: float) -> dict[str, Tensor]:
    """Return the weights at which to match: on the way from those sent (alpha 0) to those after training (alpha 1).

    A delta of several steps is matched by one gradient (the surrogate model extension of Zhu, Yao and Blaschko 2023),
    instead of unrolling the client's steps.
    """
    change = observation.update.tensors
    return {n: w + alpha * change[n] if alpha and n in change else w for n, w in observation.weights.items()}


Place = Literal["searched", "sent", "middle"]
"""Where to match a delta of several steps: at alpha 0, at 1/2, or where a short run from each of `ALPHAS` ends lowest."""
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Places to choose from."""
SEARCH = 5
"""A run that decides about a place takes this part of the steps."""

START_NOISE = 0.02
"""Standard deviation of the start around mid-grey."""


@dataclass(frozen=True, kw_only=True)
class GradientMatching(Attack):
    """An attack that looks for the images whose gradient is the observed one.

    The start is mid-grey with a little noise: normalisation layers hide an image's brightness, and what the start gets
    wrong there no step corrects. Of several restarts, and of all iterates, the one with the lowest own objective is
    returned.

    Attributes:
        steps: evaluations of the gradient per start, at least 1.
        tv: weight of the total variation, at least 0, of the mean absolute difference between neighbours.
        restarts: random starts per victim, at least 1.
        chunk: victims times restarts that are optimised together, at least 1; bounds memory.
        place: where to match what several local steps sent; ``searched`` tries five places by each victim's own objective,
            with a fifth of the steps each.
    """

    steps: int = 300
    tv: float = 1e-2
    restarts: int = 1
    chunk: int = 64
    place: Place = "searched"

    def __post_init__(self) -> None:
        if self.place not in get_args(Place):
            raise FedveilError(f"{self.name}: place is {self.place!r}; allowed: {', '.join(get_args(Place))}")
        at_least(self.name, steps=(self.steps, 1), tv=(self.tv, 0), restarts=(self.restarts, 1), chunk=(self.chunk, 1))

    @abstractmethod
    def minimise(self, problem: Problem, start: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images that match best, (V, B, C, H, W) in [0, 1], and the own objective (V,) of these.

        Args:
            problem: what to match.
            start: (V, B, C, H, W).
        """

    def run(self, observations: Sequence[Observation], knowledge: Knowledge, earlier: Earlier) -> list[Reconstruction]:
        """See `Attack.run`."""
        return self.invert(observations, knowledge)

    def invert(
        self,
        observations: Sequence[Observation],
        knowledge: Knowledge,
        visible: Sequence[Tensors] | None = None,
    ) -> list[Reconstruction]:
        """Invert all observations, matching only the ``visible`` entries (masks by name per observation) if given."""
        return self._invert_at(self._places(observations, knowledge, visible), observations, knowledge, visible)

    def _places(
        self, observations: Sequence[Observation], knowledge: Knowledge, visible: Sequence[Tensors] | None
    ) -> Sequence[float]:
        """The place of each victim: all knowledge of it is the victim's own objective."""
        if self.place == "sent" or all(o.update.local_steps == 1 for o in observations):
            return [0.0] * len(observations)
        if self.place == "middle":
            return [0.5] * len(observations)
        short = replace(self, steps=max(1, self.steps // SEARCH), restarts=1)
        losses = [
            [found.loss for found in short._invert_at([alpha] * len(observations), observations, knowledge, visible)]
            for alpha in ALPHAS
        ]
        return [ALPHAS[own.index(min(own))] for own in zip(*losses, strict=True)]

    def _invert_at(
        self,
        places: Sequence[float],
        observations: Sequence[Observation],
        knowledge: Knowledge,
        visible: Sequence[Tensors] | None,
    ) -> list[Reconstruction]:
        jobs = [(index, restart) for index in range(len(observations)) for restart in range(self.restarts)]
        best: dict[int, Reconstruction] = {}
        with progress(self.name, victims=len(jobs), steps=self.steps):
            for at in range(0, len(jobs), self.chunk):
                some = jobs[at : at + self.chunk]
                begin(len(some))
                indices = [index for index, _ in some]
                problem = problem_of(
                    [observations[index] for index in indices],
                    knowledge,
                    [places[index] for index in indices],
                    None if visible is None else [visible[index] for index in indices],
                )
                starts = [self._start(observations[index], restart, knowledge) for index, restart in some]
                images, losses = self.minimise(problem, torch.stack(starts).to(knowledge.device))
                for index, image, loss, label in zip(
                    indices, images.cpu(), losses.tolist(), problem.labels.cpu(), strict=True
                ):
                    if index not in best or loss < best[index].loss:
                        best[index] = Reconstruction(image, label, loss)
        return [best[index] for index in range(len(observations))]

    def _start(self, observation: Observation, restart: int, knowledge: Knowledge) -> Tensor:
        stream = torch_stream(knowledge.seed, "start", observation.number, restart)
        return 0.5 + START_NOISE * torch.randn((observation.batch_size, *knowledge.model.image_shape), generator=stream)


def problem_of(
    observations: Sequence[Observation],
    knowledge: Knowledge,
    places: Sequence[float],
    masks: Sequence[Tensors] | None = None,
) -> Problem:
    """Return what there is to match, on the attacker's device: one victim per observation.

    Args:
        observations: victims; one that occurs again stands for another restart.
        knowledge: what the attacker holds.
        places: where to match each of them, see `match_at`.
        masks: of the visible entries, by name, for each observation; None for all entries.
    """
    device = knowledge.device
    model = replace(knowledge.model, module=on_device(knowledge.model.module, device))
    told = {id(one): labels_of(one, knowledge) for one in {id(one): one for one in observations}.values()}
    labels = torch.stack([told[id(one)] for one in observations])
    own_weights = any(
        place or o.weights is not observations[0].weights for o, place in zip(observations, places, strict=True)
    )
    count = len(observations) if own_weights else 1
    weights = [model.known(match_at(o, place)) for o, place in zip(observations[:count], places[:count], strict=True)]
    return Problem(
        model=model,
        weights=_stack(weights, device) if own_weights else {n: w.to(device) for n, w in weights[0].items()},
        target=_stack([target_gradient(o.update) for o in observations], device),
        labels=labels.to(device),
        own_weights=own_weights,
        visible=None if masks is None else _stack(masks, device),
        sized=all(o.update.local_steps == 1 for o in observations),
    )


def _stack(tensors: Sequence[Mapping[str, Tensor]], device: torch.device) -> Tensors:
    return {name: torch.stack([t[name] for t in tensors]).to(device) for name in tensors[0]}
