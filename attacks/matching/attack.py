"""What all attacks share that match gradients: the target, the place, random starts, chunks, the choice by own loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor

from fedveil.attacks.base import Attack, Earlier, Knowledge, Observation
from fedveil.attacks.engine.chunks import fitting, pieces
from fedveil.attacks.engine.objective import FEW, Problem
from fedveil.attacks.engine.unrolled import Path
from fedveil.attacks.labels import labels_of
from fedveil.attacks.matching.match import Match
from fedveil.attacks.matching.starts import Start, start_of
from fedveil.attacks.optimizers import Adam
from fedveil.attacks.optimizers.progress import begin, progress
from fedveil.attacks.target.problem import Tensors
from fedveil.attacks.target.smoothness import Suits
from fedveil.defense.checks import MOST_STEPS, at_least, whole
from fedveil.defense.devices import on_device
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import ClientUpdate, Reconstruction
from fedveil.fl.seeding import torch_stream


def target_gradient(update: ClientUpdate) -> dict[str, Tensor]:
    """Return the gradient to match: as sent, or -delta / (steps * learning rate), the mean (direction) along the path."""
    return {name: update.gradient_scale * tensor for name, tensor in update.tensors.items()}


def match_at(observation: Observation, alpha: float) -> dict[str, Tensor]:
    """Return the weights at which to match: on the way from those sent (alpha 0) to those after training (alpha 1).

    A delta of several steps is matched by one gradient (the surrogate model extension of Zhu, Yao and Blaschko 2023),
    instead of unrolling the client's steps.
    """
    change = observation.update.tensors
    return {n: w + alpha * change[n] if alpha and n in change else w for n, w in observation.weights.items()}


Place = Literal["searched", "sent", "middle", "unrolled"]
"""Where to match a delta of several steps: at alpha 0, at 1/2, or where a short run from each of `ALPHAS` ends lowest;
``unrolled`` begins as ``searched`` and ends with the client's steps replayed, which needs its true learning rate: without
it, the first part has the lower loss, and is the result. Where steps are no plain SGD, it is ``searched``."""
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Places to choose from."""
SEARCH = 5
"""A run that decides about a place takes this part of the steps."""
WARM = 2
"""Before steps are unrolled, this part of the evaluations goes to the search for a place and to the match there, halved."""

Visible = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""Given an observed gradient, masks of the entries that tell anything; see `fedveil.defense.base.Surrogate`."""


class Found(NamedTuple):
    """What a match came to.

    Attributes:
        images: (V, B, C, H, W) in [0, 1].
        losses: (V,) own objectives of these.
        labels: (V, B) where the attack has looked for them too; otherwise they are those that it was told.
    """

    images: Tensor
    losses: Tensor
    labels: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class GradientMatching(Attack):
    """An attack that looks for the images whose gradient is the observed one.

    Of several restarts, and of all iterates, the one with the lowest own objective is returned. Where a batch was observed
    several times (`Observation.repeats`), one set of images has to explain all that was sent.

    Attributes:
        steps: evaluations of the gradient beside those of the starts, at least 1; one that replays a client's local steps
            counts once.
        tv: weight of the total variation, at least 0, of the mean absolute difference between neighbours.
        restarts: random starts per victim, at least 1.
        chunk: victims times restarts that are optimised together, at least 1; bounds memory. None takes as many as fit half
            of the memory that is free, at most 64 (512 on a GPU), and at least all restarts of a victim.
        place: how to match what several local steps sent, see `Place`. ``searched`` takes as many evaluations again, one at
            each place at least; ``unrolled`` leaves the search out below 20 steps.
        start: see `Start`. Mid-grey suits normalisation layers: they hide an image's brightness, and what a start gets
            wrong there no step corrects.
    """

    explains_update: ClassVar[bool] = True
    told: ClassVar[bool] = True
    """It takes labels as given or recovered, or else looks for them itself."""
    suits: ClassVar[Suits] = "all"
    one_image: ClassVar[bool] = True
    """It is among the best, of those that suit the network, for updates of a single image too."""
    steps: int = 300
    tv: float = 1e-2
    restarts: int = 1
    chunk: int | None = None
    place: Place = "searched"
    start: Start = "grey"

    def __post_init__(self) -> None:
        for name, allowed in (("place", get_args(Place)), ("start", get_args(Start))):
            if getattr(self, name) not in allowed:
                raise FedveilError(f"{self.name}: {name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        whole(self.name, most=MOST_STEPS, steps=(self.steps, 1))
        whole(self.name, restarts=(self.restarts, 1))
        at_least(self.name, tv=(self.tv, 0))
        whole(self.name, chunk=(1 if self.chunk is None else self.chunk, 1))

    @property
    def image_copies(self) -> int:
        """How many times over the optimiser keeps what is as large as a victim's images, when it keeps most."""
        return Adam.image_copies

    @abstractmethod
    def minimise(self, match: Match, start: Tensor) -> Found:
        """Return the images that match best.

        Args:
            match: what to match.
            start: (V, B, C, H, W).
        """

    def run(self, observations: Sequence[Observation], knowledge: Knowledge, earlier: Earlier) -> list[Reconstruction]:
        """See `Attack.run`."""
        return self.invert(observations, knowledge)

    def smoothed(self, factor: float) -> Self:
        """The same with ``factor`` times the weight of total variation."""
        return replace(self, tv=factor * self.tv)

    def invert(
        self,
        observations: Sequence[Observation],
        knowledge: Knowledge,
        visible: Visible | None = None,
        *,
        warm: Sequence[Reconstruction] | None = None,
    ) -> list[Reconstruction]:
        """Invert all observations.

        Args:
            observations: victims.
            knowledge: what the attacker holds.
            visible: says which entries to match; None for all.
            warm: a result of each to go on from, instead of random starts.

        Raises:
            FedveilError: some batches were observed more often than others.
        """
        if len({len(observation.repeats) for observation in observations}) > 1:
            raise FedveilError(f"{self.name}: all batches have to be observed equally often")
        run = _Run(observations, knowledge, visible, self.told)
        here = [0.0] * len(observations)
        if self.place == "sent" or all(o.update.local_steps == 1 for o in observations):
            return self._matched(run, here, warm)
        if self.place == "middle":
            return self._matched(run, [0.5] * len(observations), warm)
        if self.place == "searched" or not all(o.update.plain for o in observations):  # only plain SGD is unrolled
            return self._matched(run, self._searched(run, self.steps // SEARCH), warm)
        if warm is not None:
            return self._matched(run, here, warm, unrolled=True)
        first = self.steps // WARM // 2
        if first < len(ALPHAS):  # too few to look at each place
            return self._matched(run, here, unrolled=True)
        before = replace(self, steps=first)
        warm = before._matched(run, before._searched(run, first // len(ALPHAS)))
        after = replace(self, steps=self.steps - 2 * first, restarts=1)
        unrolled = after._matched(run, here, warm, unrolled=True)
        # Where the learning rate is not the client's, the steps explain the update worse than one gradient does.
        return [min(pair, key=lambda found: found.loss) for pair in zip(unrolled, warm, strict=True)]

    def _searched(self, run: _Run, steps: int) -> list[float]:
        """The place of each victim: all knowledge of it is the victim's own objective."""
        short = replace(self, steps=max(1, steps), restarts=1)
        losses = [[found.loss for found in short._matched(run, [alpha] * len(run.observations))] for alpha in ALPHAS]
        return [ALPHAS[own.index(min(own))] for own in zip(*losses, strict=True)]

    def _matched(
        self,
        run: _Run,
        places: Sequence[float],
        warm: Sequence[Reconstruction] | None = None,
        *,
        unrolled: bool = False,
    ) -> list[Reconstruction]:
        """Match each observation at its place, from random starts or from ``warm`` results on."""
        restarts = 1 if warm is not None else self.restarts
        jobs = [(index, restart) for index in range(len(run.observations)) for restart in range(restarts)]
        best: dict[int, Reconstruction] = {}
        chunk = self.chunk
        if chunk is None:
            chunk = max(restarts, run.fitting(len(jobs), self.image_copies, places, unrolled=unrolled))
        with progress(self.name, victims=len(jobs), steps=self.steps):
            for some in pieces(jobs, restarts, chunk):
                begin(len(some))
                match = run.match([index for index, _ in some], places, unrolled=unrolled, warm=warm is not None)
                starts = [
                    self._start(run.observations[index], restart, run.knowledge) if warm is None else warm[index].images
                    for index, restart in some
                ]
                found = self.minimise(match, torch.stack(starts).to(run.knowledge.device))
                labels = run.whole_labels([index for index, _ in some]) if found.labels is None else found.labels
                for (index, _), image, loss, own in zip(
                    some, found.images.cpu(), found.losses.tolist(), labels.cpu(), strict=True
                ):
                    if index not in best or loss < best[index].loss:
                        best[index] = Reconstruction(image, own, loss)
        return [best[index] for index in range(len(run.observations))]

    def _start(self, observation: Observation, restart: int, knowledge: Knowledge) -> Tensor:
        stream = torch_stream(knowledge.seed, "start", observation.number, restart)
        return start_of(self.start, (observation.batch_size, *knowledge.model.image_shape), stream)


@dataclass(frozen=True, eq=False)
class _Run:
    """What stays the same while one attack inverts its observations."""

    observations: Sequence[Observation]
    knowledge: Knowledge
    visible: Visible | None
    told: bool

    def match(self, at: Sequence[int], places: Sequence[float], *, unrolled: bool, warm: bool) -> Match:
        """Return what to match of the observations at these positions."""
        firsts = [self.observations[index] for index in at]
        alphas = [places[index] for index in at]
        labels = self.whole_labels(at)
        problems = []
        for same_round in zip(*(one.series for one in firsts), strict=True):
            masks = self.visible and [self.visible(target_gradient(one.update)) for one in same_round]
            own = shares_for(same_round, labels) if self.told else labels
            problems.append(problem_of(same_round, self.knowledge, alphas, masks, labels=own))
        path = None
        if unrolled:
            updates = [one.update for one in firsts]
            rates = torch.tensor([update.learning_rate for update in updates], device=self.knowledge.device)
            path = Path(updates[0].local_steps, rates)
        return Match(tuple(problems), tuple(firsts), self.knowledge, path, warm=warm)

    def whole_labels(self, at: Sequence[int]) -> Tensor:
        """Return the classes (V, B) that images of these observations are taken to be of; 0 where the attack looks."""
        firsts = [self.observations[index] for index in at]
        if self.told:
            return labels_for(firsts, self.knowledge)
        return torch.zeros((len(firsts), firsts[0].batch_size), dtype=torch.int64)

    def fitting(self, jobs: int, image_copies: int, places: Sequence[float], *, unrolled: bool) -> int:
        """Return how many of so many victims times restarts fit together, see `fedveil.attacks.engine.chunks`."""
        if jobs <= FEW:
            return jobs
        series, own_weights = self.observations[0].series, any(places)
        own_weights = own_weights or any(one.weights is not series[0].weights for one in self.observations)
        masks = self.visible and [self.visible(target_gradient(series[0].update))]
        labels = torch.zeros((1, series[0].batch_size), dtype=torch.int64)
        problem = problem_of(series[:1], self.knowledge, [float(own_weights)], masks, labels=labels)
        steps = series[0].update.local_steps if unrolled else None if self.told else 1
        return fitting(problem, jobs, image_copies=image_copies, observations=len(series), replayed_steps=steps)


def labels_for(observations: Sequence[Observation], knowledge: Knowledge) -> Tensor:
    """Return the labels (V, B) that the attacker uses; an observation that occurs again stands for another restart."""
    told = {id(one): labels_of(one, knowledge) for one in {id(one): one for one in observations}.values()}
    return torch.stack([told[id(one)] for one in observations])


def shares_for(observations: Sequence[Observation], labels: Tensor) -> Tensor:
    """Return what the attacker takes for the labels that were trained on: (V, B, K) shares of the classes where it knows
    such (`Observation.shares`), or else the ``labels`` (V, B)."""
    shares = [one.shares for one in observations if one.shares is not None]
    return torch.stack(shares) if shares else labels


def problem_of(
    observations: Sequence[Observation],
    knowledge: Knowledge,
    places: Sequence[float],
    masks: Sequence[Tensors] | None = None,
    *,
    labels: Tensor | None = None,
) -> Problem:
    """Return what there is to match, on the attacker's device: one victim per observation.

    Args:
        observations: victims; one that occurs again stands for another restart.
        knowledge: what the attacker holds.
        places: where to match each of them, see `match_at`.
        masks: of the visible entries, by name, for each observation; None for all entries.
        labels: (V, B); None takes `labels_for` the observations.
    """
    device = knowledge.device
    model = replace(knowledge.model, module=on_device(knowledge.model.module, device))
    if labels is None:
        labels = labels_for(observations, knowledge)
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
        sized=all(o.update.local_steps == 1 and o.update.rate_known for o in observations),
    )


def _stack(tensors: Sequence[Mapping[str, Tensor]], device: torch.device) -> Tensors:
    return {name: torch.stack([t[name] for t in tensors]).to(device) for name in tensors[0]}
