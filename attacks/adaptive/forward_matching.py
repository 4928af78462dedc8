"""Forward matching: recognise a victim by what the known defence makes of each candidate, without undoing the defence.

An inverse of a noisy defence answers with an average of all that fits; to tell one image among many it is enough to know the
law forwards. Each candidate passes the defence several times, with the same noise for all (`CommonNoise`), and the mean is
compared with what was observed. Two things can be compared: images that the attacker has (those that the client trained on,
or inverted ones), and, for one image per update, the update itself, which no inversion has distorted.

An attack never sees candidates. It hands over how to compare (`Likeness`), and the scorer, which holds the gallery, asks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional as F

from fedveil.attacks.adaptive.defence_law import CHEAP, DEAR, DataLaw, Features, mean_features
from fedveil.attacks.adaptive.passes import Passes
from fedveil.attacks.base import Knowledge, Observation
from fedveil.attacks.engine import paths
from fedveil.attacks.labels import labels_of
from fedveil.attacks.matching.attack import target_gradient
from fedveil.attacks.target.model import TargetModel
from fedveil.defense.base import Surrogate
from fedveil.defense.devices import on_device
from fedveil.fl.messages import Likeness
from fedveil.fl.training import Weights

_CHUNK = 64

Score = Callable[[Tensor], Tensor]
"""Candidates (c, C, H, W), on the device, to scores (V, c)."""


class _Matching:
    """Scores candidates for V images at once, and keeps the scores of the last candidates.

    Args:
        prepare: learns to score a few candidates; asked when there are any.
        device: where.
    """

    def __init__(self, prepare: Callable[[], Score], device: torch.device) -> None:
        self._prepare = prepare
        self._device = device
        self._last: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def __call__(self, candidates: Tensor, *, row: int) -> Tensor:
        """Return the scores (1, g) for the image ``row``."""
        if self._last is None or self._last[0] is not candidates:
            score = self._prepare()
            parts = [score(chunk.to(self._device)).cpu() for chunk in candidates.split(_CHUNK)]
            self._last = candidates, torch.cat(parts, dim=1)
        return self._last[1][row : row + 1]


def from_images(
    draws: Sequence[Tensor], labels: Sequence[Tensor], surrogate: Surrogate, knowledge: Knowledge, *, exact: bool
) -> list[Likeness]:
    """Return how to recognise the images behind what clients trained on.

    Args:
        draws: of each batch (R, B, C, H, W) in [0, 1], what the client trained on each time that the batch was seen, or what
            the attacker takes for it.
        labels: of each batch (B,).
        surrogate: the defence as the attacker knows it.
        knowledge: with auxiliary images.
        exact: the draws are the very images. Of inverted ones the errors have no known law, so the metric is the plain one.
    """
    observed = torch.cat([own.mean(0) for own in draws]).to(knowledge.device)
    told = torch.cat(list(labels))
    found: dict[int, Likeness] = {}
    passes = None if surrogate.data is None else Passes(surrogate.data, knowledge.seed)
    for label in told.unique().tolist() if passes is not None and passes.reads_labels(observed) else [None]:
        rows = torch.arange(len(told)) if label is None else (told == label).nonzero().flatten()
        own = observed[rows.to(observed.device)]
        prepare = partial(_images_score, own, label, passes, knowledge, exact=exact)
        matching = _Matching(prepare, knowledge.device)
        found |= {row: partial(matching, row=at) for at, row in enumerate(rows.tolist())}
    ends = torch.tensor([len(own) for own in labels]).cumsum(0).tolist()
    return [_joined([found[row] for row in range(end - len(own), end)]) for own, end in zip(labels, ends, strict=True)]


def _images_score(
    observed: Tensor, label: int | None, passes: Passes | None, knowledge: Knowledge, *, exact: bool
) -> Score:
    def features(images: Tensor) -> Tensor:
        return images.flatten(1)

    if passes is None:
        return lambda candidates: -torch.cdist(features(observed), features(candidates))
    law = DataLaw.of(features, label, passes, knowledge, effort=CHEAP, round=not exact)
    return lambda candidates: -law.distances(features(observed), candidates)


def from_updates(observations: Sequence[Observation], surrogate: Surrogate, knowledge: Knowledge) -> list[Likeness]:
    """Return how to recognise the image behind the updates of each observation, without inverting any.

    A candidate's gradient, at the weights that the client had and with the victim's label, is compared by direction. Of a
    sparse update those entries count that were sent. What several local steps sent is compared with the gradient at their
    start.

    Args:
        observations: with one image behind each update.
        surrogate: the defence as the attacker knows it.
        knowledge: with auxiliary images.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for at, one in enumerate(observations):
        key = (int(labels_of(one, knowledge)), *(id(seen.weights) for seen in one.series))
        groups.setdefault(key, []).append(at)
    found: dict[int, Likeness] = {}
    passes = None if surrogate.data is None else Passes(surrogate.data, knowledge.seed)
    for (label, *_), members in groups.items():
        own = [observations[at] for at in members]
        prepare = partial(_updates_score, own, label, passes, surrogate, knowledge)
        matching = _Matching(prepare, knowledge.device)
        found |= {at: partial(matching, row=row) for row, at in enumerate(members)}
    return [found[at] for at in range(len(observations))]


def _updates_score(
    observations: Sequence[Observation], label: int, passes: Passes | None, surrogate: Surrogate, knowledge: Knowledge
) -> Score:
    """What all rounds say together; of rounds with the same weights the mean is taken first."""
    times: dict[int, list[int]] = {}
    for number, one in enumerate(observations[0].series):
        times.setdefault(id(one.weights), []).append(number)
    scores = [
        _round_score(
            [[one.series[number] for number in numbers] for one in observations], label, passes, surrogate, knowledge
        )
        for numbers in times.values()
    ]
    return lambda candidates: torch.stack([score(candidates) for score in scores]).sum(0)


def _round_score(
    seen: Sequence[Sequence[Observation]],
    label: int,
    passes: Passes | None,
    surrogate: Surrogate,
    knowledge: Knowledge,
) -> Score:
    """By the updates that each of V clients sent from the same weights, one or several times."""
    device, like = knowledge.device, seen[0][0]
    model = replace(knowledge.model, module=on_device(knowledge.model.module, device))
    weights = {name: weight.to(device) for name, weight in model.known(like.weights).items()}
    gradients = _Gradients(model, weights, tuple(like.update.tensors), label)
    sent = [[target_gradient(one.update) for one in own] for own in seen]
    observed = torch.stack([_unit(torch.stack([_flat(one) for one in own])).mean(0) for own in sent]).to(device)
    if passes is not None and surrogate.update is None:
        law = DataLaw.of(gradients, label, passes, knowledge, effort=DEAR)
        return lambda candidates: -law.distances(observed, candidates)
    shown: Features = gradients
    if passes is not None:
        shown = mean_features(gradients, label, passes, draws=DEAR.draws)
    visible = surrogate.visible
    masks = None
    if visible is not None:
        masks = torch.stack([torch.stack([_flat(visible(one)) for one in own]).amax(0) for own in sent]).to(device)

    def directions(candidates: Tensor) -> Tensor:
        means = shown(candidates)
        if masks is None:
            return observed @ _unit(means).T
        lengths = (masks @ means.T.square()).clamp_min(1e-30).sqrt()
        return (observed * masks) @ means.T / lengths

    return directions


@dataclass(frozen=True, eq=False)
class _Gradients:
    """The direction of the gradient that each image alone would send: (n, C, H, W) to (n, D) of length 1.

    Attributes:
        model: on the device.
        weights: that the server sent.
        trained: the parameters that clients train, in the update's order.
        label: of the images.
    """

    model: TargetModel
    weights: Weights
    trained: tuple[str, ...]
    label: int

    def __call__(self, images: Tensor) -> Tensor:
        labels = torch.full((len(images),), self.label, device=images.device)
        weights = [self.weights[name] for name in self._names]
        name = self._names, self.model.defended
        (found,) = paths.run(self.model.module, name, self._directions, [images, labels, *weights])
        return found

    @cached_property
    def _names(self) -> tuple[str, ...]:
        """Of all weights, those that are trained first."""
        return *self.trained, *(name for name in self.weights if name not in self.trained)

    def _directions(self, images: Tensor, labels: Tensor, *weights: Tensor) -> tuple[Tensor]:
        named = dict(zip(self._names, weights, strict=True))
        trained = {name: named.pop(name) for name in self.trained}

        def loss(weights: Mapping[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
            return self.model.loss({**named, **weights}, image[None], label[None])

        with torch.enable_grad():
            found = vmap(grad(loss), in_dims=(None, 0, 0))(trained, images, labels)
        return (_unit(torch.cat([found[name].flatten(1) for name in self.trained], dim=1)),)


def _flat(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors, dim=-1, eps=1e-30)


def _joined(likenesses: Sequence[Likeness]) -> Likeness:
    return lambda candidates: torch.cat([likeness(candidates) for likeness in likenesses])
