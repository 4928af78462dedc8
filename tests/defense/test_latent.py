from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from fedveil.defense import DefenseContext, LatentPerturbation, TrainedOn
from fedveil.defense.latent import Outcome, _split, judge
from fedveil.defense.minimax import (
    MinimaxConfig,
    MinimaxModules,
    class_mean_error,
    init_modules,
    perturbed,
    train_minimax,
)
from fedveil.defense.public_models import PublicModels
from fedveil.fl.data.images import Images
from fedveil.fl.messages import ThreatModel
from fedveil.fl.models import ModelSpec

CODE = ThreatModel(defense_algorithm=True)
QUICK = LatentPerturbation(steps=2, client_steps=2, public_steps=3)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(left: nn.Module, right: nn.Module) -> bool:
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def defender(defence: LatentPerturbation) -> nn.Module:
    assert defence.modules is not None
    return defence.modules.defender


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
    learnt: MinimaxModules, public_models: PublicModels, public: Images, private: Images
) -> None:
    outcome = judge(private, public_models, learnt, public, stream(4))
    assert outcome.accuracy > 0.95
    assert not outcome.collapsed
    defence = LatentPerturbation(public_models=public_models, modules=learnt, outcome=outcome)
    assert defence.diagnostics() == {
        "collapsed": 0.0,
        "local_accuracy": outcome.accuracy,
        "adversary_error": outcome.adversary_error,
    }


def test_collapse_is_seen_where_utility_hardly_counts(
    game: MinimaxConfig, public_models: PublicModels, public: Images, private: Images
) -> None:
    absurd = replace(game, strength=6.0, privacy_weight=100.0, utility_weight=1e-4)
    begin = init_modules(public_models, absurd, stream(3))
    device = torch.device("cpu")
    modules = train_minimax(
        public, public_models, begin, absurd, steps=40, replay=public, device=device, stream=stream(3)
    )
    outcome = judge(private, public_models, modules, public, stream(4))
    assert outcome.collapsed
    assert (
        LatentPerturbation(public_models=public_models, modules=modules, outcome=outcome).diagnostics()["collapsed"]
        == 1
    )


def test_the_outcome_is_measured_as_it_says(public_models: PublicModels, public: Images, private: Images) -> None:
    modules = init_modules(public_models, QUICK._game, stream())
    outcome = judge(private, public_models, modules, public, stream(4))
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
    public_models: PublicModels, public: Images, private: Images
) -> None:
    modules = init_modules(public_models, QUICK._game, stream())
    few = judge(private.take(torch.arange(2)), public_models, modules, public, stream(4))
    many = judge(private, public_models, modules, public, stream(4))
    assert 0.2 * many.adversary_error < few.adversary_error < 5 * many.adversary_error


def test_client_scope_keeps_modules_of_its_own_for_each_client(context: DefenseContext, private: Images) -> None:
    base = QUICK.pretrain(context)
    first, again, second = (base.prepare(private, context, client) for client in (0, 0, 1))
    assert same(defender(first), defender(again))
    assert not same(defender(first), defender(second))
    assert not same(defender(first), defender(base))
    assert QUICK.trained_on is TrainedOn.CLIENT
    other_images = base.prepare(private.take(torch.arange(40)), context, 0)
    assert not same(defender(first), defender(other_images))


def test_public_scope_gives_all_clients_the_same_modules(context: DefenseContext, private: Images) -> None:
    public_scope = replace(QUICK, scope="public")
    base = public_scope.pretrain(context)
    prepared = [base.prepare(private.take(torch.arange(10 * k, 10 * k + 10)), context, k) for k in range(3)]
    for own in prepared:
        assert same(defender(own), defender(base))
        assert own.public_models is base.public_models
    x = private.floats()
    images = [own.data(x, None, stream()) for own in prepared]
    assert all(torch.equal(found, images[0]) for found in images)
    assert public_scope.trained_on is TrainedOn.PUBLIC


def test_both_scopes_start_from_the_same_public_modules(context: DefenseContext) -> None:
    assert same(defender(QUICK.pretrain(context)), defender(replace(QUICK, scope="public").pretrain(context)))


def test_pretraining_is_reproducible_with_and_without_cache(context: DefenseContext) -> None:
    with_cache = QUICK.pretrain(context)
    without = QUICK.pretrain(replace(context, cache=None))
    assert same(defender(with_cache), defender(without))
    assert with_cache.outcome == without.outcome
    assert QUICK.modules is None, "the original is left alone"
    assert not same(defender(with_cache), defender(QUICK.pretrain(replace(context, seed=1))))


def test_it_has_to_be_pretrained(context: DefenseContext, private: Images) -> None:
    with pytest.raises(RuntimeError, match=r"latent: pretrain\(\) has not run"):
        QUICK.data(private.floats(), None, stream())
    with pytest.raises(RuntimeError, match=r"latent: pretrain\(\) has not run"):
        QUICK.prepare(private, context, 0)
    assert QUICK.diagnostics() == {}


@pytest.mark.parametrize("scope", ["client", "public"])
def test_an_attacker_with_the_code_alone_learns_modules_of_his_own(
    scope: str, context: DefenseContext, private: Images
) -> None:
    defence = replace(QUICK, scope=scope)  # type: ignore[arg-type]
    attacker = replace(context, seed=9)
    surrogate = defence.surrogate(CODE, attacker)
    assert surrogate.data is not None
    assert surrogate.update is None
    x = private.floats()
    found = surrogate.data(x, stream())
    own = defence.pretrain(attacker).prepare(attacker.public, attacker, -1)
    assert torch.equal(found, own.data(x, None, stream()))
    client = defence.pretrain(context).prepare(private, context, 0)
    assert not torch.equal(found, client.data(x, None, stream()))


def test_a_surrogate_by_code_never_uses_modules_that_the_client_trained(
    context: DefenseContext, private: Images
) -> None:
    attacker = replace(context, seed=9)
    client = QUICK.pretrain(context).prepare(private, context, 0)
    from_client, from_code = client.surrogate(CODE, attacker), QUICK.surrogate(CODE, attacker)
    assert from_client.data is not None
    assert from_code.data is not None
    x = private.floats()
    assert torch.equal(from_client.data(x, stream()), from_code.data(x, stream()))


@pytest.mark.parametrize(("count", "held"), [(1, 1), (6, 6), (7, 1), (20, 3), (80, 12)])
def test_a_few_images_are_held_out_of_the_game(count: int, held: int, private: Images) -> None:
    images = private.take(torch.arange(count))
    played, out = _split(images, stream())
    assert len(out) == held
    if count <= 6:
        assert len(played) == count, "too few to spare any"
    else:
        assert len(played) == count - held
        seen = torch.cat([played.pixels, out.pixels]).flatten(1).tolist()
        assert sorted(seen) == sorted(images.pixels.flatten(1).tolist())


@pytest.mark.parametrize("shape", [(1, 30, 30), (3, 33, 47)])
def test_odd_sizes_and_colours_go_through_the_whole_defence(shape: tuple[int, int, int]) -> None:
    pixels = torch.randint(256, (8, *shape), generator=stream(), dtype=torch.uint8)
    images = Images(pixels, torch.arange(8) % 2)
    context = DefenseContext(images, ModelSpec("convnet", shape, 2, width=4), torch.device("cpu"), seed=0)
    tiny = LatentPerturbation(steps=1, client_steps=1, public_steps=1, adversary_steps=1)
    found = tiny.pretrain(context).prepare(images, context, 0).data(images.floats(), None, stream())
    assert found.shape == (8, *shape)
    assert found.isfinite().all()
