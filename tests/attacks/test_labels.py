from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedveil.attacks import Observation
from fedveil.attacks.labels import labels_of, recover_label
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import ClientUpdate, UpdateKind
from fedveil.fl.models import ModelSpec
from fedveil.fl.seeding import torch_stream

MODELS = {
    "lenet": ModelSpec("lenet", (1, 16, 16), 4, width=4),
    "convnet-group": ModelSpec("convnet", (1, 16, 16), 4, width=4),
    "convnet-none": ModelSpec("convnet", (1, 16, 16), 4, norm="none", width=4),
    "resnet20-batch": ModelSpec("resnet20", (1, 16, 16), 4, norm="batch", width=4),
}


def sent(kind: UpdateKind = UpdateKind.GRADIENT, **tensors: Tensor) -> ClientUpdate:
    return ClientUpdate(tensors, examples=1, kind=kind, local_steps=1, learning_rate=0.1)


def last_layer(logits: Tensor, label: int, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of cross-entropy by theory: softmax - onehot at the bias, its outer product with the inputs at W."""
    bias = logits.softmax(0)
    bias[label] -= 1
    return bias.outer(inputs), bias


def test_the_bias_tells_by_hand() -> None:
    # softmax (0.2, 0.3, 0.5), label 1.
    update = sent(weight=torch.zeros(3, 2), bias=torch.tensor([0.2, -0.7, 0.5]))
    assert recover_label(update, batch_size=1, classes=3).tolist() == [1]


def test_without_a_bias_the_row_sums_tell_by_hand() -> None:
    # Inputs (1, 2), softmax (0.2, 0.3, 0.5), label 2; no single entry of a row decides.
    rows = torch.tensor([0.2, 0.3, -0.5]).outer(torch.tensor([1.0, 2.0]))
    assert recover_label(sent(weight=rows), batch_size=1, classes=3).tolist() == [2]


def test_the_largest_entry_alone_does_not_tell() -> None:
    assert recover_label(sent(bias=torch.tensor([0.9, -0.3, -0.6])), batch_size=1, classes=3).tolist() == [2]


@given(st.integers(0, 10_000), st.integers(2, 12), st.floats(0.1, 8.0), st.booleans(), st.booleans())
@settings(deadline=None, max_examples=60)
def test_theory_gives_the_label_for_any_logits(
    seed: int, classes: int, spread: float, with_bias: bool, as_delta: bool
) -> None:
    stream = torch_stream(seed, "logits")
    logits = spread * torch.randn(classes, generator=stream, dtype=torch.float64)
    label = int(torch.randint(classes, (1,), generator=stream))
    inputs = torch.rand(5, generator=stream, dtype=torch.float64) + 0.01
    weight, bias = last_layer(logits, label, inputs)
    tensors = {"weight": weight, "bias": bias} if with_bias else {"weight": weight}
    if as_delta:
        tensors = {name: -0.1 * tensor for name, tensor in tensors.items()}
    update = sent(UpdateKind.DELTA if as_delta else UpdateKind.GRADIENT, **tensors)
    assert recover_label(update, batch_size=1, classes=classes).tolist() == [label]


@pytest.mark.parametrize("label", [0, 3])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("spec", MODELS.values(), ids=MODELS.keys())
def test_the_label_of_a_real_update_is_recovered(
    spec: ModelSpec,
    steps: int,
    label: int,
    blobs: Callable[..., Images],
    observe: Callable[..., Observation],
) -> None:
    images = replace(blobs(1, label), labels=torch.tensor([label]))
    update = observe(images, spec, steps=steps).update
    assert update.kind is (UpdateKind.DELTA if steps > 1 else UpdateKind.GRADIENT)
    assert recover_label(update, batch_size=1, classes=4).tolist() == [label]
    without_bias = replace(update, tensors=dict(list(update.tensors.items())[:-1]))
    assert recover_label(without_bias, batch_size=1, classes=4).tolist() == [label]


def test_the_sign_of_a_delta_is_turned() -> None:
    bias = torch.tensor([0.2, -0.7, 0.5])
    assert recover_label(sent(UpdateKind.DELTA, bias=bias), batch_size=1, classes=3).tolist() == [2]
    assert recover_label(sent(UpdateKind.DELTA, bias=-bias), batch_size=1, classes=3).tolist() == [1]


def test_more_than_one_image_is_refused() -> None:
    with pytest.raises(FedveilError, match="labels are unknown and 2 images are behind one update"):
        recover_label(sent(bias=torch.tensor([0.5, -0.5])), batch_size=2, classes=2)


def test_the_last_layer_is_found_by_its_outputs() -> None:
    # A head that is followed by a scale of its own, as some models have it.
    update = sent(weight=torch.zeros(3, 2), bias=torch.tensor([0.2, -0.7, 0.5]), scale=torch.tensor([4.0]))
    assert recover_label(update, batch_size=1, classes=3).tolist() == [1]


def test_an_update_without_the_last_layer_is_refused() -> None:
    with pytest.raises(FedveilError, match="no parameter of the update belongs to a last layer of 5 outputs"):
        recover_label(sent(weight=torch.zeros(3, 2)), batch_size=1, classes=5)


def test_granted_labels_are_used_as_they_are() -> None:
    update = sent(bias=torch.tensor([0.2, -0.7, 0.5]))
    observation = Observation(0, 0, update, {}, 1)
    assert labels_of(observation, classes=3).tolist() == [1]
    assert labels_of(replace(observation, labels=torch.tensor([2])), classes=3).tolist() == [2]
