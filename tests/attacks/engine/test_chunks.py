from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import pytest
import torch
from torch import Tensor

from fedveil.attacks import DeepLeakage, InvertingGradients, Knowledge, Observation
from fedveil.attacks.engine import objective as engine
from fedveil.attacks.engine.chunks import MOST, Job, fitting, pieces
from fedveil.attacks.engine.memory import footprint
from fedveil.attacks.matching import attack as gradient_matching
from fedveil.attacks.matching.attack import GradientMatching, problem_of
from fedveil.attacks.optimizers import LBFGS, Adam, Optimizer
from fedveil.attacks.presets import DLG, GradInversion
from fedveil.attacks.target.model import target_model
from fedveil.fl.data.images import Images
from fedveil.fl.messages import Reconstruction, ThreatModel
from fedveil.fl.models import ModelSpec, build_model

SPEC = ModelSpec("lenet", (1, 12, 12), 2, width=4)

Blobs = Callable[..., Images]
Observe = Callable[..., Observation]


@cache
def known() -> Knowledge:
    """One model for all tests: what is traced for it is kept with it."""
    target = target_model(build_model(SPEC), image_shape=SPEC.image_shape, classes=2)
    return Knowledge(ThreatModel(), target, torch.device("cpu"), 3)


def each(images: Images, observe: Observe) -> list[Observation]:
    return [observe(images.take(torch.tensor([i])), SPEC, number=i, client=i) for i in range(len(images))]


def free(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    monkeypatch.setattr(engine, "free_memory", lambda _: int(size))


class Bowl:
    """An objective that takes no memory of its own worth speaking of."""

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (x.flatten(1) - 0.3).square().sum(1), 2 * (x - 0.3)

    def take(self, at: Tensor) -> Bowl:
        return self


@pytest.mark.parametrize("optimizer", [Adam(6, 0.1), LBFGS(6, 5), LBFGS(6, 50)], ids=repr)
def test_an_optimiser_says_how_much_it_keeps(optimizer: Adam | LBFGS) -> None:
    def peak(count: int) -> float:
        run: Optimizer = optimizer
        return footprint(lambda: run.minimise(Bowl(), torch.rand(count, 64, 64))).peak / (64 * 64 * 4)

    copies = (peak(6) - peak(2)) / 4
    assert 0.7 * optimizer.image_copies < copies < 1.1 * optimizer.image_copies


def test_as_many_fit_as_there_is_memory_for_and_never_more_than_pays(
    blobs: Blobs, observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problem_of(each(blobs(1, 1, side=12), observe), known(), [0.0])

    def fit(size: float, jobs: int = 1000, copies: int = 100, **options: int) -> int:
        free(monkeypatch, size)
        return fitting(problem, jobs, image_copies=copies, **options)

    assert [fit(size, jobs) for size, jobs in ((1e12, 1000), (1e12, 40), (0, 1000), (0, 3))] == [MOST["cpu"], 40, 1, 3]
    tight = 4e6
    assert 1 < fit(tight) < MOST["cpu"]
    assert fit(tight, copies=400) < fit(tight)
    assert fit(tight, observations=9) < fit(tight)
    assert fit(tight, replayed_steps=5) < fit(tight, replayed_steps=1) < fit(tight)


def in_pieces(
    attack: GradientMatching, observations: list[Observation], little: float, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Reconstruction], list[Reconstruction]]:
    """What an attack finds with plenty of memory, and with so little that victims are cut into pieces."""
    cut: list[int] = []

    def counted(jobs: Sequence[Job], restarts: int, chunk: int) -> list[Sequence[Job]]:
        cut.append(len(pieces(jobs, restarts, chunk)))
        return pieces(jobs, restarts, chunk)

    monkeypatch.setattr(gradient_matching, "pieces", counted)
    found = []
    for size in (1e12, little):
        free(monkeypatch, size)
        found.append(attack(observations, known()))
    assert cut[0] == 1 < cut[1] < len(observations)
    return found[0], found[1]


@pytest.mark.parametrize(
    ("attack", "little"),
    [(DeepLeakage(steps=6), 2e6), (DLG(steps=3), 4e6)],
    ids=["deep_leakage", "dlg"],
)
def test_little_memory_changes_no_result(
    attack: GradientMatching, little: float, blobs: Blobs, observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    for one, two in zip(*in_pieces(attack, each(blobs(7, 1, side=12), observe), little, monkeypatch), strict=True):
        # L-BFGS blows up rounding.
        torch.testing.assert_close(one.images, two.images, atol=1e-3, rtol=0)
        assert one.loss == pytest.approx(two.loss, abs=1e-4)


def test_not_a_bit_changes_where_victims_take_turns(
    blobs: Blobs, observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "LARGEST", 1e5)
    whole, parts = in_pieces(InvertingGradients(steps=6), each(blobs(20, 1, side=12), observe), 15e5, monkeypatch)
    assert all(torch.equal(one.images, two.images) for one, two in zip(whole, parts, strict=True))


def test_restarts_of_a_victim_stay_together(blobs: Blobs, observe: Observe, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [len(piece) for piece in pieces([(v, r) for v in range(3) for r in range(4)], 4, 9)] == [8, 4]
    assert [len(piece) for piece in pieces([(v, r) for v in range(3) for r in range(4)], 4, 3)] == [3, 3, 3, 3]
    free(monkeypatch, 0)
    found = GradInversion(steps=2, restarts=6)(each(blobs(2, 1, side=12), observe), known())
    assert len(found) == 2
