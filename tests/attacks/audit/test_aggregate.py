from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from fedveil.attacks.audit.aggregate import aggregated, in_sums
from fedveil.attacks.audit.capture import capture, together
from fedveil.attacks.base import Observation
from fedveil.attacks.scoring.victims import VictimBatch
from fedveil.defense import PixelNoise, SecureAggregation, Stack, TopK
from fedveil.defense.base import Stateless
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.hooks import ClientHooks, NoHooks
from fedveil.fl.messages import UpdateKind
from fedveil.fl.models import ModelSpec, build_model, init_model
from fedveil.fl.seeding import torch_stream
from fedveil.fl.training import LocalTraining

SPEC = ModelSpec("lenet", (1, 12, 12), 2, width=4)
TRAINING = LocalTraining(UpdateKind.DELTA, epochs=9, batch_size=4, learning_rate=0.05)
ONE = Images(torch.zeros(1, 1, 12, 12, dtype=torch.uint8), torch.zeros(1, dtype=torch.long))

Blobs = Callable[..., Images]


def of(*clients: int) -> list[VictimBatch]:
    return [VictimBatch(number, client, (number,), ONE) for number, client in enumerate(clients)]


def test_sums_worked_by_hand() -> None:
    numbers = [[batch.number for batch in one] for one in in_sums(of(0, 1, 1, 2, 0, 1), 2)]
    # Client 1 has three and client 0 two; then client 1 has two, and at last all have one.
    assert numbers == [[1, 0], [2, 4], [5, 3]]


def test_alone_every_batch_stays_where_it_is() -> None:
    batches = of(2, 0, 0, 1)
    assert in_sums(batches, 1) == [(batch,) for batch in batches]


@given(st.lists(st.integers(0, 4), max_size=30), st.integers(2, 6))
def test_a_sum_is_of_different_clients_and_no_batch_is_in_two(clients: list[int], size: int) -> None:
    batches = of(*clients)
    sums = in_sums(batches, size)
    assert all(len({batch.client for batch in one}) == len(one) == size for one in sums)
    used = [batch.number for one in sums for batch in one]
    assert len(used) == len(set(used))
    left = {batch.client for batch in batches if batch.number not in used}
    assert len(left) < size, "of what is left no sum can be made"


def sent(images: Images, client: int, hooks: ClientHooks, steps: int = 1) -> tuple[Observation, VictimBatch]:
    victims = tuple(range(10 * client, 10 * client + len(images)))
    batch = VictimBatch(client, client, victims, images, victims)
    return together(
        [
            capture(
                build_model(SPEC),
                init_model(SPEC, 1),
                batch,
                hooks,
                TRAINING,
                local_steps=steps,
                stream=torch_stream(0, client, at),
            )
            for at in range(2)
        ]
    )


def test_the_sum_of_single_gradients_is_that_of_one_batch_of_all_images(blobs: Blobs) -> None:
    images = [blobs(2, seed, side=12) for seed in range(3)]
    seen, truth = aggregated([sent(own, client, NoHooks()) for client, own in enumerate(images)])
    model = build_model(SPEC)
    model.load_state_dict(init_model(SPEC, 1))
    x, y = torch.cat([own.floats() for own in images]), torch.cat([own.labels for own in images])
    gradients = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    for tensor, gradient in zip(seen.update.tensors.values(), gradients, strict=True):
        torch.testing.assert_close(tensor, gradient, atol=1e-6, rtol=1e-4)
    assert (seen.batch_size, seen.update.examples, len(seen.repeats)) == (6, 6, 1)
    assert truth.victims == truth.gallery == (0, 1, 10, 11, 20, 21)
    assert torch.equal(truth.originals, x)
    assert torch.equal(truth.labels, y)
    assert truth.trained is not None
    torch.testing.assert_close(truth.trained, x)


def test_draws_and_repeats_are_summed_time_by_time(blobs: Blobs) -> None:
    both = [sent(blobs(1, seed, side=12), seed, Stateless(PixelNoise(strength=0.3)), steps=2) for seed in range(2)]
    seen, truth = aggregated(both)
    for at, one in enumerate(seen.series):
        for name, tensor in one.update.tensors.items():
            singles = [own.series[at].update.tensors[name] for own, _ in both]
            torch.testing.assert_close(tensor, (singles[0] + singles[1]) / 2)
        assert torch.equal(truth.draws[at], torch.cat([batch.draws[at] for _, batch in both]))
    assert not torch.equal(*truth.draws)


def test_clients_count_by_their_examples(blobs: Blobs) -> None:
    many, few = sent(blobs(3, 0, side=12), 0, NoHooks()), sent(blobs(3, 1, side=12), 1, NoHooks())
    few = replace(few[0], update=replace(few[0].update, examples=1)), few[1]
    seen, _ = aggregated([many, few])
    for name, tensor in seen.update.tensors.items():
        torch.testing.assert_close(tensor, (3 * many[0].update.tensors[name] + few[0].update.tensors[name]) / 4)


def test_what_one_client_sends_alone_is_left_as_it_is(blobs: Blobs) -> None:
    one = sent(blobs(2, 0, side=12), 0, NoHooks())
    seen, truth = aggregated([one])
    assert seen is one[0]
    assert truth is one[1]


def test_a_stack_shows_the_largest_sum_of_its_parts() -> None:
    assert Stack(parts=(TopK(), SecureAggregation(clients=5))).summed == 5
    assert TopK().summed == 1


def test_a_sum_of_one_is_refused() -> None:
    with pytest.raises(FedveilError, match="clients"):
        SecureAggregation(clients=1)
