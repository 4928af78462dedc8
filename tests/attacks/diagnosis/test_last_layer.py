from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fedveil as fv
from fedveil.attacks.diagnosis import Finding, Outlook
from fedveil.fl.seeding import torch_stream

Look = Callable[..., dict[str, Finding]]
SHAPE = (1, 6, 6)


def network(*, bias: bool = True) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 8, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(128, 5, bias=bias))


def images(count: int) -> Tensor:
    return torch.rand((count, *SHAPE), generator=torch_stream(0, "images"))


def gradient(model: nn.Module, y: list[int], *, reduction: str = "mean") -> dict[str, Tensor]:
    loss = nn.functional.cross_entropy(model(images(len(y))), torch.tensor(y), reduction=reduction)
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))


def test_the_label_of_one_image_and_its_loss(look: Look) -> None:
    model = network()
    found = look(model, gradient(model, [3]), image_shape=SHAPE)
    assert found["labels"].outlook is Outlook.HELPS
    assert found["labels"].found == "3, by the sign of 3.weight and 3.bias (idlg)"
    probability = model(images(1)).softmax(dim=1)[0, 3].item()
    assert found["loss scale"].found == (
        f"3.bias says a mean error of {1 - probability:.3g} per image,"
        f" a loss of {-torch.tensor(probability).log().item():.2g}"
    )
    assert "loss" not in found


def test_labels_of_a_batch_are_counted(look: Look) -> None:
    model = network()
    found = look(model, gradient(model, [0, 3, 3]), image_shape=SHAPE, batch_size=3)["labels"]
    assert found.found == "0, 3, 3, by simulated training of the layer of 3.weight and 3.bias (simulated)"
    plain = network(bias=False)
    found = look(plain, gradient(plain, [2]), image_shape=SHAPE)
    assert found["labels"].found == "2, by the sign of 3.weight (idlg)"
    assert found["loss scale"].found == "the last layer has no bias in the update"


def test_a_batch_that_nobody_named_is_not_taken_for_the_wrong_sign(look: Look) -> None:
    """Three of four classes are pushed up, as one flipped image would; only the rank tells."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(128, 4))
    update = gradient(model, [0, 1, 2, 2])
    assert int((update["3.bias"] < 0).sum()) == 3
    found = look(model, update, image_shape=SHAPE)
    assert "kind" not in found
    assert found["batch size"].outlook is Outlook.HINDERS
    flipped = {name: -tensor for name, tensor in gradient(model, [2]).items()}
    assert look(model, flipped, image_shape=SHAPE)["kind"].outlook is Outlook.STOPS


def test_a_batch_that_is_larger_than_was_said(look: Look) -> None:
    model = network()
    update = gradient(model, [0, 1, 4])
    found = look(model, update, image_shape=SHAPE, batch_size=2)
    assert found["batch size"].found == "3.bias pushes 3 classes up, so at least so many images are behind it, not 2"
    assert "labels" not in found
    assert "batch size" not in look(model, update, image_shape=SHAPE, batch_size=3)


def test_a_rank_that_one_image_cannot_leave(look: Look) -> None:
    """Three images of one class push no more classes up than one does."""
    model = network()
    update = gradient(model, [2, 2, 2])
    assert int((update["3.bias"] < 0).sum()) == 1
    said = look(model, update, image_shape=SHAPE)["batch size"]
    assert said.outlook is Outlook.HINDERS
    assert said.found.startswith("the gradient of 3.weight has rank 3; one image leaves 1 at most")
    assert said.advice == "say batch_size=3 or more"
    only = gradient(model, [4])
    assert "batch size" not in look(model, only, image_shape=SHAPE)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_rounding_to_half_precision_makes_no_images(look: Look, kind: torch.dtype) -> None:
    model = network()
    halved = {name: tensor.to(kind).float() for name, tensor in gradient(model, [3]).items()}
    assert "batch size" not in look(model, halved, image_shape=SHAPE)


def test_fewer_images_than_were_named(look: Look) -> None:
    model = network()
    said = look(model, gradient(model, [3]), image_shape=SHAPE, batch_size=4)["batch size"]
    assert (said.outlook, said.advice) == (Outlook.NEUTRAL, "try batch_size=1")
    assert "batch size" not in look(model, gradient(model, [0, 1, 2, 3]), image_shape=SHAPE, batch_size=4)


def test_numbers_that_are_no_gradient_are_not_taken_for_a_sure_network(look: Look) -> None:
    model = network()
    stream = torch_stream(0, "numbers")
    numbers = {name: torch.randn(tensor.shape, generator=stream) for name, tensor in gradient(model, [3]).items()}
    bias = [name for name in numbers if name.endswith("bias")][-1]
    numbers[bias] = -numbers[bias].abs()
    found = look(model, fv.Update.gradient(numbers), image_shape=SHAPE)["loss scale"]
    assert "a mean cross-entropy leaves 1 at most" in found.meaning


def test_a_weight_change_that_was_passed_for_a_gradient(look: Look) -> None:
    model = network()
    change = {name: -0.1 * tensor for name, tensor in gradient(model, [3]).items()}
    found = look(model, change, image_shape=SHAPE)["kind"]
    assert (found.outlook, found.advice) == (
        Outlook.STOPS,
        "say fv.Update.delta(...) (or fv.update_between(model, weights), for those after training)",
    )
    said = fv.Update.delta(change, learning_rate=0.1)
    assert look(model, said, image_shape=SHAPE)["labels"].found.startswith("3, ")
    wrong = look(model, fv.Update.delta(gradient(model, [3])), image_shape=SHAPE)["kind"]
    assert wrong.advice == "say fv.Update.gradient(...)"


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_the_share_of_noise_is_measured(look: Look, share: float) -> None:
    model = network()
    update = gradient(model, [3])
    stream = torch_stream(0, "noise")
    last = [update["3.weight"], update["3.bias"]]
    entries, energy = sum(t.numel() for t in last), sum(float(t.square().sum()) for t in last)
    deviation = (share / (1 - share) * energy / entries) ** 0.5
    noisy = {name: t + deviation * torch.randn(t.shape, generator=stream) for name, t in update.items()}
    found = look(model, noisy, image_shape=SHAPE)["loss"]
    # Over 129 columns; the share's own deviation is about sqrt(2 / 129) of it.
    assert float(found.found.split()[0]) == pytest.approx(share, rel=0.3)
    assert ("most" in found.meaning) == (share == 0.9)
    assert found.outlook is Outlook.HINDERS


def test_another_loss_is_told_from_cross_entropy(look: Look) -> None:
    model = network()
    truth = nn.functional.one_hot(torch.tensor([3]), 5).float()
    loss = nn.functional.binary_cross_entropy_with_logits(model(images(1)), truth)
    names = [name for name, _ in model.named_parameters()]
    update = dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))
    assert look(model, update, image_shape=SHAPE)["loss"].outlook is Outlook.HINDERS


def test_a_sum_over_the_batch_is_no_mean(look: Look) -> None:
    model = network()
    mean, total = (gradient(model, [0, 1, 2, 3], reduction=kind) for kind in ("mean", "sum"))
    found = look(model, total, image_shape=SHAPE, batch_size=4)["loss scale"]
    assert found.outlook is Outlook.HINDERS
    mass = float(total["3.bias"].clamp(min=0).sum())
    assert f"multiplies it by {mass:.3g} or more" in found.meaning
    assert look(model, mean, image_shape=SHAPE, batch_size=4)["loss scale"].outlook is Outlook.NEUTRAL


def test_a_network_that_is_sure_of_its_images(look: Look) -> None:
    model = network()
    with torch.no_grad():
        model[3].bias[3] += 30.0  # type: ignore[index, operator, union-attr]
    found = look(model, gradient(model, [3]), image_shape=SHAPE)["loss scale"]
    assert found.outlook is Outlook.HINDERS
    assert found.meaning.startswith("the network is sure of these images")


def test_a_change_of_unknown_rate_has_no_scale(look: Look) -> None:
    model = network()
    change = {name: -0.01 * t for name, t in gradient(model, [0, 3, 3]).items()}
    found = look(model, fv.Update.delta(change), image_shape=SHAPE, batch_size=3)
    assert found["loss scale"].found == "the learning rate is not known"
    assert found["labels"].outlook is Outlook.NEUTRAL
    # The likeliest rate stands in, as in an audit.
    assert found["labels"].found.startswith("0, 3, 3, ")


def test_labels_without_a_last_layer(look: Look) -> None:
    model = network()
    update = {name: t for name, t in gradient(model, [3]).items() if not name.startswith("3.")}
    found = look(model, fv.Update.gradient(update), image_shape=SHAPE)
    assert found["labels"].outlook is Outlook.HINDERS
    assert found["labels"].meaning.startswith("the update lacks the last layer (3.weight and 3.bias)")
    assert "loss scale" not in found


def test_steps_of_adam_obey_no_law(look: Look) -> None:
    model = network()
    change = {name: -0.001 * t.sign() for name, t in gradient(model, [3]).items()}
    found = look(model, fv.Update.delta(change, learning_rate=0.001, optimizer="adam"), image_shape=SHAPE)
    assert "loss" not in found
    assert "loss scale" not in found
    assert found["optimiser"].found.startswith("Adam(")
