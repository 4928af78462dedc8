from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fedveil.attacks import Baseline, Knowledge, LearningToInvert, Observation
from fedveil.attacks.adaptive.preparation import preparation_key, prepare_attacker
from fedveil.attacks.base import AttackerPreparation
from fedveil.attacks.learned.learning_to_invert import assigned_error
from fedveil.attacks.learned.own_updates import OwnClients
from fedveil.attacks.learned.update_features import HASHED, UpdateFeatures, entries
from fedveil.attacks.scoring import match
from fedveil.attacks.target.model import target_model
from fedveil.defense.base import Defense, PreparedDefense, Stateless, Surrogate, TrainedOn
from fedveil.defense.noise import NoDefense, PixelNoise
from fedveil.defense.top_k import TopK
from fedveil.defense.update_noise import UpdateNoise
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import Reconstruction, ThreatModel
from fedveil.fl.models import ModelSpec, build_model
from fedveil.fl.optimizers import SGD, Adam, LocalOptimizer
from fedveil.fl.seeding import torch_stream

SPEC = ModelSpec("lenet", (1, 8, 8), 2, width=6)
SMALL = LearningToInvert(steps=160, width=64, features=48, pool=192)

Blobs = Callable[..., Images]
Observe = Callable[..., Observation]


def knowing(auxiliary: Images, surrogate: Surrogate, *, seed: int = 3, labels: bool = True) -> Knowledge:
    target = target_model(build_model(SPEC), image_shape=SPEC.image_shape, classes=SPEC.classes)
    granted = ThreatModel(labels=labels, auxiliary_data=True, defense_algorithm=True)
    prepared: dict[int | None, AttackerPreparation] = {None: AttackerPreparation(surrogate, None)}
    return Knowledge(granted, target, torch.device("cpu"), seed, auxiliary=auxiliary, preparations=prepared)


def error(found: Reconstruction, images: Images) -> float:
    truth = images.floats()
    return float((found.images[match(found.images, truth)] - truth).square().mean())


# Updates of the attacker's own


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("settings", [NoDefense(), UpdateNoise(strength=0.0, clip=0.05)], ids=repr)
@pytest.mark.parametrize("size", [1, 3])
def test_own_clients_send_what_clients_send(
    size: int, settings: Defense[None], steps: int, blobs: Blobs, observe: Observe
) -> None:
    images = blobs(2 * size, 1, side=8)
    parts = [images.take(torch.arange(size) + size * at) for at in range(2)]
    sent = [observe(part, SPEC, hooks=Stateless(settings), steps=steps) for part in parts]
    knowledge = knowing(images, Stateless(settings).surrogate())
    x, y = images.floats().view(2, size, *SPEC.image_shape), images.labels.view(2, size)
    made = OwnClients(sent[0], knowledge.preparation(0).surrogate, knowledge).send(x, y, torch_stream(0, "own"))
    assert [*made] == [*sent[0].update.tensors]
    for at, one in enumerate(sent):
        for name, tensor in one.update.tensors.items():
            torch.testing.assert_close(made[name][at], one.update.gradient_scale * tensor, atol=2e-5, rtol=2e-3)


@pytest.mark.parametrize("rule", [SGD(momentum=0.9, weight_decay=0.1), Adam(weight_decay=0.1)], ids=repr)
def test_own_clients_take_the_clients_steps(rule: LocalOptimizer, blobs: Blobs, observe: Observe) -> None:
    images = blobs(2, 1, side=8)
    sent = [observe(images.take(torch.tensor([at])), SPEC, steps=3, optimizer=rule) for at in range(2)]
    x, y = images.floats()[:, None], images.labels[:, None]
    made = OwnClients(sent[0], Surrogate(), knowing(images, Surrogate())).send(x, y, torch_stream(0, "own"))
    for at, one in enumerate(sent):
        for name, tensor in one.update.tensors.items():
            direction = one.update.gradient_scale * tensor
            # Adam makes much of the rounding of gradients that are nearly zero.
            assert float(torch.cosine_similarity(made[name][at].flatten(), direction.flatten(), dim=0)) > 0.999
            torch.testing.assert_close(made[name][at].norm(), direction.norm(), rtol=1e-2, atol=1e-4)


class Counting(PreparedDefense):
    """Adds how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        self.asked += 1
        return x * 0 + 0.1 * self.asked


def test_every_local_step_draws_what_it_trains_on_afresh(blobs: Blobs, observe: Observe) -> None:
    images = blobs(1, 1, side=8)
    seen = observe(images, SPEC, hooks=Counting(), steps=3)
    hooks = Counting()
    clients = OwnClients(seen, hooks.surrogate(), knowing(images, hooks.surrogate()))
    made = clients.send(images.floats()[None], images.labels[None], torch_stream(0, "own"))
    assert hooks.asked == 3
    for name, tensor in seen.update.tensors.items():
        torch.testing.assert_close(made[name][0], seen.update.gradient_scale * tensor, atol=2e-5, rtol=2e-3)


# Features


def test_features_are_the_directions_in_which_images_differ_and_leave_noise_out() -> None:
    stream = torch_stream(0, "features")
    image = torch.randn((400, 1), generator=stream)

    def once() -> Tensor:
        noise = torch.randn((400, 2), generator=stream)
        return torch.cat([image, 5 * noise[:, :1], 0.1 * image + 0.1 * noise[:, 1:]], dim=1)

    first, second = once(), once()
    features = UpdateFeatures.fit(first, second, 1)(first)
    assert features.shape == (400, 1)
    assert features.std().item() == pytest.approx(1, abs=0.2)
    assert abs(torch.corrcoef(torch.cat([features, image], dim=1).T)[0, 1].item()) > 0.95


def test_entries_that_were_never_sent_before_do_not_drown_the_others() -> None:
    stream = torch_stream(0, "sparse")
    image = torch.randn((200, 3), generator=stream)
    known = torch.cat([image, torch.zeros((200, 1))], dim=1)
    features = UpdateFeatures.fit(known, known, 3)
    new = known[:5] + torch.tensor([0.0, 0.0, 0.0, 1.0])
    torch.testing.assert_close(features(new), features(known[:5]))
    # Nor is any feature thrown far out.
    assert features(1000 * known).abs().max() == 5
    # What the analysis has not seen reaches as far along its directions as what it has.
    assert features(torch.cat([torch.randn((400, 3), generator=stream), torch.zeros((400, 1))], 1)).std().item() < 1.3


def test_large_updates_are_hashed_and_lengths_are_kept() -> None:
    tensors = {"b": torch.randn((3, 5, HASHED)), "a": torch.randn((3, 2))}
    hashed = entries(tensors)
    assert hashed.shape == (3, HASHED)
    flat = torch.cat([tensors["a"], tensors["b"].flatten(1)], dim=1)
    torch.testing.assert_close(hashed @ hashed.T, flat @ flat.T, atol=4e3, rtol=0.2)
    small = {"b": torch.ones((1, 2)), "a": torch.zeros((1, 1))}
    assert entries(small).tolist() == [[0, 1, 1]]


def test_the_order_in_a_batch_is_no_error() -> None:
    truth = torch.rand((2, 3, 1, 4, 4), generator=torch_stream(0, "order"))
    found = truth[:, [2, 0, 1]] + 0.1
    assert assigned_error(found, truth).item() == pytest.approx(0.01)


# The attack


@pytest.mark.parametrize(
    ("settings", "share"), [(NoDefense(), 0.6), (TopK(keep=0.3), 0.7), (PixelNoise(strength=0.05), 0.7)], ids=repr
)
def test_it_beats_the_guess_by_far(settings: Defense[None], share: float, blobs: Blobs, observe: Observe) -> None:
    auxiliary, victims = blobs(120, 1, side=8), blobs(6, 2, side=8)
    prepared = Stateless(settings)
    each = [victims.take(torch.tensor([at])) for at in range(6)]
    seen = [observe(one, SPEC, hooks=prepared, number=at, client=at, labels=False) for at, one in enumerate(each)]
    knowledge = knowing(auxiliary, prepared.surrogate(), labels=False)
    found, guess = SMALL(seen, knowledge), Baseline()(seen, knowledge_without_defence(knowledge))
    mine, theirs = (sum(map(error, results, each)) for results in (found, guess))
    assert mine < share * theirs
    assert all(float(one.images.min()) >= 0 and float(one.images.max()) <= 1 and one.blind is None for one in found)


def test_what_one_clients_reader_learns_does_not_depend_on_who_else_is_attacked(blobs: Blobs, observe: Observe) -> None:
    seen = [observe(blobs(2, at, side=8), SPEC, number=at, client=at) for at in range(2)]
    other = replace(seen[0], weights={name: weight.clone() for name, weight in seen[0].weights.items()})
    short, knowledge = replace(SMALL, steps=3, pool=64), knowing(blobs(40, 1, side=8), Surrogate())
    together, alone = short([other, *seen], knowledge), short(seen[1:], knowledge)
    torch.testing.assert_close(together[2].images, alone[0].images)
    torch.testing.assert_close(together[0].images, together[1].images)


def knowledge_without_defence(knowledge: Knowledge) -> Knowledge:
    return replace(knowledge, threat_model=ThreatModel(labels=False, auxiliary_data=True), preparations={})


def test_batches_and_several_steps_are_read(blobs: Blobs, observe: Observe) -> None:
    auxiliary, victims = blobs(120, 1, side=8), [blobs(2, seed, side=8) for seed in range(2, 6)]
    knowledge = knowing(auxiliary, Surrogate())
    seen = [observe(one, SPEC, steps=2, number=at) for at, one in enumerate(victims)]
    found = replace(SMALL, steps=400)(seen, knowledge)
    mean = auxiliary.floats().mean(dim=0).expand(2, -1, -1, -1)
    guessed = [replace(one, images=mean) for one in found]
    assert sum(map(error, found, victims)) < 0.7 * sum(map(error, guessed, victims))
    assert all(sorted(one.labels.tolist()) == [0, 1] and one.loss < 0.1 for one in found)


def test_nothing_is_prepared_for_it_but_what_the_defence_hands_over(blobs: Blobs) -> None:
    key = preparation_key(SMALL, TrainedOn.NOTHING, 0)
    assert key is not None
    prepared = prepare_attacker(
        Stateless(PixelNoise()), blobs(8, 1), key, classes=2, device=torch.device("cpu"), stream=torch_stream(0, "none")
    )
    assert prepared.surrogate.data is not None
    assert (prepared.inverse, prepared.reader) == (None, None)


def test_settings_and_grants_are_checked(blobs: Blobs, observe: Observe) -> None:
    with pytest.raises(FedveilError, match="learning_to_invert: steps is 0"):
        LearningToInvert(steps=0)
    knowledge = knowing(blobs(8, 1, side=8), Surrogate())
    with pytest.raises(FedveilError, match="needs auxiliary_data, defense_algorithm"):
        SMALL(
            [observe(blobs(1, 1, side=8), SPEC)],
            replace(knowledge, threat_model=ThreatModel(), auxiliary=None, preparations={}),
        )
