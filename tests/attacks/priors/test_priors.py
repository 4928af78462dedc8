from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fedveil.attacks import Observation
from fedveil.attacks.engine.objective import Problem, objective, oracle
from fedveil.attacks.priors import Denoiser, GroupConsistency, ImageNorm, Prior, TotalVariation, penalty_and_slope
from fedveil.attacks.priors.consistency import groups_of
from fedveil.attacks.priors.denoiser import ResidualDenoiser, train_denoiser
from fedveil.attacks.priors.statistics import batch_statistics, seen_statistics
from fedveil.attacks.target.model import target_model
from fedveil.fl.data.images import Images
from fedveil.fl.models import ModelSpec, build_model
from fedveil.fl.seeding import torch_stream

SPEC = ModelSpec("convnet", (3, 8, 8), 2, width=2, norm="batch")

Blobs = Callable[..., Images]
Observe = Callable[..., Observation]


def images(victims: int = 3) -> Tensor:
    return torch.rand((victims, 2, 3, 8, 8), generator=torch_stream(1, "x"), dtype=torch.float64)


def statistics(
    blobs: Blobs, observe: Observe, *, mode: str = "train", own: bool = True, **options: object
) -> tuple[Prior, Tensor]:
    """The prior of two clients' observations, and the images these trained on."""
    batches = [blobs(2, seed, side=8, channels=3) for seed in (1, 2)]
    observations = [observe(batch, SPEC, number=i, **options) for i, batch in enumerate(batches)]
    model = target_model(build_model(SPEC), image_shape=SPEC.image_shape, classes=2, mode=mode)  # type: ignore[arg-type]
    model.module.double()
    weights = {n: torch.stack([o.weights[n] for o in observations]).double() for n in observations[0].weights}
    if not own:
        weights = {n: w[0] for n, w in weights.items()}
    target = {
        n: torch.stack([o.update.tensors[n] for o in observations]).double() for n in observations[0].update.tensors
    }
    labels = torch.stack([batch.labels for batch in batches])
    prior = seen_statistics(Problem(model, weights, target, labels, own), observations, 0.3)
    assert prior is not None
    return prior, torch.stack([batch.floats() for batch in batches]).double()


PRIORS: dict[str, Prior] = {
    "isotropic": TotalVariation(0.3, isotropic=True),
    "opponents": TotalVariation(0.3, opponents=True),
    "norm": ImageNorm(0.7),
    "denoiser": Denoiser(0.5, ResidualDenoiser(3, width=4).double()),
}


@pytest.mark.parametrize("name", PRIORS)
def test_priors_treat_each_victim_alone(name: str) -> None:
    prior, x = PRIORS[name], images()
    penalty, slope = penalty_and_slope([prior], x)
    assert penalty.shape == (3,)
    at = torch.tensor([2, 0])
    for whole, part in zip((penalty, slope), penalty_and_slope([prior.take(at)], x[at]), strict=True):
        torch.testing.assert_close(whole[at], part)


@pytest.mark.parametrize("name", PRIORS)
def test_the_engine_adds_them_as_the_oracle_does(name: str) -> None:
    model = target_model(build_model(SPEC), image_shape=SPEC.image_shape, classes=2)
    model.module.double()
    weights = {n: p.detach() for n, p in model.module.named_parameters()}
    target = {n: torch.ones((3, *w.shape), dtype=torch.float64) for n, w in weights.items()}
    problem = Problem(model, weights, target, torch.zeros((3, 2), dtype=torch.int64))
    for mine, theirs in zip(
        objective(problem, priors=[PRIORS[name]])(images()),
        oracle(problem, priors=[PRIORS[name]])(images()),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-12)


def test_edges_of_colours_that_fall_together_cost_less() -> None:
    grey = torch.zeros(1, 1, 3, 4, 4)
    grey[..., 2:] = 1.0
    apart = grey.clone()
    apart[:, :, 0] = apart[:, :, 0].flip(-1)
    plain, opponents = TotalVariation(1.0), TotalVariation(1.0, opponents=True)
    assert float(plain(grey)) == float(plain(apart))
    # The mean is over six planes: three with the edge and three flat ones, against five with one, two of them twice as high.
    assert float(opponents(grey)) == pytest.approx(0.5 * float(plain(grey)))
    assert float(opponents(apart)) == pytest.approx(float(plain(grey)) * (3 + 2 * 2) / 6)


def test_isotropic_variation_by_hand() -> None:
    x = torch.tensor([[0.0, 3.0], [4.0, 9.0]], dtype=torch.float64).view(1, 1, 1, 2, 2)
    assert float(TotalVariation(2.0, isotropic=True)(x)) == pytest.approx(10.0)


def test_members_of_a_group_are_drawn_to_its_mean() -> None:
    x = images(4)
    key, other = object(), object()
    groups = groups_of([key, other, key, key], torch.device("cpu"))
    prior = GroupConsistency(2.0, groups)
    mean = (x[0] + x[2] + x[3]) / 3
    expected = 2 * torch.stack([(x[i] - mean).square().mean() if i != 1 else torch.zeros(()) for i in range(4)])
    torch.testing.assert_close(prior(x), expected)
    # The sum's gradient, by hand: 2 w (x - mean) / n.
    _, slope = penalty_and_slope([prior], x)
    torch.testing.assert_close(slope[2], 2 * 2 * (x[2] - mean) / x[0].numel())
    assert float(prior.take(torch.tensor([1, 3]))(x[[1, 3]]).abs().max()) == 0


def test_a_denoiser_prefers_images_like_those_it_has_seen(blobs: Blobs) -> None:
    network = train_denoiser(
        blobs(64, 3, side=8), steps=60, noise=0.2, device=torch.device("cpu"), stream=torch_stream(0, "denoiser")
    )
    clean = blobs(8, 4, side=8).floats()
    noisy = clean + 0.1 * torch.randn(clean.shape, generator=torch_stream(5, "noise"))
    prior = Denoiser(1.0, network)
    assert bool((prior(clean[:, None]) < 0.5 * prior(noisy[:, None])).all())
    assert float((network(noisy) - clean).square().mean()) < 0.7 * 0.01


@pytest.mark.parametrize("own", [True, False], ids=["own weights", "shared weights"])
def test_one_steps_buffers_give_the_batchs_own_statistics(own: bool, blobs: Blobs, observe: Observe) -> None:
    prior, truth = statistics(blobs, observe, own=own)
    assert float(prior(truth).max()) < 1e-6
    assert bool((prior(truth.flip(0)) > 1e-3).all())


def test_several_steps_blur_them(blobs: Blobs, observe: Observe) -> None:
    prior, truth = statistics(blobs, observe, steps=3, learning_rate=0.01)
    off = prior(truth)
    assert float(off.max()) < 1e-3
    assert bool((off < 0.1 * prior(truth.flip(0))).all())


def test_in_evaluation_mode_the_running_statistics_are_what_is_seen(blobs: Blobs, observe: Observe) -> None:
    prior, truth = statistics(blobs, observe, mode="eval")
    # They are 0 and 1 at the start.
    model = target_model(build_model(SPEC), image_shape=SPEC.image_shape, classes=2, mode="eval")
    weights = observe(blobs(2, 1, side=8, channels=3), SPEC).weights
    layers = [
        ((mean.square() + ((variance + 1e-5).sqrt() - 1.00001**0.5).square()) / 1.00001).mean()
        for mean, variance in batch_statistics(model, weights, truth[0].float()).values()
    ]
    assert float(prior(truth)[0]) == pytest.approx(0.3 * float(torch.stack(layers).mean()), rel=1e-4)


def test_their_slope_is_autograds_and_no_hooks_stay(blobs: Blobs, observe: Observe) -> None:
    prior, truth = statistics(blobs, observe)
    x = truth.flip(0)
    _, slope = penalty_and_slope([prior], x)
    step = 1e-6 * torch.randn(x.shape, generator=torch_stream(2, "step"), dtype=torch.float64)
    difference = (prior(x + step) - prior(x - step)).sum() / 2
    assert float(difference) == pytest.approx(float((slope * step).sum()), rel=1e-6)
    at = torch.tensor([1])
    torch.testing.assert_close(prior.take(at)(x[at]), prior(x)[at])
    module: nn.Module = prior.model.module  # type: ignore[attr-defined]
    assert not any(part._forward_pre_hooks for part in module.modules())


def test_without_batch_norm_there_are_no_statistics(blobs: Blobs, observe: Observe) -> None:
    spec = ModelSpec("lenet", (1, 12, 12), 2, width=4)
    observation = observe(blobs(1, 1, side=12), spec)
    model = target_model(build_model(spec), image_shape=spec.image_shape, classes=2)
    problem = Problem(model, dict(observation.weights), {}, torch.zeros((1, 1), dtype=torch.int64))
    assert seen_statistics(problem, [observation], 1.0) is None
