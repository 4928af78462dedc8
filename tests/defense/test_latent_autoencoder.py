from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import nn

from fedveil.defense import DefenseContext, LatentAutoencoder, TrainedOn
from fedveil.defense.latent_autoencoder import MinimaxPublic, PreparedMinimax
from fedveil.defense.minimax import init_modules, train_minimax
from fedveil.defense.outcome import hold_out, measure
from fedveil.fl.data.images import Images
from fedveil.fl.models import ModelSpec

QUICK = LatentAutoencoder(steps=2, client_steps=2, public_steps=3)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(left: nn.Module, right: nn.Module) -> bool:
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.fixture(scope="module")
def learnt(context: DefenseContext) -> MinimaxPublic:
    return QUICK.pretrain(context)


def prepared(
    private: Images,
    context: DefenseContext,
    public: MinimaxPublic,
    *,
    client: int,
    settings: LatentAutoencoder = QUICK,
) -> PreparedMinimax:
    found = settings.prepare(private, context, public, client=client)
    assert isinstance(found, PreparedMinimax)
    return found


def test_pretraining_is_the_minimax_training_on_public_images(context: DefenseContext, learnt: MinimaxPublic) -> None:
    own = context.stream("minimax", "public")
    seen, held = hold_out(context.public, own)
    modules = train_minimax(
        seen,
        learnt.models,
        init_modules(learnt.models, QUICK.minimax, context.stream("modules")),
        QUICK.minimax,
        steps=2,
        replay=context.public,
        device=torch.device("cpu"),
        stream=own,
    )
    assert same(learnt.modules.defender, modules.defender)
    outcome = measure(held, learnt.models, modules, context.public, context.stream("outcome", "public"))
    assert learnt.outcome == outcome
    assert outcome.images == 24, "0.15 of 160"


def test_a_client_goes_on_from_the_public_modules(
    context: DefenseContext, learnt: MinimaxPublic, private: Images
) -> None:
    settings = replace(QUICK, client_steps=0)
    still = prepared(private, context, learnt, client=0, settings=settings)
    assert same(still.defender, learnt.modules.defender)
    assert not same(prepared(private, context, learnt, client=0).defender, learnt.modules.defender)
    assert still.autoencoder is learnt.models.autoencoder
    assert still.diagnostics() == still.outcome.diagnostics()
    assert still.outcome.images == 12, "0.15 of the client's 80, not of the public images"


def test_client_scope_keeps_modules_of_its_own_for_each_client(
    context: DefenseContext, learnt: MinimaxPublic, private: Images
) -> None:
    first, again, second = (prepared(private, context, learnt, client=client) for client in (0, 0, 1))
    assert same(first.defender, again.defender)
    assert not same(first.defender, second.defender)
    assert QUICK.trained_on is TrainedOn.CLIENT
    other_images = prepared(private.take(torch.arange(40)), context, learnt, client=0)
    assert not same(first.defender, other_images.defender)


def test_public_scope_gives_all_clients_the_same_modules(
    context: DefenseContext, learnt: MinimaxPublic, private: Images
) -> None:
    settings = replace(QUICK, scope="public")
    clients = [
        prepared(private.take(torch.arange(10 * k, 10 * k + 10)), context, learnt, client=k, settings=settings)
        for k in range(3)
    ]
    own = PreparedMinimax(learnt.models.autoencoder, learnt.modules.defender, learnt.outcome)
    assert clients == [own, own, own]
    assert settings.trained_on is TrainedOn.PUBLIC


def test_both_scopes_start_from_the_same_public_modules(context: DefenseContext, learnt: MinimaxPublic) -> None:
    public_scope = replace(QUICK, scope="public").pretrain(context)
    assert same(public_scope.modules.defender, learnt.modules.defender)


def test_pretraining_is_reproducible_with_and_without_cache(context: DefenseContext, learnt: MinimaxPublic) -> None:
    without = QUICK.pretrain(replace(context, cache=None))
    assert same(learnt.modules.defender, without.modules.defender)
    assert learnt.outcome == without.outcome
    assert not same(learnt.modules.defender, QUICK.pretrain(replace(context, seed=1)).modules.defender)


@pytest.mark.parametrize("scope", ["client", "public"])
def test_an_attacker_that_prepares_the_defence_on_its_own_images_gets_modules_of_its_own_where_clients_do(
    scope: Literal["client", "public"], context: DefenseContext, learnt: MinimaxPublic, private: Images
) -> None:
    settings = replace(QUICK, scope=scope)
    client = prepared(private.take(torch.arange(40)), context, learnt, client=0, settings=settings)
    attacker = prepared(private.take(torch.arange(40, 80)), context, learnt, client=-1, settings=settings)
    x = private.floats()
    found = [defence.surrogate().data for defence in (client, attacker)]
    assert found[0] is not None
    assert found[1] is not None
    assert torch.equal(found[0](x, None, stream()), found[1](x, None, stream())) is (scope == "public")


def test_a_prepared_defence_shows_how_it_was_learnt_and_no_weights(
    context: DefenseContext, learnt: MinimaxPublic, private: Images
) -> None:
    client = prepared(private, context, learnt, client=0)
    assert repr(client) == f"PreparedMinimax(outcome={client.outcome!r})"


@pytest.mark.parametrize("shape", [(1, 30, 30), (3, 33, 47)])
def test_odd_sizes_and_colours_go_through_the_whole_defence(shape: tuple[int, int, int]) -> None:
    pixels = torch.randint(256, (8, *shape), generator=stream(), dtype=torch.uint8)
    images = Images(pixels, torch.arange(8) % 2)
    context = DefenseContext(images, ModelSpec("convnet", shape, 2, width=4), torch.device("cpu"), seed=0)
    tiny = LatentAutoencoder(steps=1, client_steps=1, public_steps=1, adversary_steps=1)
    prepared = tiny.prepare(images, context, tiny.pretrain(context), client=0)
    found = prepared.data(images.floats(), None, stream())
    assert found.shape == (8, *shape)
    assert found.isfinite().all()
