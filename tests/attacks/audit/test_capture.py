from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fedveil.attacks.audit.capture as module
from fedveil.attacks.audit.capture import capture, client_update, together
from fedveil.attacks.audit.observed import victims_of, with_draws
from fedveil.attacks.scoring.victims import VictimBatch
from fedveil.defense import (
    Defense,
    DefenseContext,
    DualGradientPruning,
    LatentAutoencoder,
    MixUp,
    NoDefense,
    PixelNoise,
    TopK,
    UpdateNoise,
)
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.hooks import ClientHooks
from fedveil.fl.messages import UpdateKind
from fedveil.fl.models import ModelSpec, build_model, init_model
from fedveil.fl.optimizers import SGD, Adam, LocalOptimizer
from fedveil.fl.seeding import torch_stream
from fedveil.fl.training import LocalTraining, load_exchanged, local_update

SPEC = ModelSpec("lenet", (1, 12, 12), 2, width=4)
TRAINING = LocalTraining(UpdateKind.DELTA, epochs=9, batch_size=4, learning_rate=0.05)
LATENT = LatentAutoencoder(steps=1, client_steps=1, public_steps=1, adversary_steps=1)
DEFENSES: list[Defense[Any]] = [NoDefense(), PixelNoise(), TopK(), UpdateNoise(), LATENT]

Blobs = Callable[..., Images]


def hooks_of(defense: Defense[Any], images: Images) -> ClientHooks:
    context = DefenseContext(images, SPEC, torch.device("cpu"), seed=0)
    return defense.prepare(images, context, defense.pretrain(context), client=0)


def victims(images: Images) -> VictimBatch:
    return VictimBatch(3, 1, tuple(range(len(images))), images)


@pytest.mark.parametrize("local_steps", [1, 2])
@pytest.mark.parametrize("defense", DEFENSES, ids=lambda d: d.name)
def test_updates_come_from_the_function_that_trains_with_the_defence_in_place(
    defense: Defense[Any], local_steps: int, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []

    def spy(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return local_update(*arguments, **options)

    monkeypatch.setattr(module, "local_update", spy)
    batch, weights = victims(blobs(3, 0, side=12)), init_model(SPEC, 1)
    hooks = hooks_of(defense, batch.images)
    observation, truth = capture(
        build_model(SPEC), weights, batch, hooks, TRAINING, local_steps=local_steps, stream=torch_stream(0, "a")
    )
    ((_, used, shard, given, spec, _),) = calls
    assert used is weights
    assert given is hooks
    assert shard is batch.images
    kind = UpdateKind.GRADIENT if local_steps == 1 else UpdateKind.DELTA
    assert (spec.kind, spec.epochs, spec.batch_size, spec.learning_rate) == (kind, local_steps, 3, 0.05)
    update = observation.update
    assert (update.kind, update.local_steps) == (kind, local_steps)
    assert (observation.number, observation.client, observation.batch_size) == (3, 1, 3)
    assert observation.weights is weights
    # The truth is with the other half of what is captured.
    assert observation.labels is None
    assert observation.trained_images is None
    assert (truth.victims, truth.images) == (batch.victims, batch.images)

    # The very same call gives the very same update: nothing is added on the way to the attacker.
    expected = local_update(build_model(SPEC), weights, shard, hooks, spec, torch_stream(0, "a")).update
    assert update.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(update.tensors[name], expected.tensors[name]) for name in expected.tensors)


@pytest.mark.parametrize("local_steps", [1, 2])
def test_views_and_public_images_are_left_out_and_the_optimiser_stays(local_steps: int, blobs: Blobs) -> None:
    batch, weights = victims(blobs(3, 0, side=12)), init_model(SPEC, 1)
    plain = replace(TRAINING, optimizer=Adam())
    rich = replace(plain, epochs=None, steps=5, augmentation=("transpose", "shift"), replay=0.5)
    (one, truth), (other, _) = (
        capture(
            build_model(SPEC),
            weights,
            batch,
            hooks_of(NoDefense(), batch.images),
            training,
            local_steps=local_steps,
            stream=torch_stream(0, "a"),
        )
        for training in (rich, plain)
    )
    assert truth.trained is not None
    assert torch.equal(truth.trained, truth.originals)
    assert all(torch.equal(one.update.tensors[name], tensor) for name, tensor in other.update.tensors.items())
    assert one.update.local_steps == local_steps
    # One step sends the gradient, which no optimiser has touched.
    assert (one.update.optimizer == Adam(), one.update.rate_known) == (local_steps == 2, local_steps == 1)


@pytest.mark.parametrize("defense", [NoDefense(), PixelNoise(), LATENT], ids=lambda d: d.name)
def test_the_trained_images_are_those_behind_the_update(defense: Defense[Any], blobs: Blobs) -> None:
    batch, weights, model = victims(blobs(3, 0, side=12)), init_model(SPEC, 1), build_model(SPEC)
    hooks = hooks_of(defense, batch.images)
    observation, truth = capture(model, weights, batch, hooks, TRAINING, local_steps=1, stream=torch_stream(0, "audit"))
    load_exchanged(model, weights)
    assert truth.trained is not None
    loss = F.cross_entropy(model(truth.trained), truth.labels)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    for gradient, sent in zip(gradients, observation.update.tensors.values(), strict=True):
        torch.testing.assert_close(gradient, sent, rtol=1e-4, atol=1e-6)
    assert torch.equal(truth.trained, truth.originals) == (defense.name == "none")


def test_the_order_of_the_trained_images_is_that_of_the_originals(blobs: Blobs) -> None:
    batch, noise = victims(blobs(3, 0, side=12)), hooks_of(PixelNoise(strength=0.01), blobs(3, 0, side=12))
    for number in range(4):
        stream = torch_stream(0, "audit", number)
        weights = init_model(SPEC, 1)
        _, truth = capture(build_model(SPEC), weights, batch, noise, TRAINING, local_steps=1, stream=stream)
        assert truth.trained is not None
        assert float((truth.trained - truth.originals).abs().max()) < 0.06


def test_over_several_steps_a_perfect_inversion_averages_the_noise(blobs: Blobs) -> None:
    images = blobs(1, 0, side=12)

    def trained_mse(local_steps: int) -> float:
        _, trained = client_update(
            build_model(SPEC), images, None, defense=PixelNoise(strength=0.02), local_steps=local_steps
        )
        return float((trained - images.floats()).square().mean())

    assert trained_mse(16) < 0.3 * trained_mse(1)


def test_captures_of_one_batch_make_one_observation(blobs: Blobs) -> None:
    batch, noise = victims(blobs(3, 0, side=12)), hooks_of(PixelNoise(strength=0.1), blobs(3, 0, side=12))
    model, sent = build_model(SPEC), [init_model(SPEC, seed) for seed in range(3)]
    captured = [
        capture(model, weights, batch, noise, TRAINING, local_steps=1, stream=torch_stream(0, "audit", at))
        for at, weights in enumerate(sent)
    ]
    observation, truth = together(captured)
    assert [one.weights for one in observation.series] == sent
    assert all(one.repeats == () for one in observation.repeats)
    assert [id(draw) for draw in truth.draws] == [id(own.draws[0]) for _, own in captured]
    alone, own = together(captured[:1])
    assert (alone.repeats, len(own.draws)) == ((), 1)


# For users


def test_a_users_update_is_that_of_the_clients_own_training(blobs: Blobs) -> None:
    images, model = blobs(2, 1, side=12), build_model(SPEC)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    gradient, trained = client_update(model, images.floats(), images.labels.tolist())
    loss = F.cross_entropy(model(images.floats()), images.labels)
    for own, sent in zip(torch.autograd.grad(loss, [*model.parameters()]), gradient.tensors.values(), strict=True):
        torch.testing.assert_close(own, sent)
    assert torch.equal(trained, images.floats())
    delta, _ = client_update(model, images, None, local_steps=3, learning_rate=0.01)
    assert (delta.kind, delta.local_steps, delta.learning_rate) == (UpdateKind.DELTA, 3, 0.01)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_frozen_layers_send_nothing(blobs: Blobs) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(200, 2))
    model[0].requires_grad_(False)
    for steps in (1, 2):
        update, _ = client_update(model, blobs(2, 1, side=12), None, local_steps=steps)
        assert [*update.tensors] == ["1.weight", "1.bias", "3.weight", "3.bias"]
        assert {*update.buffers} == {"1.running_mean", "1.running_var"}


def test_evaluation_mode_and_normalisation_are_the_clients(blobs: Blobs) -> None:
    images = blobs(1, 1, side=12)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(200, 2)).eval()
    update, trained = client_update(model, images, None, mode="eval", normalize=([0.4], [0.2]))
    loss = F.cross_entropy(model((images.floats() - 0.4) / 0.2), images.labels)
    for own, sent in zip(torch.autograd.grad(loss, [*model.parameters()]), update.tensors.values(), strict=True):
        torch.testing.assert_close(own, sent)
    assert torch.equal(trained, images.floats())


def test_a_defence_with_modules_has_to_be_prepared(blobs: Blobs) -> None:
    images = blobs(4, 1, side=12)
    with pytest.raises(FedveilError, match=r"has modules to train first: pass defense.prepare\("):
        client_update(build_model(SPEC), images, None, defense=LATENT)
    prepared = hooks_of(LATENT, images)
    _, trained = client_update(build_model(SPEC), images, None, defense=prepared)  # type: ignore[arg-type]
    assert not torch.equal(trained, images.floats())


def test_a_defence_that_mixes_takes_the_classes_from_the_model(blobs: Blobs) -> None:
    """Two images of one class of three: what was trained on lies between them, and is not handed out as the originals."""
    with pytest.raises(FedveilError, match="would mix the one image with itself: pass more images"):
        client_update(build_model(SPEC), blobs(1, 1, side=12), None, defense=MixUp())
    images, model = blobs(2, 1, side=12), build_model(replace(SPEC, classes=3))
    update, trained = client_update(model, images, [2, 2], defense=MixUp())
    # Labels stay those of their class where both are of one: the other classes' biases have no share.
    softmax = model(trained).softmax(1).mean(0)
    expected = softmax - torch.tensor([0.0, 0.0, 1.0])
    torch.testing.assert_close(update.tensors["head.bias"], expected, atol=1e-6, rtol=1e-5)
    low, high = images.floats().amin(0), images.floats().amax(0)
    assert bool(((trained >= low - 1e-6) & (trained <= high + 1e-6)).all())
    batches = with_draws(victims_of(images, 2, False), None, MixUp(), 1)
    assert batches[0].trained is None


@pytest.mark.parametrize(
    ("optimizer", "local_steps", "counts"),
    [(SGD(), 1, True), (Adam(), 1, False), (SGD(momentum=0.9), 1, False), (Adam(), 2, True)],
)
def test_what_a_client_kept_of_steps_of_another_size_does_not_drown_its_victims(
    optimizer: LocalOptimizer, local_steps: int, counts: bool, blobs: Blobs
) -> None:
    batch, weights = victims(blobs(3, 0, side=12)), init_model(SPEC, 1)
    training, hooks = replace(TRAINING, optimizer=optimizer), hooks_of(DualGradientPruning(), batch.images)
    kept = local_update(build_model(SPEC), weights, batch.images, hooks, training, torch_stream(0, "a")).memory
    seen = [
        capture(
            build_model(SPEC),
            weights,
            batch,
            hooks,
            training,
            local_steps=local_steps,
            stream=torch_stream(0, "b"),
            memory=memory,
        )[0].update.tensors
        for memory in (kept, None)
    ]
    assert all(torch.equal(seen[0][name], seen[1][name]) for name in weights) is not counts
