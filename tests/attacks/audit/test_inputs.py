from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedveil.attacks.audit.inputs import as_floats, as_images, as_labels, as_updates
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import ClientUpdate, UpdateKind
from fedveil.fl.seeding import torch_stream

NAMES = ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"]
PIXELS = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).to(torch.uint8)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))


def change(model: nn.Module, size: float = 0.01) -> dict[str, Tensor]:
    """A weight change by state_dict name, buffers and all."""
    stream = torch_stream(0, "change")
    state = model.state_dict()
    return {
        name: size * torch.randn(value.shape, generator=stream) if value.is_floating_point() else torch.tensor(1)
        for name, value in state.items()
    }


def after(model: nn.Module, size: float = 0.01) -> dict[str, Tensor]:
    return {name: value + change(model, size)[name] for name, value in model.state_dict().items()}


def only(update: list[ClientUpdate]) -> ClientUpdate:
    (one,) = update
    return one


# Images and labels


def test_images_come_in_many_forms() -> None:
    expected = PIXELS.float() / 255
    for given_images in (PIXELS, PIXELS.numpy(), Images(PIXELS, torch.zeros(2, dtype=torch.int64))):
        assert torch.equal(as_floats("images", given_images), expected)
        assert torch.equal(as_images("images", given_images, [0, 1]).pixels, PIXELS)
    assert torch.equal(as_images("images", expected.double(), [0, 1]).pixels, PIXELS)
    grey = as_images("images", PIXELS[:, 0].numpy(), np.array([[1], [0]]))
    assert torch.equal(grey.pixels, PIXELS[:, :1])
    assert grey.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (torch.zeros(4, 5), r"images: expected (n, C, H, W) or (n, H, W), got (4, 5)"),
        (torch.zeros(0, 1, 4, 4), r"images: expected (n, C, H, W) or (n, H, W), got (0, 1, 4, 4)"),
        (np.zeros((2, 28, 28, 3)), r"images: expected channels first, (n, C, H, W), got (2, 28, 28, 3)"),
        (
            torch.tensor([[[-2.0, 1.5]]]),
            "images: expected bytes, or floats in [0, 1]; got values from -2 to 1.5 (clients'",
        ),
        (torch.full((1, 2, 2), torch.nan), "images: expected bytes, or floats in [0, 1]; got values from nan to nan"),
        ([["a"]], "images: can't be read as numbers: "),
        (torch.zeros(1, 4, 4, device="meta"), "images: can't be read as numbers: "),
    ],
)
def test_what_is_no_image_is_refused(images: Any, sentence: str) -> None:
    with pytest.raises(FedveilError) as refusal:
        as_floats("images", images)
    assert str(refusal.value).startswith(sentence)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ([0, 1], "labels: expected 3 whole numbers, got (2,) torch.int64"),
        ([0.0, 1.0, 1.0], "labels: expected 3 whole numbers, got (3,) torch.float64"),
        ([0, 1, 2], "labels: expected classes from 0 to 1, got 0 to 2"),
        ([0, -1, 1], "labels: expected classes from 0 to 1, got -1 to 1"),
    ],
)
def test_what_is_no_label_is_refused(labels: Any, sentence: str) -> None:
    with pytest.raises(FedveilError) as refusal:
        as_labels("labels", labels, 3, classes=2)
    assert str(refusal.value) == sentence


# Updates


def test_a_dict_of_parameters_is_a_gradient_in_the_models_order() -> None:
    model = network()
    gradient = {name: change(model)[name] for name in reversed(NAMES)}
    update = only(as_updates(model, gradient))
    assert (update.kind, update.local_steps) == (UpdateKind.GRADIENT, 1)
    assert [*update.tensors] == NAMES
    assert all(torch.equal(update.tensors[name], gradient[name]) for name in NAMES)
    part = only(as_updates(model, {"3.weight": gradient["3.weight"].double().numpy()}))
    assert [*part.tensors] == ["3.weight"]
    torch.testing.assert_close(part.tensors["3.weight"], gradient["3.weight"])


FORMS = {
    "state_dict delta": lambda model: change(model),
    "state_dict after training": lambda model: after(model),
    "arrays of a state_dict after training": lambda model: [value.numpy() for value in after(model).values()],
    "arrays of a state_dict delta": lambda model: tuple(value.numpy() for value in change(model).values()),
    "arrays of parameters after training": lambda model: [after(model)[name].numpy() for name in NAMES],
    "arrays of parameters' change": lambda model: [change(model)[name] for name in NAMES],
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_weights_and_their_change_come_to_the_same_delta(form: Any) -> None:
    model = network()
    update = only(as_updates(model, form(model)))
    assert (update.kind, update.local_steps) == (UpdateKind.DELTA, 1)
    assert [*update.tensors] == NAMES
    for name in NAMES:
        torch.testing.assert_close(update.tensors[name], change(model)[name], atol=1e-6, rtol=1e-4)


@given(st.floats(1e-4, 0.1))
@settings(max_examples=20)
def test_weights_are_told_from_their_change_up_to_a_large_step(size: float) -> None:
    model = network()
    for arrays in (change(model, size), after(model, size)):
        update = only(as_updates(model, list(arrays.values())))
        torch.testing.assert_close(update.tensors["3.weight"], change(model, size)["3.weight"], atol=1e-6, rtol=1e-3)


def test_frozen_parameters_may_be_left_out_of_a_list() -> None:
    model = network()
    model.get_submodule("0").requires_grad_(False)
    update = only(as_updates(model, [after(model)[name].numpy() for name in NAMES[2:]]))
    assert [*update.tensors] == NAMES[2:]


def test_an_update_says_itself_what_it_is() -> None:
    model = network()
    delta = ClientUpdate.delta(change(model), learning_rate=0.5, local_steps=3)
    update = only(as_updates(model, delta))
    assert (update.kind, update.local_steps, update.learning_rate) == (UpdateKind.DELTA, 3, 0.5)
    assert [*update.tensors] == NAMES


def test_several_updates_are_one_batch_each() -> None:
    model = network()
    gradient = {name: change(model)[name] for name in NAMES}
    arrays = [value.numpy() for value in after(model).values()]
    kinds = [update.kind for update in as_updates(model, [gradient, ClientUpdate.gradient(gradient), arrays])]
    assert kinds == [UpdateKind.GRADIENT, UpdateKind.GRADIENT, UpdateKind.DELTA]


def test_a_shared_parameter_counts_once() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].weight = model[1].weight
    arrays = [value.numpy() + 0.01 for value in model.state_dict().values()]
    assert len(arrays) == 4
    assert [*only(as_updates(model, arrays)).tensors] == ["1.weight", "1.bias", "2.bias"]


def spoilt(name: str, value: Any) -> Any:
    def make(model: nn.Module) -> Any:
        return {**{n: change(model)[n] for n in NAMES}, name: value}

    return make


@pytest.mark.parametrize(
    ("update", "sentence"),
    [
        (
            spoilt("4.weight", torch.ones(2)),
            "update: the model has no parameter '4.weight'; it has 0.weight, 0.bias, 1",
        ),
        (spoilt("3.bias", torch.ones(3)), "update: 3.bias: expected (2,) as in the model, got (3,)"),
        (spoilt("3.bias", torch.tensor([1.0, torch.nan])), "update: 3.bias: holds NaN or infinite entries"),
        (spoilt("3.bias", torch.ones(2, device="meta")), "update: 3.bias: can't be read as numbers: "),
        (lambda model: {}, "update: it holds none of the model's parameters 0.weight, 0.bias, "),
        (lambda model: {"3.bias": torch.zeros(2)}, "update: all entries are 0, so there is nothing to invert"),
        (
            lambda model: [np.ones(2)] * 3,
            "update: a list of 3 arrays does not fit the model, which has 9 in its state_dict, 6 in its parameters, 6",
        ),
        (
            lambda model: {name: after(model)[name] for name in NAMES},
            "update: these look like a client's weights, not like a gradient, and those that the server sent",
        ),
        (
            lambda model: list(model.state_dict().values()),
            "update: these are the very weights that the server sent, so there is nothing to invert",
        ),
        (
            lambda model: [0.5 * model.state_dict()[name] for name in NAMES],
            "update: whether these are a client's weights or their change can't be told",
        ),
        (lambda model: 3, "update: expected an fv.Update, a dict or a list of arrays, got int"),
        (lambda model: None, "update: expected an fv.Update, a dict or a list of arrays, got NoneType"),
    ],
)
def test_what_does_not_fit_is_answered_in_a_sentence(update: Any, sentence: str) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(FedveilError) as refusal:
        as_updates(model, update(model))
    assert str(refusal.value).startswith(sentence)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
