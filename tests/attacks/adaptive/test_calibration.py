from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from torch import Tensor

import fedveil as fv
import fedveil.attacks.adaptive.calibration as module
from fedveil.attacks.adaptive.attacks import _set_right as set_right
from fedveil.attacks.adaptive.calibration import BANDS, FAINT, LEAST, RIDGE, Calibration, class_means, known_class
from fedveil.attacks.adaptive.calibration import _bands as bands
from fedveil.attacks.adaptive.calibration import _image as image
from fedveil.attacks.adaptive.calibration import _spectrum as spectrum
from fedveil.attacks.base import Reconstruction
from fedveil.fl.data.images import Images

Blobs = Callable[..., Images]


def noise(like: Tensor, size: float, seed: int) -> Tensor:
    return size * torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


def error(one: Tensor, other: Tensor) -> float:
    return float((one - other).square().mean())


@pytest.fixture
def pool(blobs: Blobs) -> Images:
    return blobs(60, 3, side=16)


def learnt(
    pool: Images, wrong: Callable[[Tensor, int], Tensor], count: int = 24
) -> tuple[Calibration | None, Tensor, Tensor]:
    """A calibration on the first images of a pool, with the last as victims: the rule, what was found, the truth."""
    own, victims = pool.take(torch.arange(count)), pool.take(torch.arange(count, len(pool)))
    rule = Calibration.of(wrong(own.floats(), 1), own.labels, own.floats(), victims)
    found = wrong(victims.floats(), 2)
    right = found if rule is None else rule(found, victims.labels)
    return rule, right, victims.floats()


def test_what_tells_nothing_becomes_the_mean_of_the_class(pool: Images) -> None:
    rule, right, truth = learnt(pool, lambda x, seed: (0.5 + noise(x, 0.3, seed)).clamp(0, 1))
    victims = pool.take(torch.arange(24, len(pool)))
    means = class_means(pool)
    guess = error(means[known_class(victims.labels, means)], truth)
    assert rule is not None
    assert error(right, truth) < 1.1 * guess
    assert guess < 0.5 * error((0.5 + noise(truth, 0.3, 2)).clamp(0, 1), truth)


def test_a_wrong_brightness_is_set_right(pool: Images) -> None:
    rule, right, truth = learnt(pool, lambda x, seed: 0.5 * x + 0.2)
    assert rule is not None
    assert error(right, truth) < 5e-2 * error(0.5 * truth + 0.2, truth)


def test_noise_in_fine_detail_is_taken_out_and_coarse_shapes_stay(pool: Images) -> None:
    def fine(x: Tensor, seed: int) -> Tensor:
        grain = spectrum(noise(x, 0.2, seed))
        grain[..., (bands(16, 16) < BANDS - 1).view(16, 16)] = 0
        return (x + image(grain)).clamp(0, 1)

    rule, right, truth = learnt(pool, fine)
    assert rule is not None
    assert error(right, truth) < 0.5 * error(fine(truth, 2), truth)
    assert rule.gains[0, 1] > 0.9 > 0.5 > rule.gains[0, BANDS]


def test_good_reconstructions_are_left_alone(pool: Images) -> None:
    rule, right, truth = learnt(pool, lambda x, seed: x)
    assert rule is None
    assert torch.equal(right, truth)


def test_a_gain_that_may_be_chance_is_none(pool: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two victims of 24 are rebuilt with noise: what helps these two alone is no rule."""

    def mostly_right(x: Tensor, seed: int) -> Tensor:
        return torch.where((torch.arange(len(x)) < 2).view(-1, 1, 1, 1), (x + noise(x, 0.5, seed)).clamp(0, 1), x)

    assert learnt(pool, mostly_right)[0] is None
    monkeypatch.setattr(module, "CLEAR", 0.0)
    assert learnt(pool, mostly_right)[0] is not None


def test_of_too_few_victims_nothing_is_learnt(pool: Images) -> None:
    assert learnt(pool, lambda x, seed: 0.5 * x, LEAST - 1)[0] is None
    assert learnt(pool, lambda x, seed: 0.5 * x, LEAST)[0] is not None


def test_without_other_images_nothing_is_learnt(pool: Images) -> None:
    none = pool.take(torch.arange(0))
    assert Calibration.of(0.5 * pool.floats(), pool.labels, pool.floats(), none) is None


def test_the_gains_of_a_band_are_those_of_least_squares(pool: Images) -> None:
    own, others = pool.take(torch.arange(24)), pool.take(torch.arange(24, 60))
    found = (0.7 * own.floats() + noise(own.floats(), 0.1, 3)).clamp(0, 1)
    rule = Calibration.of(found, own.labels, own.floats(), others)
    assert rule is not None
    means = torch.stack([others.floats()[others.labels == c].mean(0) for c in range(3)])[own.labels].numpy()
    bias = (found.numpy() - means).mean(0)
    centre = means.mean(0)
    seen, usual, wanted = (
        dctn(x, axes=(2, 3), norm="ortho")
        for x in (found.numpy() - means - bias, means - centre, own.floats().numpy() - means)
    )
    for band in range(BANDS + 1):
        where = (bands(16, 16) == band).view(16, 16).numpy()
        columns = np.stack([seen[..., where].ravel(), usual[..., where].ravel()], axis=1)
        held_back = np.diag(np.sqrt(np.square(columns[:, 0]).sum() * np.array([RIDGE, FAINT])))
        answers = np.concatenate([wanted[..., where].ravel(), [0, 0]])
        gains = np.linalg.lstsq(np.concatenate([columns, held_back]), answers, rcond=None)[0]
        assert rule.gains[:, band].tolist() == pytest.approx(gains.tolist(), rel=2e-3, abs=2e-3)


@pytest.mark.parametrize("size", [(28, 28), (12, 20), (7, 5)])
def test_spectra_are_cosine_transforms_and_every_band_has_a_place(size: tuple[int, int]) -> None:
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        spectrum(x), torch.from_numpy(dctn(x.numpy(), axes=(2, 3), norm="ortho")), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(image(spectrum(x)), x, atol=1e-5, rtol=0)
    assert set(bands(*size).tolist()) == set(range(BANDS + 1))
    assert bands(*size).tolist().count(0) == 1


def test_a_class_that_was_never_seen_has_the_mean_of_all() -> None:
    images = Images(torch.tensor([0, 100, 200], dtype=torch.uint8).view(3, 1, 1, 1), torch.tensor([0, 0, 2]))
    means = class_means(images)
    rows = known_class(torch.tensor([0, 1, 2, 7]), means)
    assert (means[rows].flatten() * 255).tolist() == pytest.approx([50, 100, 200, 100])


@pytest.mark.parametrize("labels", [True, False])
def test_classes_are_read_without_the_mean_of_the_class(labels: bool) -> None:
    """Where the label was recovered, a judge would read it from the mean that it chose, and call that the image."""
    means = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4), torch.full((1, 4, 4), 0.5)])
    only_means = Calibration(means, means[2], torch.zeros(1, 4, 4), torch.zeros(2, BANDS + 1))
    told = torch.full((1, 1, 4, 4), 0.3)
    found = Reconstruction(torch.full((1, 1, 4, 4), 0.6), torch.tensor([1]), 0.0, blind=told if labels else None)
    right = set_right(found, only_means)
    torch.testing.assert_close(right.images, torch.ones(1, 1, 4, 4))
    assert right.blind is not None
    torch.testing.assert_close(right.blind, told if labels else found.images)


def test_an_attacker_that_knows_the_defence_does_no_worse_than_its_guess(blobs: Blobs) -> None:
    """Behind noise that no inversion sees through."""
    victims, others = blobs(8, 2, side=12), blobs(60, 2, side=12)
    model = fv.build_model("lenet", image_shape=victims.shape, classes=2)
    noisy = fv.defense.UpdateNoise(strength=0.3)
    updates = [
        fv.client_update(model, victims.take(torch.tensor([at])), None, defense=noisy, seed=at)[0] for at in range(8)
    ]
    errors = {}
    for calibration in (0, 16):
        attack = fv.Adaptive(
            inversion=fv.InvertingGradients(steps=20),
            inverse=fv.InverseTraining(steps=20, width=8),
            calibration=calibration,
        )
        report = fv.audit(
            model, updates, images=victims, auxiliary=others, defense=noisy, attacks=["baseline", attack]
        ).summary()
        errors[calibration] = report["attack/adaptive/mse"]
    guess = report["attack/baseline/mse"]
    assert errors[0] > 1.2 * guess
    assert errors[16] < 1.1 * guess
