from __future__ import annotations

import math
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
from fedveil.defense import DEFENSES
from fedveil.fl.seeding import torch_stream

Look = Callable[..., dict[str, Finding]]
SHAPE = (1, 2, 2)
X = torch.tensor([0.1, 0.2, 0.3, 0.4]).view(1, 1, 2, 2)
FITS = "the gradient of 1.weight is what one image leaves at the weights given, to "


def linear(bias: list[float]) -> nn.Module:
    """Zero weights, so that the bias alone makes the probabilities."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, len(bias)))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.tensor(bias))
    return model


def left(error: list[float], *, factor: float = 1.0) -> dict[str, Tensor]:
    """What the image X leaves where softmax - onehot is ``error``."""
    e = factor * torch.tensor(error)
    return {"1.weight": e[:, None] * X.view(1, 4), "1.bias": e}


def gradient(model: nn.Module, x: Tensor, y: list[int], **loss: Any) -> dict[str, Tensor]:
    names = [name for name, _ in model.named_parameters()]
    value = F.cross_entropy(model(x), torch.tensor(y), **loss)
    return dict(zip(names, torch.autograd.grad(value, list(model.parameters())), strict=True))


def network(seed: int, classes: int, *, dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(216, classes))


def images(seed: int, count: int = 1) -> Tensor:
    return torch.rand((count, 1, 8, 8), generator=torch_stream(seed, "images"))


def test_other_weights_worked_by_hand(look: Look) -> None:
    # At a bias of 0 all three classes have 1/3; at (log 2, 0, 0) they have 1/2, 1/4 and 1/4.
    update = fv.Update.gradient(left([1 / 3, 1 / 3, -2 / 3]))
    right = look(linear([0.0, 0.0, 0.0]), update, image_shape=SHAPE)["weights"]
    assert (right.outlook, right.found[: len(FITS)]) == (Outlook.NEUTRAL, FITS)
    wrong = look(linear([math.log(2), 0.0, 0.0]), update, image_shape=SHAPE)["weights"]
    assert wrong.outlook is Outlook.HINDERS
    assert wrong.found == "the gradient of 1.weight is not what one image leaves at the weights given"
    assert "several local steps" not in wrong.meaning
    assert "set inputs" not in wrong.meaning


def test_a_scaled_update_is_told_from_other_weights(look: Look) -> None:
    clipped = fv.Update.gradient(left([1 / 3, 1 / 3, -2 / 3], factor=0.25))
    found = look(linear([0.0, 0.0, 0.0]), clipped, image_shape=SHAPE)["weights"]
    assert (found.outlook, found.found) == (
        Outlook.NEUTRAL,
        "the gradient of 1.weight is 0.25 times what one image leaves at the weights given",
    )


@pytest.mark.parametrize("rate", [None, 1.0])
def test_the_wrong_kind_is_told_from_other_weights(look: Look, rate: float | None) -> None:
    # Taken for a weight change a gradient changes its sign; of three classes one image pushes up two then, as a batch might.
    taken = fv.Update.delta(left([1 / 3, 1 / 3, -2 / 3]), learning_rate=rate)
    found = look(linear([0.0, 0.0, 0.0]), taken, image_shape=SHAPE)
    assert "weights" not in found
    assert (found["kind"].outlook, found["kind"].advice) == (Outlook.STOPS, "say fv.Update.gradient(...)")


def test_smoothed_labels_are_told_from_other_weights(look: Look) -> None:
    # Of 0.3: labels (0.1, 0.1, 0.8), at probabilities 1/2, 1/4, 1/4.
    update = fv.Update.gradient(left([0.4, 0.15, -0.55]))
    found = look(linear([math.log(2), 0.0, 0.0]), update, image_shape=SHAPE)["weights"]
    assert found.outlook is Outlook.NEUTRAL
    assert found.found.endswith("its label smoothed by 0.3")


@pytest.mark.parametrize("rate", [None, 0.1])
def test_of_two_classes_the_size_is_all_that_tells(look: Look, rate: float | None) -> None:
    change = {name: -0.1 * tensor for name, tensor in left([0.5, -0.5]).items()}
    update = fv.Update.delta(change, learning_rate=rate)
    right, wrong = (look(linear(bias), update, image_shape=SHAPE) for bias in ([0.0, 0.0], [1.0, 0.0]))
    if rate is None:
        assert "weights" not in {**right, **wrong}
    else:
        assert right["weights"].found.startswith(FITS)
        assert wrong["weights"].outlook is Outlook.HINDERS
        assert "several images; a label of several classes; a clipped or scaled update" in wrong["weights"].meaning


def test_of_three_classes_the_direction_tells_without_a_rate(look: Look) -> None:
    update = fv.Update.delta(left([1 / 3, 1 / 3, -2 / 3], factor=-0.017))
    right = look(linear([0.0, 0.0, 0.0]), update, image_shape=SHAPE)["weights"].found
    assert right.startswith(FITS)
    assert right.endswith(", up to its size")
    wrong = look(linear([math.log(2), 0.0, 0.0]), update, image_shape=SHAPE)["weights"]
    assert wrong.outlook is Outlook.HINDERS
    assert "several local steps" in wrong.meaning


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    classes=st.integers(2, 9),
    dropout=st.sampled_from([0.0, 0.5]),
    precision=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_an_update_at_the_weights_given_is_never_accused(
    seed: int, classes: int, dropout: float, precision: torch.dtype
) -> None:
    model = network(seed, classes, dropout=dropout).train()
    update = {n: g.to(precision).float() for n, g in gradient(model, images(seed), [seed % classes]).items()}
    found = diagnose(model, fv.Update.gradient(update), image_shape=(1, 8, 8)).findings
    outlooks = [one.outlook for one in found if one.what == "weights"]
    assert outlooks in ([], [Outlook.NEUTRAL])
    # Nothing but the sum over classes of numbers that were rounded keeps it from telling.
    assert outlooks or precision is not torch.float32


@pytest.mark.parametrize("classes", [2, 3, 8])
def test_the_next_rounds_weights_are_noticed(look: Look, classes: int) -> None:
    before, after = network(0, classes), network(0, classes)
    optimizer = torch.optim.SGD(after.parameters(), lr=0.1)
    for step in range(5):
        optimizer.zero_grad()
        F.cross_entropy(after(images(step, 4)), torch.arange(4) % classes).backward()
        optimizer.step()
    update = gradient(before, images(9), [1])
    assert look(before, update, image_shape=(1, 8, 8))["weights"].outlook is Outlook.NEUTRAL
    assert look(after, fv.Update.gradient(update), image_shape=(1, 8, 8))["weights"].outlook is Outlook.HINDERS


class Tempered(nn.Module):
    """Divides the logits of its last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network(0, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.net(x)) / 3


def test_where_it_cannot_tell_it_says_nothing(look: Look) -> None:
    model, x = network(0, 3), images(0, 4)
    noise = torch_stream(0, "noise")
    one = gradient(model, x[:1], [1])
    silent = {
        "a batch": (model, gradient(model, x, [0, 1, 2, 2]), 4),
        "a batch that was said to be one image": (model, gradient(model, x, [0, 1, 2, 2]), 1),
        "several steps": (model, fv.client_update(model, x[:1], [1], local_steps=3)[0], 1),
        "no bias": (model, {name: g for name, g in one.items() if name != "4.bias"}, 1),
        "noise": (model, {n: g + 0.01 * torch.randn(g.shape, generator=noise) for n, g in one.items()}, 1),
        "a layer that does not give the logits": (Tempered(), gradient(Tempered(), x[:1], [1]), 1),
        "entries that were left out": (model, fv.client_update(model, x[:1], [1], defense=DEFENSES["top_k"]())[0], 1),
    }
    told = {
        why: found["weights"].line
        for why, (net, update, size) in silent.items()
        if "weights" in (found := look(net, as_gradient(update), image_shape=(1, 8, 8), batch_size=size))
    }
    assert told == {}


def as_gradient(update: Any) -> Any:
    return fv.Update.gradient(update) if isinstance(update, dict) else update


def test_signs_of_two_classes_say_nothing_of_the_weights(look: Look) -> None:
    """Their sum over classes is 0 as that of a gradient, and their ratio an input of ones."""
    model = network(0, 2)
    signs = {name: 1e-3 * g.sign() for name, g in gradient(model, images(0), [1]).items()}
    assert "weights" not in look(model, fv.Update.gradient(signs), image_shape=(1, 8, 8))


def test_a_defence_that_sets_inputs_to_0_is_among_the_causes(look: Look) -> None:
    model = network(0, 3)
    update, _ = fv.client_update(model, images(0), [1], defense=DEFENSES["soteria"](prune=0.3))
    zeros = int((~update.tensors["4.weight"].any(dim=0)).sum())
    assert zeros < 216
    found = look(model, update, image_shape=(1, 8, 8))["weights"]
    assert f"a defence that set inputs of that layer to 0, as {zeros} of 216 are" in found.meaning
