"""What all attacks share that match gradients: the target, the place, random starts, chunks, the choice by own loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedveil.attacks.base import Attack, Earlier, Knowledge, Observation
from fedveil.attacks.engine import Problem
from fedveil.attacks.labels import labels_of
from fedveil.attacks.matching import Tensors
from fedveil.attacks.optimizers import Optimizer, StepFunction
from fedveil.defense.base import at_least
from fedveil.defense.devices import on_device
from fedveil.fl.messages import ClientUpdate, Reconstruction, UpdateKind
from fedveil.fl.seeding import torch_stream


def target_gradient(update: ClientUpdate) -> dict[str, Tensor]:
    """Return the gradient to match: as sent, or -delta / (steps * learning rate), the mean gradient along the path."""
    if update.kind is UpdateKind.GRADIENT:
        return dict(update.tensors)
    scale = -1.0 / (update.local_steps * update.learning_rate)
    return {name: scale * tensor for name, tensor in update.tensors.items()}


def match_at(observation: Observation) -> dict[str, Tensor]:
    """Return the weights at which to match: those that the server sent, or, for several local steps, the midpoint.

    The midpoint of the path is the fixed choice (alpha = 1/2) of the surrogate model extension (Zhu, Yao and Blaschko
    2023), which replaces unrolling the client's steps.
    """
    if observation.update.local_steps == 1:
        return dict(observation.weights)
    change = observation.update.tensors
    return {n: w + 0.5 * change[n] if n in change else w for n, w in observation.weights.items()}


START_NOISE = 0.02
"""Standard deviation of the start around mid-grey."""


@dataclass(frozen=True, kw_only=True)
class GradientMatching(Attack):
    """An attack that looks for the images whose gradient is the observed one.

    The start is mid-grey with a little noise: normalisation layers hide an image's brightness, and what the start gets
    wrong there no step corrects. Of several restarts, and of all iterates, the one with the lowest own objective is
    returned.

    Attributes:
        restarts: random starts per victim.
        chunk: victims times restarts that are optimised together; bounds memory.
    """

    restarts: int = 1
    chunk: int = 64

    def __post_init__(self) -> None:
        at_least(self.name, restarts=(self.restarts, 1), chunk=(self.chunk, 1))

    @property
    @abstractmethod
    def optimizer(self) -> Optimizer:
        """What minimises the objective."""

    @abstractmethod
    def objective(self, problem: Problem) -> StepFunction:
        """The objective with its gradient."""

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
        jobs = [(index, restart) for index in range(len(observations)) for restart in range(self.restarts)]
        best: dict[int, Reconstruction] = {}
        for at in range(0, len(jobs), self.chunk):
            some = jobs[at : at + self.chunk]
            masks = None if visible is None else [visible[index] for index, _ in some]
            images, losses, labels = self._invert_chunk([observations[i] for i, _ in some], some, knowledge, masks)
            for (index, _), image, loss, label in zip(some, images, losses.tolist(), labels, strict=True):
                if index not in best or loss < best[index].loss:
                    best[index] = Reconstruction(image, label, loss)
        return [best[index] for index in range(len(observations))]

    def _invert_chunk(
        self,
        observations: Sequence[Observation],
        jobs: Sequence[tuple[int, int]],
        knowledge: Knowledge,
        masks: Sequence[Tensors] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        problem = problem_of(observations, knowledge, masks)
        shape = (observations[0].batch_size, *problem.model.image_shape)
        streams = [
            torch_stream(knowledge.seed, "start", observation.number, restart)
            for observation, (_, restart) in zip(observations, jobs, strict=True)
        ]
        starts = [torch.randn(shape, generator=stream) for stream in streams]
        start = (0.5 + START_NOISE * torch.stack(starts)).to(knowledge.device)
        images, losses = self.optimizer.minimise(self.objective(problem), start)
        return images.cpu(), losses.cpu(), problem.labels.cpu()


def problem_of(
    observations: Sequence[Observation], knowledge: Knowledge, masks: Sequence[Tensors] | None = None
) -> Problem:
    """Return what there is to match, on the attacker's device: one victim per observation.

    Args:
        observations: victims; one that occurs again stands for another restart.
        knowledge: what the attacker holds.
        masks: of the visible entries, by name, for each observation; None for all entries.
    """
    device = knowledge.device
    model = replace(knowledge.model, module=on_device(knowledge.model.module, device))
    labels = torch.stack([labels_of(observation, classes=model.classes) for observation in observations])
    own_weights = any(o.update.local_steps > 1 or o.weights is not observations[0].weights for o in observations)
    places = [model.known(match_at(o)) for o in (observations if own_weights else observations[:1])]
    return Problem(
        model=model,
        weights=_stack(places, device) if own_weights else {n: w.to(device) for n, w in places[0].items()},
        target=_stack([target_gradient(o.update) for o in observations], device),
        labels=labels.to(device),
        own_weights=own_weights,
        visible=None if masks is None else _stack(masks, device),
    )


def _stack(tensors: Sequence[Mapping[str, Tensor]], device: torch.device) -> Tensors:
    return {name: torch.stack([t[name] for t in tensors]).to(device) for name in tensors[0]}
