"""How long a trial will take, reckoned before it starts from a few steps that are made and timed here.

It is there so that nobody waits for hours unwarned, and right to a factor of two or so: how long an inverse trains until
it is flat shows only later, when the screen says what is left.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedveil.attacks.scoring.judge import train_judge
from fedveil.defense.inverse.learnt import InverseTraining
from fedveil.defense.inverse.lessons import REHEARSALS, SHARE
from fedveil.defense.inverse.network import InverseNetwork
from fedveil.fl.models import build_model
from fedveil.fl.progress import duration
from fedveil.orchestrator.config import Experiment, check, with_overrides
from fedveil.orchestrator.config.space import grid_points
from fedveil.orchestrator.run.seeds import one_per_seed
from fedveil.orchestrator.run.setup import Setup
from fedveil.orchestrator.run.tuning import settings_of

TIMED = 3
"""Steps that are timed of each kind, after one that is not; the quickest counts."""
MATCHING = 4
"""An evaluation of a gradient-matching attack takes about as long as so many training steps on as many images: a pass
forward and back that keeps its graph, and one back through both."""
CENTRAL = 64
"""Images in a step of a defence's networks, and of what does without the federation."""
JUDGE = 600
SMALL = 32
"""Victims that are timed together, at most."""


@dataclass(frozen=True)
class Estimate:
    """How long a trial, or several, will take.

    Attributes:
        seconds: by what takes them, on one core.
        uncounted: what takes time as well, nobody knows how much.
    """

    seconds: Mapping[str, float]
    uncounted: tuple[str, ...] = ()

    def __add__(self, other: Estimate) -> Estimate:
        parts = dict.fromkeys((*self.seconds, *other.seconds))
        added = {part: self.seconds.get(part, 0.0) + other.seconds.get(part, 0.0) for part in parts}
        return Estimate(added, tuple(dict.fromkeys((*self.uncounted, *other.uncounted))))

    def line(self, cores: float) -> str:
        """Say it, where so many cores share the work."""
        total = sum(self.seconds.values()) / cores
        parts = ", ".join(f"{name} {duration(own / cores)}" for name, own in self.seconds.items() if own / cores >= 1)
        rest = f"; not counted: {', '.join(self.uncounted)}" if self.uncounted else ""
        what = f": {parts}" if parts else ""
        return f"about {duration(total)} on free cores once all has started, by a few steps timed here{what}{rest}"


class Stopwatch:
    """Times steps, each kind once.

    Args:
        setup: whose images and model.
        clock: seconds of computing, so that what else runs on this machine does not count.
    """

    def __init__(self, setup: Setup, clock: Callable[[], float] = time.process_time) -> None:
        self._setup = setup
        self._clock = clock
        self._known: dict[object, float] = {}

    def training(self, batch: int) -> float:
        """Return the seconds of a step of the classifier on so many images."""

        def make() -> Callable[[], Tensor]:
            model = build_model(self._setup.model).train()
            x, y = torch.rand(batch, *self._setup.model.image_shape), torch.zeros(batch, dtype=torch.int64)
            return lambda: F.cross_entropy(_logits(model, x), y)

        return self._timed(("training", batch), make)

    def inverse(self, training: InverseTraining) -> float:
        """Return the seconds of a step of a learnt inverse."""

        def make() -> Callable[[], Tensor]:
            shape, classes = self._setup.model.image_shape, self._setup.model.classes
            network = InverseNetwork(shape, classes=classes, width=training.width, several=False)
            x, y = torch.rand(1, training.batch_size, *shape), torch.zeros(training.batch_size, dtype=torch.int64)
            return lambda: F.mse_loss(network(x, y), x[0])

        return self._timed(("inverse", training.width, training.batch_size), make)

    def judge(self) -> float:
        """Return the seconds of a step of the judge of classes."""
        if "judge" not in self._known:
            took = []
            for steps in (1, 1, 1 + TIMED):
                began = self._clock()
                train_judge(self._setup.auxiliary, classes=self._setup.model.classes, seed=0, steps=steps)
                took.append(self._clock() - began)
            self._known["judge"] = max(0.0, took[2] - took[1]) / TIMED
        return self._known["judge"]

    def _timed(self, kind: object, make: Callable[[], Callable[[], Tensor]]) -> float:
        if kind not in self._known:
            with torch.random.fork_rng(devices=[]):
                loss, took = make(), []
                for _ in range(1 + TIMED):
                    began = self._clock()
                    torch.autograd.backward(loss())
                    took.append(self._clock() - began)
            self._known[kind] = min(took[1:])
        return self._known[kind]


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    found: Tensor = model(x)
    return found


def estimate(experiment: Experiment, setup: Setup, watch: Stopwatch, *, first: bool = True) -> Estimate:
    """Return how long one trial will take on one core.

    Args:
        experiment: with one seed.
        setup: its images, or those of another trial of the sweep.
        watch: of that setup.
        first: what trials share is not there yet.
    """
    fl, audit = experiment.fl, experiment.audit
    sizes = [len(shard) for shard in setup.shards]
    per_round = [fl.local_steps or (fl.epochs or 1) * math.ceil(size / fl.batch_size) for size in sizes]
    uncounted = [*_uncounted(experiment)]
    defense = experiment.build_defense()
    learnt, shared = defense.prepares_in(sizes), defense.prepares_in([])
    if learnt is None or shared is None:
        learnt = shared = 0
        uncounted.append("preparing the defence")
    audits, victims = len(audit.round_numbers(fl.rounds)), sum(map(len, setup.victims))
    together = min(victims, SMALL)
    evaluation = MATCHING * watch.training(together) / together * victims * audit.local_steps * audit.observations
    trainings = {one for one in map(_inverse_of, audit.build_attacks()) if one is not None}
    # Beside the inverse a classifier of the same length learns from what it makes.
    prepared = sum(2 * one.steps * watch.inverse(one) for one in trainings)
    if trainings and learnt:  # rehearsals with its own images, too
        rehearsed = defense.prepares_in([round(SHARE * len(setup.auxiliary))] * REHEARSALS) or 0
        prepared += (rehearsed - shared) * watch.training(CENTRAL)
    references = 0.0
    if experiment.references.measure and first:
        count = 1 + min(experiment.references.clients, len(sizes))
        references = count * experiment.references.steps * watch.training(CENTRAL)
    return Estimate(
        {
            "the defence": learnt * watch.training(CENTRAL),
            "training": fl.rounds * fl.cohort_size / len(sizes) * sum(per_round) * watch.training(fl.batch_size),
            "what attackers learn (less if flat early)": prepared + (JUDGE * watch.judge() if first else 0.0),
            "attacks": audits * sum(_evaluations(experiment)) * evaluation,
            "without the federation (less if flat early)": references,
        },
        tuple(uncounted),
    )


def _inverse_of(attack: object) -> InverseTraining | None:
    found = getattr(attack, "inverse", None)
    return found if isinstance(found, InverseTraining) else None


def _evaluations(experiment: Experiment) -> Iterator[int]:
    """Yield the gradient evaluations of each search per victim; two attacks that begin with the same one share it."""
    searches = dict.fromkeys(getattr(attack, "inversion", attack) for attack in experiment.audit.build_attacks())
    for search in searches:
        if getattr(search, "explains_update", False):
            yield getattr(search, "steps", 0) * getattr(search, "restarts", 1)


def _uncounted(experiment: Experiment) -> Iterable[str]:
    for label, attack in zip(experiment.audit.attack_labels(), experiment.audit.build_attacks(), strict=True):
        if attack.reads_update and not getattr(getattr(attack, "inversion", attack), "explains_update", False):
            yield label
    if experiment.audit.membership:
        yield "membership"
    if experiment.audit.model_inversion:
        yield "attacks on the released model"


def cores_of(experiment: Experiment, trials: int) -> int:
    """Return how many cores of this machine share the work of some trials: most of one is one thing after another."""
    return max(1, min(trials, int((os.cpu_count() or 1) / max(experiment.resources.cpus_per_worker, 1))))


def trials_of(experiment: Experiment, raw: Mapping[str, Any]) -> list[Experiment]:
    """Return an experiment for each trial; what a search has yet to draw is as the file has it.

    Args:
        experiment: perhaps with a ``search`` section.
        raw: the mapping behind it.
    """
    search = experiment.search
    if search is None:
        return one_per_seed(experiment)
    base = {key: value for key, value in raw.items() if key != "search"}
    fixed = [dict(overrides) for overrides in search.panel]
    if search.searcher == "grid" and search.space:
        fixed += grid_points(search.space)
    settings = [check(with_overrides(base, overrides)) for overrides in fixed]
    settings += [experiment] * (settings_of(search) - len(fixed))
    return [one for setting in settings for one in one_per_seed(setting)]


def estimated(experiments: Sequence[Experiment], setup: Setup) -> str:
    """Return in words how long trials take on this machine.

    Args:
        experiments: one for each trial.
        setup: of the first; the others differ in their seed or their settings.
    """
    before, threads = torch.get_num_threads(), max(1, int(experiments[0].resources.cpus_per_worker))
    torch.set_num_threads(threads)  # as a worker has
    watch = Stopwatch(setup, lambda: time.process_time() / threads)
    # The judge and what does without the federation are kept for the trials that come after.
    try:
        parts = [estimate(one, setup, watch, first=number == 0) for number, one in enumerate(experiments)]
    finally:
        torch.set_num_threads(before)
    return sum(parts, Estimate({})).line(cores_of(experiments[0], len(experiments)))
