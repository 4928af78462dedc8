from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fedveil as fv
from fedveil.attacks.diagnosis import Finding, Outlook, diagnose
from fedveil.fl.errors import FedveilError
from fedveil.fl.seeding import torch_stream

Look = Callable[..., dict[str, Finding]]


def linear(pixels: int, width: int = 40) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(pixels, width), nn.ReLU(), nn.Linear(width, 6))


def gradient(model: nn.Module, shape: tuple[int, int, int], y: list[int]) -> dict[str, Tensor]:
    x = torch.rand((len(y), *shape), generator=torch_stream(0, "images"))
    loss = nn.functional.cross_entropy(model(x), torch.tensor(y))
    return {
        n: g for (n, _), g in zip(model.named_parameters(), torch.autograd.grad(loss, model.parameters()), strict=True)
    }


@pytest.mark.parametrize(
    ("size", "outlook", "text"),
    [
        # 2 x 4 weights and 2 biases.
        (2, Outlook.HELPS, "10 numbers that are not 0, for 2 image(s) of 1x2x2 = 8 pixels"),
        (4, Outlook.HINDERS, "10 numbers that are not 0, for 4 image(s) of 1x2x2 = 16 pixels"),
    ],
)
def test_unknowns_and_equations_worked_by_hand(look: Look, size: int, outlook: Outlook, text: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    update = fv.Update.gradient({"1.weight": torch.ones(2, 4), "1.bias": torch.ones(2)})
    found = look(model, update, image_shape=(1, 2, 2), batch_size=size)["equations"]
    assert (found.outlook, found.found) == (outlook, text)
    if outlook is Outlook.HINDERS:
        # 6 of 16 pixels have no equation.
        assert found.meaning.startswith("at least 38% ")


def test_one_image_behind_a_linear_layer_is_solved_for(look: Look) -> None:
    model = linear(64)
    update = gradient(model, (1, 8, 8), [2])
    found = look(model, update, image_shape=(1, 8, 8))["first layer"]
    assert found.outlook is Outlook.SOLVES
    assert found.found == "1.weight and 1.bias are linear in all pixels, with a gradient of rank 1"
    x = torch.rand((1, 1, 8, 8), generator=torch_stream(0, "images"))
    report = fv.audit(model, update, labels=torch.tensor([2]), image_shape=(1, 8, 8), attacks=[fv.Analytic()])
    assert torch.allclose(report.reconstructions["analytic"], x, atol=1e-4)


def test_the_rank_counts_the_images(look: Look) -> None:
    model = linear(64)
    update = gradient(model, (1, 8, 8), [2, 2, 2, 5])
    found = look(model, update, image_shape=(1, 8, 8), batch_size=4)["first layer"]
    assert (found.outlook, found.found[-6:]) == (Outlook.HELPS, "rank 4")
    fewer = look(model, update, image_shape=(1, 8, 8), batch_size=3)
    assert fewer["batch size"].advice == "say batch_size=4 or more"
    assert "first layer" not in fewer
    # Six classes leave the last layer no rank above five; the first one proves more.
    eight = look(model, gradient(model, (1, 8, 8), [0, 1, 2, 3, 4, 5, 0, 1]), image_shape=(1, 8, 8), batch_size=7)
    assert eight["batch size"].advice == "say batch_size=8 or more"


@pytest.mark.parametrize("lacking", ["1.weight", "1.bias"])
def test_what_the_update_lacks_cannot_be_solved_for(look: Look, lacking: str) -> None:
    model = linear(64)
    update = gradient(model, (1, 8, 8), [2])
    update[lacking] = torch.zeros_like(update[lacking])
    found = look(model, update, image_shape=(1, 8, 8))["first layer"]
    assert (found.outlook, found.found) == (
        Outlook.NEUTRAL,
        f"linear in all pixels, but the update shows nothing of {lacking}",
    )


def test_a_large_batch_blends(look: Look) -> None:
    model = linear(64)
    update = gradient(model, (1, 8, 8), [0, 1, 2, 3, 4, 5, 0, 1, 2])
    found = look(model, update, image_shape=(1, 8, 8), batch_size=9)
    assert found["batch"].found == "9 images are behind one update"
    assert found["first layer"].outlook is Outlook.HELPS


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)), "3x28x28"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 30 * 30, 2)), "1x32x32"),
        (nn.Sequential(nn.Flatten(), nn.Linear(49, 2)), "1x7x7"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 49, 2)), "3x7x7"),
    ],
)
def test_a_usual_shape_that_fits_is_taken(look: Look, model: nn.Module, shape: str) -> None:
    update = fv.Update.gradient({name: torch.ones_like(p) for name, p in model.named_parameters()})
    assert f"of {shape} (guessed)" in look(model, update)["equations"].found


def test_no_usual_shape_fits() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(50, 2))
    with pytest.raises(FedveilError, match=r"^the model takes none of the usual images: say image_shape=\(C, H, W\)$"):
        diagnose(model, fv.Update.gradient({"1.weight": torch.ones(2, 50)}))
