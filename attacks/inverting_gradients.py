"""Inverting Gradients (Geiping et al. 2020, arXiv 2003.14053): cosine distance, total variation, signed Adam."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fedveil.attacks.base import ATTACKS, Attack, Earlier, Knowledge, Observation
from fedveil.attacks.engine import Problem, Schedule, Tensors, distance_and_slope, minimise
from fedveil.attacks.labels import labels_of
from fedveil.defense.base import above_zero, at_least
from fedveil.defense.devices import on_device
from fedveil.fl.messages import ClientUpdate, Reconstruction
from fedveil.fl.seeding import torch_stream


def target_gradient(update: ClientUpdate) -> dict[str, Tensor]:
    """Return the gradient to match: as sent, or -delta / (steps * learning rate), the mean gradient along the path."""
    return {name: update.gradient_scale * tensor for name, tensor in update.tensors.items()}


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


@ATTACKS.register("inverting_gradients")
@dataclass(frozen=True, kw_only=True)
class InvertingGradients(Attack):
    """Match the observed gradient in direction.

    The step size is stated for images in [0, 1]; 0.1 in the paper is for images normalised to unit variance. The start is
    mid-grey with a little noise: normalisation layers hide an image's brightness, and what the start gets wrong there no
    step corrects. Of several restarts, and of all iterates, the one with the lowest own objective is returned.

    >>> import fedveil as fv
    >>> fv.InvertingGradients(steps=500, restarts=4)
    InvertingGradients(steps=500, learning_rate=0.05, tv=0.01, restarts=4, chunk=64)


    Attributes:
        steps: iterations, at least 1; 24,000 in the paper's experiments on CIFAR-10.
        learning_rate: of signed Adam, in pixel units, above 0.
        tv: weight of the total variation, at least 0, of the mean absolute difference between neighbours.
        restarts: random starts per victim, at least 1.
        chunk: victims times restarts that are optimised together, at least 1; bounds memory.
    """

    name: ClassVar[str] = "inverting_gradients"
    steps: int = 300
    learning_rate: float = 0.05
    tv: float = 1e-2
    restarts: int = 1
    chunk: int = 64

    def __post_init__(self) -> None:
        at_least(self.name, steps=(self.steps, 1), tv=(self.tv, 0), restarts=(self.restarts, 1), chunk=(self.chunk, 1))
        above_zero(self.name, learning_rate=self.learning_rate)

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
        device = knowledge.device
        model = replace(knowledge.model, module=on_device(knowledge.model.module, device))
        told = {id(one): labels_of(one, knowledge) for one in {id(one): one for one in observations}.values()}
        labels = torch.stack([told[id(one)] for one in observations])
        own_weights = any(o.update.local_steps > 1 or o.weights is not observations[0].weights for o in observations)
        places = [model.known(match_at(o)) for o in (observations if own_weights else observations[:1])]
        problem = Problem(
            model=model,
            weights=_stack(places, device) if own_weights else {n: w.to(device) for n, w in places[0].items()},
            target=_stack([target_gradient(o.update) for o in observations], device),
            labels=labels.to(device),
            own_weights=own_weights,
            visible=None if masks is None else _stack(masks, device),
        )
        shape = (observations[0].batch_size, *model.image_shape)
        streams = [
            torch_stream(knowledge.seed, "start", observation.number, restart)
            for observation, (_, restart) in zip(observations, jobs, strict=True)
        ]
        starts = [torch.randn(shape, generator=stream) for stream in streams]
        start = (0.5 + START_NOISE * torch.stack(starts)).to(device)
        step = distance_and_slope(problem, tv=self.tv)
        images, losses = minimise(step, start, Schedule(self.steps, self.learning_rate))
        return images.cpu(), losses.cpu(), labels


def _stack(tensors: Sequence[Mapping[str, Tensor]], device: torch.device) -> Tensors:
    return {name: torch.stack([t[name] for t in tensors]).to(device) for name in tensors[0]}
