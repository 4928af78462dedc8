from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedveil.defense.minimax import (
    MinimaxConfig,
    MinimaxModules,
    class_mean_error,
    init_modules,
    perturbed,
    train_minimax,
)
from fedveil.defense.outcome import Outcome, hold_out, measure
from fedveil.defense.public_models import PublicModels
from fedveil.fl.data.images import Images


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("clean", "accuracy", "majority", "collapsed"),
    [
        # Untouched images carry 0.4 beyond a guess; a quarter of that is 0.1.
        (0.9, 0.59, 0.5, True),
        (0.9, 0.61, 0.5, False),
        (0.9, 0.9, 0.5, False),
        (0.9, 0.3, 0.5, True),
        # 0.8 beyond a guess, hence 0.2.
        (0.95, 0.34, 0.15, True),
        (0.95, 0.36, 0.15, False),
        # Nothing was there to be lost.
        (0.5, 0.1, 0.5, False),
        (0.4, 0.1, 0.5, False),
    ],
)
def test_collapse_worked_by_hand(clean: float, accuracy: float, majority: float, collapsed: bool) -> None:
    assert Outcome(clean, accuracy, majority, images=1_000_000, adversary_error=1.0).collapsed is collapsed


def test_few_images_are_no_proof_of_a_collapse() -> None:
    # One wrong image of three leaves nothing beyond the guess, and proves nothing.
    assert not Outcome(1.0, 2 / 3, 2 / 3, images=3, adversary_error=1.0).collapsed
    # Wilson's upper end for 15 of 30 is 0.67, for 150 of 300 it is 0.556; the line is at 0.5 + 0.25 * 0.5 = 0.625.
    assert not Outcome(1.0, 0.5, 0.5, images=30, adversary_error=1.0).collapsed
    assert Outcome(1.0, 0.5, 0.5, images=300, adversary_error=1.0).collapsed


def test_collapse_is_not_seen_where_utility_is_kept(
    trained: MinimaxModules, public_models: PublicModels, public: Images, private: Images
) -> None:
    outcome = measure(private, public_models, trained, public, stream(4))
    assert outcome.accuracy > 0.95
    assert not outcome.collapsed
    assert outcome.diagnostics() == {
        "collapsed": 0.0,
        "local_accuracy": outcome.accuracy,
        "adversary_error": outcome.adversary_error,
    }


def test_collapse_is_seen_where_utility_hardly_counts(
    config: MinimaxConfig, public_models: PublicModels, public: Images, private: Images
) -> None:
    absurd = replace(config, strength=6.0, privacy_weight=100.0, utility_weight=1e-4)
    begin = init_modules(public_models, absurd, stream(3))
    device = torch.device("cpu")
    modules = train_minimax(
        public, public_models, begin, absurd, steps=40, replay=public, device=device, stream=stream(3)
    )
    outcome = measure(private, public_models, modules, public, stream(4))
    assert outcome.collapsed
    assert outcome.diagnostics()["collapsed"] == 1


def test_the_outcome_is_measured_as_it_says(
    config: MinimaxConfig, public_models: PublicModels, public: Images, private: Images
) -> None:
    modules = init_modules(public_models, config, stream())
    outcome = measure(private, public_models, modules, public, stream(4))
    x, y = private.floats(), private.labels
    with torch.no_grad():
        defended = perturbed(
            public_models.autoencoder, modules.defender, public_models.autoencoder.encode(x), stream(4)
        )
        error = (modules.adversary(defended) - x).square().mean().item()
        right = (modules.classifier(defended).argmax(1) == y).float().mean().item()
        clean = (public_models.reference(x).argmax(1) == y).float().mean().item()
    assert outcome.adversary_error == pytest.approx(error / class_mean_error(private, public))
    assert outcome.accuracy == pytest.approx(right)
    assert outcome.clean_accuracy == pytest.approx(clean)
    assert outcome.majority == 0.5


def test_a_client_with_two_images_has_a_meaningful_outcome(
    config: MinimaxConfig, public_models: PublicModels, public: Images, private: Images
) -> None:
    modules = init_modules(public_models, config, stream())
    few = measure(private.take(torch.arange(2)), public_models, modules, public, stream(4))
    many = measure(private, public_models, modules, public, stream(4))
    assert 0.2 * many.adversary_error < few.adversary_error < 5 * many.adversary_error


@pytest.mark.parametrize(("count", "held"), [(1, 1), (6, 6), (7, 1), (20, 3), (80, 12)])
def test_a_few_images_are_held_out_of_the_training(count: int, held: int, private: Images) -> None:
    images = private.take(torch.arange(count))
    seen, out = hold_out(images, stream())
    assert len(out) == held
    if count <= 6:
        assert len(seen) == count, "too few to spare any"
    else:
        assert len(seen) == count - held
        both = torch.cat([seen.pixels, out.pixels]).flatten(1).tolist()
        assert sorted(both) == sorted(images.pixels.flatten(1).tolist())
