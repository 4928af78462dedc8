from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedveil.attacks import DeepLeakage
from fedveil.attacks.adaptive.shares import Reading, WithShares, on_simplex
from fedveil.attacks.base import Knowledge, Observation
from fedveil.attacks.target.model import target_model
from fedveil.fl.data.images import Images
from fedveil.fl.hooks import NoHooks
from fedveil.fl.messages import ThreatModel, UpdateKind
from fedveil.fl.models import ModelSpec, build_model, init_model
from fedveil.fl.seeding import torch_stream
from fedveil.fl.training import LocalTraining, local_update

SPEC = ModelSpec("lenet", (1, 12, 12), 3, width=6)


class Halves(NoHooks):
    """Labels become shares that are known; images stay."""

    def __init__(self, shares: Tensor) -> None:
        self.shares = shares

    def batch(self, model: nn.Module, x: Tensor, y: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        return x, self.shares


def evenly(model: nn.Module, x: Tensor, y: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
    """A law of shares as an attacker knows it: half of the image's class, of each other class 0.15 to 0.35."""
    one = 0.15 + 0.2 * torch.rand(len(x), generator=stream)
    shares = torch.stack([torch.full_like(one, 0.5), one, 0.5 - one], dim=1)
    return x, shares.gather(1, (torch.arange(3) - y[:, None]) % 3)


def observed(shares: Tensor, seed: int = 1) -> tuple[Observation, Tensor]:
    x = torch.rand((len(shares), 1, 12, 12), generator=torch_stream(seed, "images"))
    images = Images((x * 255).round().to(torch.uint8), shares.argmax(1))
    weights = init_model(SPEC, 0)
    training = LocalTraining(UpdateKind.GRADIENT, 1, len(x), 0.1)
    result = local_update(
        build_model(SPEC), weights, images, Halves(shares), training, torch.Generator().manual_seed(0)
    )
    # Local training draws the order of a batch; shares go by rows of it.
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    observation = Observation(0, 0, result.update, weights, len(x), labels=images.labels)
    return observation, images.floats()[order]


@pytest.fixture
def knowledge() -> Knowledge:
    target = target_model(build_model(SPEC), image_shape=SPEC.image_shape, classes=SPEC.classes)
    auxiliary = Images(
        torch.randint(256, (60, 1, 12, 12), generator=torch_stream(0, "known"), dtype=torch.uint8), torch.arange(60) % 3
    )
    return Knowledge(
        ThreatModel(auxiliary_data=True, defense_algorithm=True),
        target,
        torch.device("cpu"),
        seed=0,
        auxiliary=auxiliary,
    )


def test_the_nearest_shares_by_hand() -> None:
    """What is too much is taken off evenly, and a class that would fall below 0 has none."""
    found = on_simplex(torch.tensor([[0.5, 0.5], [2.0, -1.0], [0.8, 0.4]]))
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.7, 0.3]]))


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=7), st.integers(0, 99))
def test_no_other_shares_are_nearer(values: list[float], seed: int) -> None:
    point = torch.tensor([values], dtype=torch.float64)
    found = on_simplex(point)
    assert float(found.min()) >= 0
    assert float(found.sum()) == pytest.approx(1)
    others = torch.rand((50, len(values)), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    others = torch.cat([others / others.sum(1, keepdim=True), torch.eye(len(values), dtype=torch.float64)])
    # The projection onto a convex set: every point of it lies behind the plane through the projection.
    assert float(((point - found) * (others - found)).sum(1).max()) <= 1e-9


def test_shares_are_read_off_exactly_where_the_images_are_at_hand(knowledge: Knowledge) -> None:
    shares = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.9, 0.0], [0.2, 0.2, 0.6]])
    observation, images = observed(shares)
    told = replace(observation, shares=torch.full((3, 3), 1 / 3))
    torch.testing.assert_close(
        Reading(evenly, knowledge).of_images(told, torch.tensor([0, 1, 2]), images).float(), shares, atol=1e-4, rtol=0
    )


def test_the_shares_of_one_image_are_about_known_before_it_is_inverted(knowledge: Knowledge) -> None:
    shares = torch.tensor([[0.7, 0.05, 0.25]])
    observation, _ = observed(shares)
    found = Reading(evenly, knowledge).expected(observation, torch.tensor([0]))
    assert float((found - shares).abs().max()) < 0.05
    # Nothing but the law is known where the last layer stays unsent.
    tensors = {name: own for name, own in observation.update.tensors.items() if not name.startswith("head")}
    headless = replace(observation, update=replace(observation.update, tensors=tensors))
    law = Reading(evenly, knowledge).expected(headless, torch.tensor([0])).float()
    torch.testing.assert_close(law, torch.tensor([[0.5, 0.25, 0.25]]), atol=0.05, rtol=0)


def beside(model: nn.Module, x: Tensor, y: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
    """An image of another class is added to each, whose label is shared."""
    whole = torch.eye(3)[y]
    other = torch.eye(3)[(y + 1 + torch.randint(2, y.shape, generator=stream)) % 3]
    return torch.cat([x, 1 - x]), torch.cat([whole, 0.7 * other + 0.3 * whole])


def test_of_added_images_the_shares_are_read_and_the_clients_own_labels_stay(knowledge: Knowledge) -> None:
    shares = torch.tensor([[1.0, 0.0, 0.0], [0.3, 0.0, 0.7]])
    observation, images = observed(shares)
    reading, own = Reading(beside, knowledge), torch.tensor([0])
    alone = replace(observation, batch_size=1, labels=own)
    first = reading.expected(alone, own)
    assert torch.equal(first[0].float(), shares[0])
    assert float((first[1] - shares[1]).abs().max()) < 0.1
    told = replace(observation, shares=first.float())
    torch.testing.assert_close(reading.of_images(told, own, images).float(), shares, atol=1e-4, rtol=0)


def test_an_inversion_that_reads_shares_finds_what_one_that_is_told_whole_labels_does_not(knowledge: Knowledge) -> None:
    observation, images = observed(torch.tensor([[0.6, 0.4, 0.0]]))
    plain = DeepLeakage(steps=120)
    informed = WithShares(plain, evenly)

    def error(inversion: DeepLeakage | WithShares) -> float:
        (found,) = inversion.invert([observation], knowledge)
        assert torch.equal(found.labels, torch.tensor([0]))
        return float((found.images - images).square().mean())

    assert error(informed) < 1e-3
    assert error(plain) > 10 * error(informed)
