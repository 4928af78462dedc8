from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from perceptron import SHAPE, network, noise

import fedveil as fv
from fedveil.attacks.diagnosis import Finding, Outlook, diagnose
from fedveil.fl.seeding import torch_stream

Look = Callable[..., dict[str, Finding]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_broken_numbers_are_counted_and_named(look: Look, value: float) -> None:
    update = noise(network())
    update["1.bias"][:2] = value
    found = look(network(), fv.Update.gradient(update), image_shape=SHAPE)["values"]
    assert (found.outlook, found.found) == (Outlook.STOPS, "2 NaN or infinite entries, in 1.bias")


def test_an_update_of_zeros_has_nothing_in_it() -> None:
    update = {name: torch.zeros_like(tensor) for name, tensor in noise(network()).items()}
    found = diagnose(network(), update, image_shape=SHAPE)
    assert [(one.what, one.outlook) for one in found.findings] == [("update", Outlook.STOPS)]
    assert found.verdict == "can't be inverted as it is: update"
    assert found.layers == ()
    update["1.weight"][0, 0] = math.nan
    assert [one.what for one in diagnose(network(), update, image_shape=SHAPE).findings] == ["values", "update"]


def test_norms_of_layers_worked_by_hand() -> None:
    model = network()
    update = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    update["1.weight"][0, :2] = torch.tensor([2.0, 4.0])
    update["1.bias"][0] = 4.0
    update["3.bias"][:2] = torch.tensor([8.0, -8.0])
    first, last = diagnose(model, fv.Update.gradient(update), image_shape=SHAPE).layers
    assert (first.name, first.numbers, first.sent, first.norm) == ("1", 64 * 64 + 64, 3, 6.0)
    assert (last.name, last.numbers, last.sent) == ("3", 4 * 64 + 4, 2)
    assert last.norm == pytest.approx(128**0.5)
    assert first.share == pytest.approx(6 / 164**0.5)


@pytest.mark.parametrize(("factor", "outlook"), [(1.0, Outlook.NEUTRAL), (1e-6, Outlook.HINDERS)])
def test_a_gradient_that_vanishes_on_its_way_to_the_images(look: Look, factor: float, outlook: Outlook) -> None:
    update = {name: t * (factor if name.startswith("1.") else 1.0) for name, t in noise(network()).items()}
    assert look(network(), fv.Update.gradient(update), image_shape=SHAPE)["gradient"].outlook is outlook


def test_a_missing_layer_hinders_unless_the_model_has_it_frozen(look: Look) -> None:
    model = network()
    update = {name: tensor for name, tensor in noise(model).items() if not name.startswith("1.")}
    found = look(model, fv.Update.gradient(update), image_shape=SHAPE)["parameters"]
    assert found.outlook is Outlook.HINDERS
    # (64 * 64 + 64) / (64 * 64 + 64 + 4 * 64 + 4) = 4160 / 4420 = 94 %
    assert found.found == "2 of 4 parameters are not in it (1.weight, 1.bias), 94% of the numbers"
    small = {name: tensor for name, tensor in noise(model).items() if not name.startswith("3.")}
    assert look(model, fv.Update.gradient(small), image_shape=SHAPE)["parameters"].outlook is Outlook.NEUTRAL
    for parameter in model[1].parameters():  # type: ignore[index]
        parameter.requires_grad_(False)
    frozen = look(model, fv.Update.gradient(update), image_shape=SHAPE)["parameters"]
    assert (frozen.outlook, frozen.meaning[:27]) == (Outlook.NEUTRAL, "the model has them frozen, ")
    assert "parameters" not in look(model, fv.Update.gradient(noise(model)), image_shape=SHAPE)


@pytest.mark.parametrize(
    ("levels", "text", "outlook"),
    [
        (1, "one size each, so signs alone, 1 bit(s)", Outlook.HINDERS),
        (4, "8 distinct values at most, 3 bit(s)", Outlook.HINDERS),
        (50, "100 distinct values at most, 7 bit(s)", Outlook.NEUTRAL),
    ],
)
def test_few_distinct_values_are_quantisation(look: Look, levels: int, text: str, outlook: Outlook) -> None:
    model = network(width=256)
    stream = torch_stream(0, "levels")
    update = {}
    for name, parameter in model.named_parameters():
        size = torch.randint(1, levels + 1, parameter.shape, generator=stream)
        sign = 2 * torch.randint(0, 2, parameter.shape, generator=stream) - 1
        update[name] = 0.0123 * (size * sign).float()
    found = look(model, fv.Update.gradient(update), image_shape=SHAPE)["quantisation"]
    assert text in found.found
    assert found.outlook is outlook


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_numbers_that_went_through_half_precision(look: Look, kind: torch.dtype) -> None:
    update = {name: tensor.to(kind).float() for name, tensor in noise(network()).items()}
    found = look(network(), fv.Update.gradient(update), image_shape=SHAPE)
    assert found["precision"].found == f"every number is a {str(kind)[6:]}"
    assert "precision" not in look(network(), fv.Update.gradient(noise(network())), image_shape=SHAPE)
