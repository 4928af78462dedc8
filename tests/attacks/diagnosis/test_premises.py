from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import fedveil as fv
from fedveil.attacks.diagnosis import Finding, Outlook, diagnose
from fedveil.fl.seeding import torch_stream

Look = Callable[..., dict[str, Finding]]
SHAPE = (1, 8, 8)
OF_THESE = {"loss", "loss scale", "labels", "batch size", "network", "brightness", "randomness"}
"""What nothing can be said of where a premise fails."""


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 6, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(216, 5))


def gradient(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    x = torch.rand((1, *SHAPE), generator=torch_stream(seed, "images"))
    parts = torch.autograd.grad(F.cross_entropy(model(x), torch.tensor([seed % 5])), list(model.parameters()))
    return {name: part for (name, _), part in zip(model.named_parameters(), parts, strict=True)}


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_the_cause_and_no_other_is_named(look: Look, value: float) -> None:
    model = network()
    update = fv.Update.gradient(gradient(model))
    with torch.no_grad():
        model[0].weight.view(-1)[:2] = value
    found = look(model, update, image_shape=SHAPE)
    assert found["weights"].outlook is Outlook.STOPS
    assert found["weights"].found == "2 of the model's numbers are NaN or infinite, in 0.weight"
    assert not OF_THESE & set(found)
    assert found["gradient"].outlook is Outlook.NEUTRAL  # the update's own numbers are looked at all the same


def test_a_running_variance_that_is_no_number(look: Look) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 3))
    update = fv.Update.gradient(gradient(model.eval(), 1))
    model[1].running_var[0] = torch.nan
    assert look(model, update, image_shape=SHAPE)["weights"].found.endswith("in 1.running_var")


def test_weights_at_which_no_image_has_influence(look: Look) -> None:
    model = network()
    update = fv.Update.gradient(gradient(model))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    found = look(model, update, image_shape=SHAPE)
    assert found["weights"].outlook is Outlook.STOPS
    assert (
        found["weights"].found == "all images that were tried leave the same gradient at the weights given, which are 0"
    )
    assert not OF_THESE & set(found)


def test_a_network_asleep(look: Look) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3))
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    found = look(model, fv.Update.gradient(gradient(model, 1)), image_shape=SHAPE)["weights"]
    assert found.found.endswith(": no unit that sees them is awake")


def test_a_linear_model_that_starts_at_0_is_solved_for(look: Look) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    found = diagnose(model, fv.Update.gradient(gradient(model, 1)), image_shape=SHAPE)
    assert found.verdict == "images can be solved for"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("taken", ["gradient", "delta"])
def test_weights_after_training_are_told_from_a_gradient_and_a_change(look: Look, taken: str, seed: int) -> None:
    model = network(seed)
    learnt = gradient(model, seed)
    after = {name: tensor.detach() - 0.1 * learnt[name] for name, tensor in model.named_parameters()}
    update = fv.Update.gradient(after) if taken == "gradient" else fv.Update.delta(after)
    found = look(model, update, image_shape=SHAPE)
    assert (found["kind"].outlook, found["kind"].advice) == (Outlook.STOPS, "say fv.update_between(model, weights)")
    assert not OF_THESE & set(found)


@pytest.mark.parametrize("rate", [None, -0.1])
def test_what_the_weights_were_taken_from_for_nothing(look: Look, rate: float | None) -> None:
    model = network()
    learnt = gradient(model)
    given = learnt if rate is None else {name: rate * tensor for name, tensor in learnt.items()}
    found = look(model, fv.update_between(model, given), image_shape=SHAPE)["kind"]
    assert (found.outlook, found.advice) == (
        Outlook.STOPS,
        "say fv.Update.gradient(...), or fv.Update.delta(...)",
    )


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 9),
    rate=st.sampled_from([0.001, 0.1, 1.0, 10.0]),
    kind=st.sampled_from(["gradient", "delta", "weights"]),
    decay=st.sampled_from([0.0, 0.3]),
)
def test_an_update_of_the_kind_it_was_taken_for_is_never_accused(
    seed: int, rate: float, kind: str, decay: float
) -> None:
    model = network(seed)
    learnt = gradient(model, seed)
    change = {name: -rate * learnt[name] - decay * tensor.detach() for name, tensor in model.named_parameters()}
    given: Any = {
        "gradient": lambda: fv.Update.gradient(learnt),
        "delta": lambda: fv.Update.delta(change),
        "weights": lambda: fv.update_between(
            model, {name: tensor.detach() + change[name] for name, tensor in model.named_parameters()}
        ),
    }[kind]()
    found = diagnose(model, given, image_shape=SHAPE).findings
    assert not [one for one in found if one.what == "kind"]


def test_an_update_that_says_no_kind_is_understood_by_its_looks(look: Look) -> None:
    model = network()
    assert "kind" not in look(model, gradient(model), image_shape=SHAPE)


@pytest.mark.parametrize("steps", [1, 3])
def test_weights_that_moved_far_are_told_by_the_law_of_the_last_layer(look: Look, steps: int) -> None:
    model = network()
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    for _ in range(steps):  # of a rate at which the weights are soon others altogether
        learnt = gradient(model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter -= learnt[name]
    after = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    model.load_state_dict(before)
    for taken in (after, fv.Update.gradient(after), fv.Update.delta(after)):  # by its looks, and as it was said
        found = look(model, taken, image_shape=SHAPE)["kind"]
        assert (found.outlook, found.advice) == (Outlook.STOPS, "say fv.update_between(model, weights)")
        assert "does not sum to 0 over classes" in found.found


def test_a_large_gradient_from_which_weights_were_taken_is_told_by_the_law(look: Look) -> None:
    model = network()
    learnt = {name: 2 * tensor for name, tensor in gradient(model).items()}
    found = look(model, fv.update_between(model, learnt), image_shape=SHAPE)["kind"]
    assert found.outlook is Outlook.STOPS
    assert "its sum with the weights that the server sent does" in found.found
