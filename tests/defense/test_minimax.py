from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedveil.defense.minimax import (
    MinimaxConfig,
    MinimaxModules,
    class_mean_error,
    init_modules,
    perturbed,
    train_minimax,
)
from fedveil.defense.modules import Inverse
from fedveil.defense.public_models import PublicModels
from fedveil.defense.seeded import seeded
from fedveil.fl.data.images import Images

SANE = MinimaxConfig(
    strength=2.0, privacy_weight=2.0, utility_weight=1.0, error_cap=1.0, adversary_steps=2, batch_size=16
)
CPU = torch.device("cpu")


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained_with(
    config: MinimaxConfig,
    images: Images,
    public_models: PublicModels,
    *,
    steps: int,
    seed: int = 3,
    modules: MinimaxModules | None = None,
) -> MinimaxModules:
    begin = modules or init_modules(public_models, config, stream(seed))
    return train_minimax(
        images, public_models, begin, config, steps=steps, replay=images, device=CPU, stream=stream(seed)
    )


def same(left: nn.Module, right: nn.Module) -> bool:
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_the_class_mean_error_worked_by_hand() -> None:
    pixels = torch.tensor([0, 255, 51, 51], dtype=torch.uint8).view(4, 1, 1, 1)
    images = Images(pixels, torch.tensor([0, 0, 1, 1]))
    # Class 0 holds 0 and 1 around 0.5; class 1 holds 0.2 twice.
    assert class_mean_error(images) == pytest.approx((0.25 + 0.25 + 0 + 0) / 4)
    single = images.take(torch.tensor([0, 2]))
    assert class_mean_error(single) == 0, "an image is its own class mean"
    assert class_mean_error(single, images) == pytest.approx((0.25 + 0) / 2)
    lacking = images.take(torch.tensor([0, 1]))
    # Class 1 is unknown there, so 0.2 is guessed as the mean of all, 0.5.
    assert class_mean_error(images, lacking) == pytest.approx((0.25 + 0.25 + 0.09 + 0.09) / 4)


def attacked_afresh(modules: MinimaxModules, public_models: PublicModels, public: Images, unseen: Images) -> float:
    """The error of an adversary that was trained from scratch, relative to guessing the class mean."""
    own = stream(6)
    adversary = seeded(lambda: Inverse(public.shape, width=16), own)
    optimizer = torch.optim.Adam(adversary.parameters(), lr=4e-3)

    def defended(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return perturbed(public_models.autoencoder, modules.defender, public_models.autoencoder.encode(x), own)

    for _ in range(60):
        x, _ = public.batch(torch.randint(len(public), (16,), generator=own))
        optimizer.zero_grad()
        F.mse_loss(adversary(defended(x)), x).backward()
        optimizer.step()
    x = unseen.floats()
    with torch.no_grad():
        return float(F.mse_loss(adversary(defended(x)), x)) / class_mean_error(unseen, public)


def read(modules: MinimaxModules, public_models: PublicModels, images: Images) -> float:
    with torch.no_grad():
        z = public_models.autoencoder.encode(images.floats())
        defended = perturbed(public_models.autoencoder, modules.defender, z, stream(5))
        return float((modules.classifier(defended).argmax(1) == images.labels).float().mean())


def test_the_privacy_term_hides_what_the_class_does_not_need(
    trained: MinimaxModules, config: MinimaxConfig, public_models: PublicModels, public: Images, private: Images
) -> None:
    unhidden = trained_with(replace(config, privacy_weight=0.0), public, public_models, steps=60)
    assert read(trained, public_models, private) > 0.95, "utility is kept"
    assert read(unhidden, public_models, private) > 0.95
    # With the same budget an adversary rebuilds images almost perfectly where nothing was to be hidden.
    assert attacked_afresh(unhidden, public_models, public, private) < 0.2
    assert attacked_afresh(trained, public_models, public, private) > 0.5


def test_a_minimax_training_is_a_pure_function_of_its_arguments(public_models: PublicModels, public: Images) -> None:
    first = trained_with(SANE, public, public_models, steps=2)
    torch.manual_seed(4)
    before = torch.get_rng_state()
    again = trained_with(SANE, public, public_models, steps=2)
    assert torch.equal(torch.get_rng_state(), before)
    other = trained_with(SANE, public, public_models, steps=2, seed=4)
    for name in ("defender", "adversary", "classifier"):
        assert same(getattr(first, name), getattr(again, name))
        assert not same(getattr(first, name), getattr(other, name))


def test_a_minimax_training_leaves_what_it_was_given_as_it_was_and_returns_frozen_modules(
    public_models: PublicModels, public: Images
) -> None:
    begin = init_modules(public_models, SANE, stream(0))
    modules = [begin.defender, begin.adversary, begin.classifier, public_models.autoencoder, public_models.reference]
    copies = copy.deepcopy(modules)
    end = trained_with(SANE, public, public_models, steps=2, modules=begin)
    assert all(same(module, kept) for module, kept in zip(modules, copies, strict=True))
    for name in ("defender", "adversary", "classifier"):
        module = getattr(end, name)
        assert not same(module, getattr(begin, name)), f"the {name} learns"
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())


def test_no_steps_are_no_change(public_models: PublicModels, public: Images) -> None:
    begin = init_modules(public_models, SANE, stream(0))
    end = trained_with(SANE, public, public_models, steps=0, modules=begin)
    assert same(end.defender, begin.defender)


def test_untrained_modules_know_nothing_but_the_public_reference(public_models: PublicModels) -> None:
    modules = init_modules(public_models, SANE, stream(0))
    assert modules.classifier is public_models.reference
    assert modules.defender.strength == SANE.strength
    assert not same(modules.defender, init_modules(public_models, SANE, stream(1)).defender)


def test_beyond_the_error_cap_nothing_more_is_gained(public_models: PublicModels, public: Images) -> None:
    # With a cap that is exceeded from the start and no utility term, the defender has nothing to learn from.
    config = replace(SANE, error_cap=1e-6, utility_weight=0.0)
    begin = init_modules(public_models, config, stream(0))
    assert same(trained_with(config, public, public_models, steps=2, modules=begin).defender, begin.defender)
    reached = trained_with(replace(config, error_cap=100.0), public, public_models, steps=2, modules=begin)
    assert not same(reached.defender, begin.defender)


def test_a_client_with_one_image_of_a_class_can_still_learn_privacy(
    public_models: PublicModels, public: Images
) -> None:
    # Its own class means are its images: a cap taken from them would be zero and the privacy term dead.
    few = public.take(torch.tensor([0, 1]))
    config = replace(SANE, utility_weight=0.0, error_cap=10.0)
    begin = init_modules(public_models, config, stream(0))
    end = train_minimax(few, public_models, begin, config, steps=1, replay=public, device=CPU, stream=stream(0))
    assert not same(end.defender, begin.defender)


def test_perturbed_images_are_images(public_models: PublicModels, private: Images) -> None:
    modules = init_modules(public_models, replace(SANE, strength=50.0), stream(0))
    with torch.no_grad():
        z = public_models.autoencoder.encode(private.floats())
        found = perturbed(public_models.autoencoder, modules.defender, z, stream(0))
    assert found.shape == private.floats().shape
    assert found.min() >= 0
    assert found.max() <= 1
