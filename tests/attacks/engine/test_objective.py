from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from fedveil.attacks.engine import objective as engine
from fedveil.attacks.engine.distances import Distance, absolute_distance, cosine_distance, squared_distance, weighted
from fedveil.attacks.engine.objective import Matching, Problem, at_once, objective, oracle, victims_that_fit
from fedveil.attacks.priors import TotalVariation
from fedveil.attacks.target.model import TargetModel, target_model
from fedveil.fl.models import ModelSpec, build_model
from fedveil.fl.seeding import torch_stream

VICTIMS = 2
MODELS = {
    "lenet": ModelSpec("lenet", (1, 12, 12), 3, width=4),
    "convnet-group": ModelSpec("convnet", (3, 12, 12), 3, norm="group", width=4),
    "convnet-batch": ModelSpec("convnet", (1, 16, 16), 3, norm="batch", width=4),
    "convnet-none": ModelSpec("convnet", (1, 12, 12), 3, norm="none", width=4),
    "resnet20-group": ModelSpec("resnet20", (1, 12, 12), 3, norm="group", width=4),
    "resnet20-batch": ModelSpec("resnet20", (1, 12, 12), 3, norm="batch", width=4),
}


@cache
def model_of(spec: ModelSpec) -> TargetModel:
    """One model per specification: what is tried and traced for it is kept with it."""
    model = target_model(build_model(spec), image_shape=spec.image_shape, classes=spec.classes)
    model.module.double()
    return model


def problem_of(spec: ModelSpec, *, batch: int, own_weights: bool, masked: bool) -> tuple[Problem, Tensor]:
    """Random weights, target, labels and masks in float64, and a point at which to compare."""
    stream = torch_stream(0, "problem")

    def normal(shape: torch.Size | tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=stream, dtype=torch.float64)

    model = model_of(spec)
    weights = {name: p.detach().clone() for name, p in model.module.named_parameters()}
    if own_weights:
        weights = {name: w + 0.05 * normal((VICTIMS, *w.shape)) for name, w in weights.items()}
    shapes = {name: (VICTIMS, *p.shape) for name, p in model.module.named_parameters()}
    masks = {name: (normal(shape) > -0.5).double() for name, shape in shapes.items()} if masked else None
    problem = Problem(
        model=model,
        weights=weights,
        target={name: normal(shape) for name, shape in shapes.items()},
        labels=torch.randint(spec.classes, (VICTIMS, batch), generator=stream),
        own_weights=own_weights,
        visible=masks,
    )
    return problem, torch.rand((VICTIMS, batch, *spec.image_shape), generator=stream, dtype=torch.float64)


@pytest.mark.parametrize("distance", [squared_distance, absolute_distance], ids=["squared", "absolute"])
def test_every_distance_steps_as_its_oracle(distance: Distance) -> None:
    by_layer = weighted(distance, {"head.weight": 0.25, "body.0.0.weight": 4.0})
    for own_weights, masked in ((False, True), (True, False)):
        problem, x = problem_of(MODELS["convnet-group"], batch=3, own_weights=own_weights, masked=masked)
        assert {"head.weight", "body.0.0.weight"} <= {*problem.target}
        for chosen in (distance, by_layer):
            value, slope = objective(problem, priors=[TotalVariation(0.01)], distance=chosen)(x)
            expected, expected_slope = oracle(problem, priors=[TotalVariation(0.01)], distance=chosen)(x)
            torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
            error = (slope - expected_slope).flatten(1).norm(dim=1) / expected_slope.flatten(1).norm(dim=1)
            assert float(error.max()) < 1e-6


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("own_weights", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize(
    ("name", "batch"), [(name, batch) for name in MODELS for batch in (1, 3) if batch == 3 or "resnet" not in name]
)
def test_one_step_equals_the_twice_differentiated_oracle(
    name: str, own_weights: bool, masked: bool, batch: int
) -> None:
    problem, x = problem_of(MODELS[name], batch=batch, own_weights=own_weights, masked=masked)
    value, slope = objective(problem, priors=[TotalVariation(0.01)])(x)
    expected, expected_slope = oracle(problem, priors=[TotalVariation(0.01)])(x)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    error = (slope - expected_slope).flatten(1).norm(dim=1) / expected_slope.flatten(1).norm(dim=1)
    assert float(error.max()) < 1e-5


def test_the_step_agrees_with_finite_differences() -> None:
    problem, x = problem_of(MODELS["lenet"], batch=1, own_weights=False, masked=False)
    step = objective(problem)
    direction = torch.randn(x.shape, generator=torch_stream(1, "direction"), dtype=torch.float64)
    change = (step(x + 1e-5 * direction)[0] - step(x - 1e-5 * direction)[0]) / 2e-5
    torch.testing.assert_close((step(x)[1] * direction).flatten(1).sum(1), change, rtol=1e-5, atol=1e-9)


def test_victims_do_not_see_each_other() -> None:
    problem, x = problem_of(MODELS["convnet-group"], batch=3, own_weights=True, masked=True)
    together = objective(problem, priors=[TotalVariation(0.01)])(x)
    assert problem.visible is not None
    for index in range(VICTIMS):
        one = slice(index, index + 1)
        alone = Problem(
            model=problem.model,
            weights={n: w[one] for n, w in problem.weights.items()},
            target={n: t[one] for n, t in problem.target.items()},
            labels=problem.labels[one],
            own_weights=True,
            visible={n: m[one] for n, m in problem.visible.items()},
        )
        value, slope = objective(alone, priors=[TotalVariation(0.01)])(x[one])
        torch.testing.assert_close(value, together[0][one])
        torch.testing.assert_close(slope, together[1][one])


def test_hidden_entries_of_the_target_do_not_matter() -> None:
    problem, x = problem_of(MODELS["lenet"], batch=1, own_weights=False, masked=True)
    assert problem.visible is not None
    masks = problem.visible
    garbled = {n: t + 100 * (1 - masks[n]) for n, t in problem.target.items()}
    other = Problem(problem.model, problem.weights, garbled, problem.labels, visible=masks)
    for one, two in zip(objective(problem)(x), objective(other)(x), strict=True):
        assert torch.equal(one, two)


def test_total_variation_enters_with_its_weight() -> None:
    problem, x = problem_of(MODELS["lenet"], batch=3, own_weights=False, masked=False)
    plain, plain_slope = objective(problem)(x)
    weighed, weighed_slope = objective(problem, priors=[TotalVariation(0.5)])(x)
    leaf = x.clone().requires_grad_(True)
    variations = TotalVariation(0.5)(leaf)
    torch.testing.assert_close(weighed - plain, variations.detach())
    torch.testing.assert_close(weighed_slope - plain_slope, torch.autograd.grad(variations.sum(), leaf)[0])


def test_frozen_parameters_are_not_matched_but_still_shape_the_gradient() -> None:
    problem, x = problem_of(MODELS["convnet-group"], batch=3, own_weights=True, masked=False)
    kept = [name for name in problem.target if not name.startswith("body.0")]
    partial = replace(problem, target={name: problem.target[name] for name in kept})
    assert {*partial.trained} == {*kept}
    assert partial.frozen
    value, slope = objective(partial, priors=[TotalVariation(0.01)])(x)
    expected, expected_slope = oracle(partial, priors=[TotalVariation(0.01)])(x)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(slope, expected_slope, rtol=1e-7, atol=1e-12)
    moved = replace(partial, weights={n: w if n in kept else w + 0.1 for n, w in partial.weights.items()})
    assert not torch.allclose(objective(moved, priors=[TotalVariation(0.01)])(x)[0], value)


def test_taken_victims_step_as_they_did_among_all() -> None:
    for own_weights in (False, True):
        problem, x = problem_of(MODELS["convnet-group"], batch=3, own_weights=own_weights, masked=True)
        matching = objective(problem, priors=[TotalVariation(0.1)])
        at = torch.tensor([1])
        for whole, part in zip(matching(x), matching.take(at)(x[at]), strict=True):
            torch.testing.assert_close(part, whole[at])


def test_a_soft_label_of_one_class_is_that_class() -> None:
    problem, x = problem_of(MODELS["lenet"], batch=3, own_weights=False, masked=False)
    soft = replace(problem, labels=torch.nn.functional.one_hot(problem.labels, 3).double())
    for hard, mixed in zip(objective(problem)(x), objective(soft)(x), strict=True):
        torch.testing.assert_close(mixed, hard)
    blurred = replace(soft, labels=soft.labels / 2 + 1 / 6)
    for mine, slow in zip(objective(blurred)(x), oracle(blurred)(x), strict=True):
        torch.testing.assert_close(mine, slow)


# Paths


class Strided(nn.Module):
    """As torchvision builds them: strides, pools that overlap, groups, dilation, sums in place, a global mean."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.wide = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.norm(self.stem(x)).tanh())
        inner = self.deep(torch.tanh(self.wide(x)))
        inner += x
        logits: Tensor = self.head(self.mean(inner.tanh_()).flatten(1))
        return logits


class Attending(nn.Module):
    """Patches, one transformer layer, the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(self.layer(tokens).mean(1))
        return logits


@cache
def other_model(kind: type[nn.Module]) -> TargetModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = target_model(kind(), image_shape=(3, 16, 16), classes=3)
    model.module.double()
    return model


class Plain(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(768, 12), nn.SiLU(), nn.LayerNorm(12), nn.Linear(12, 3))


def posed(
    model: TargetModel, batch: int, own_weights: bool, masked: bool, victims: int = VICTIMS
) -> tuple[Problem, Tensor]:
    """As `problem_of`, for any model."""
    stream = torch_stream(1, "posed")
    parameters = {n: p.detach() for n, p in model.module.named_parameters()}

    def normal(shape: Sequence[int]) -> Tensor:
        return torch.randn(shape, generator=stream, dtype=torch.float64)

    weights = {n: w + 0.05 * normal((victims, *w.shape)) if own_weights else w for n, w in parameters.items()}
    target = {n: normal((victims, *w.shape)) for n, w in parameters.items()}
    masks = {n: (normal(t.shape) > -0.5).double() for n, t in target.items()} if masked else None
    labels = torch.randint(3, (victims, batch), generator=stream)
    x = torch.rand((victims, batch, *model.image_shape), generator=stream, dtype=torch.float64)
    return Problem(model, weights, target, labels, own_weights, masks), x


def assert_as_the_oracle(problem: Problem, x: Tensor, distance: Distance) -> None:
    matching = objective(problem, distance=distance, priors=[TotalVariation(0.01)])
    expected, expected_slope = oracle(problem, distance=distance, priors=[TotalVariation(0.01)])(x)
    first = matching(x)
    for found in (first, matching(x)):
        torch.testing.assert_close(found[0], expected, rtol=1e-9, atol=0)
        error = (found[1] - expected_slope).flatten(1).norm(dim=1) / expected_slope.flatten(1).norm(dim=1)
        assert float(error.max()) < 1e-6
    # The first was worked out, the second came from the record of its operations.
    assert all(torch.equal(one, two) for one, two in zip(first, matching(x), strict=True))


@pytest.mark.parametrize("distance", [cosine_distance, squared_distance], ids=["cosine", "squared"])
@pytest.mark.parametrize(("batch", "own_weights", "masked"), [(1, False, False), (2, True, False), (3, False, True)])
@pytest.mark.parametrize("kind", [Strided, Attending, Plain])
def test_every_path_through_other_networks_equals_the_oracle(
    kind: type[nn.Module],
    batch: int,
    own_weights: bool,
    masked: bool,
    distance: Distance,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FEDVEIL_ENGINE", "traced")
    problem, x = posed(other_model(kind), batch, own_weights, masked)
    assert_as_the_oracle(problem, x, distance)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", [name for name in MODELS if "resnet" not in name])
def test_a_recorded_step_equals_the_oracle(name: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDVEIL_ENGINE", "traced")
    problem, x = problem_of(MODELS[name], batch=batch, own_weights=False, masked=False)
    assert_as_the_oracle(problem, x, cosine_distance)


def test_turns_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, x = posed(model_of(MODELS["convnet-batch"]), 1, own_weights=True, masked=True, victims=7)
    together = objective(problem, priors=[TotalVariation(0.1)])(x)
    monkeypatch.setattr(engine, "FEW", 0)
    monkeypatch.setattr(engine, "at_once", lambda *_: 3)
    for whole, parts in zip(together, objective(problem, priors=[TotalVariation(0.1)])(x), strict=True):
        torch.testing.assert_close(parts, whole)


@dataclass(frozen=True)
class Towards:
    """A prior with a state for each victim."""

    images: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.images).square().flatten(1).sum(1)

    def take(self, at: Tensor) -> Towards:
        return Towards(self.images[at])


def test_a_prior_that_holds_tensors_is_never_taken_for_another() -> None:
    problem, x = problem_of(MODELS["lenet"], batch=1, own_weights=False, masked=False)
    bare, bare_slope = objective(problem)(x)
    for shift in (0.0, 0.5, 1.0, 2.0):
        value, slope = objective(problem, priors=[Towards(x + shift)])(x)
        torch.testing.assert_close(value - bare, torch.full_like(bare, shift**2 * x[0].numel()))
        torch.testing.assert_close(slope - bare_slope, torch.full_like(x, -2 * shift))


def test_one_model_serves_many_problems() -> None:
    """What is recorded for one problem is right for the next, with other weights, targets and labels."""
    matchings: list[Matching] = []
    for seed in range(4):
        problem, x = problem_of(MODELS["convnet-group"], batch=1, own_weights=False, masked=True)
        moved = {n: w + 0.1 * seed for n, w in problem.weights.items()}
        other = replace(problem, weights=moved, labels=(problem.labels + seed) % 3)
        matchings.append(objective(other))
        for mine, theirs in zip(matchings[-1](x), oracle(other)(x), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-10)


def test_a_problem_in_double_precision_gives_doubles() -> None:
    problem, x = problem_of(MODELS["lenet"], batch=1, own_weights=False, masked=True)
    single = problem.to(torch.float32)
    assert single.labels.dtype == torch.int64
    assert {t.dtype for t in [*single.weights.values(), *single.target.values()]} == {torch.float32}
    for low, high in zip(objective(single)(x.float()), objective(single.to(torch.float64))(x), strict=True):
        assert (low.dtype, high.dtype) == (torch.float32, torch.float64)
        torch.testing.assert_close(low.double(), high, rtol=1e-3, atol=1e-5)


# Memory


def test_as_many_victims_fit_as_there_is_memory_for(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, _ = problem_of(MODELS["convnet-group"], batch=1, own_weights=False, masked=False)
    together = at_once(problem)
    assert together & (together - 1) == 0
    fits = []
    for gigabytes in (1, 2, 8):
        monkeypatch.setattr(engine, "free_memory", lambda _, free=gigabytes * 2**30: free)
        fits.append(victims_that_fit(problem, 2**20))
        assert fits[-1] * 2**20 <= engine.SHARE * gigabytes * 2**30
    assert fits == sorted(set(fits))
    assert all(fit % together == 0 or fit < together for fit in fits)
    monkeypatch.setattr(engine, "free_memory", lambda _: 1)
    assert victims_that_fit(problem, 0) == 1
    monkeypatch.setattr(engine, "free_memory", lambda _: None)
    assert victims_that_fit(problem, 0) == together
