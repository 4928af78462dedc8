from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from perceptron import SHAPE, gradient, images, network, noise
from torch import nn

import fedveil as fv
from fedveil.attacks.diagnosis import Finding, Outlook
from fedveil.defense import DEFENSES
from fedveil.fl.seeding import torch_stream

Look = Callable[..., dict[str, Finding]]


def relu(width: int = 64) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 4))


def test_a_dead_layer_and_sleeping_units(look: Look) -> None:
    update = noise(network())
    update["1.weight"][:16] = 0
    update["3.weight"] = torch.zeros(4, 64)
    found = look(network(), fv.Update.gradient(update), image_shape=SHAPE)
    assert found["zero layers"].found == "1 of 4 tensors are 0 altogether (3.weight)"
    assert found["zero layers"].outlook is Outlook.HINDERS
    assert found["units"].found == "16 of 64 units of 1.weight have no gradient"
    assert found["units"].outlook is Outlook.NEUTRAL
    update["1.weight"][:60] = 0
    assert look(network(), fv.Update.gradient(update), image_shape=SHAPE)["units"].outlook is Outlook.HINDERS


def test_entries_cut_by_size_are_told_from_a_mask(look: Look) -> None:
    model, whole = network(), noise(network())
    cut = {name: t * (t.abs() > 1.0) for name, t in whole.items()}
    found = look(model, fv.Update.gradient(cut), image_shape=SHAPE)["pruning"]
    share = 1 - torch.cat([cut[name].flatten() for name in ("1.weight", "3.weight")]).count_nonzero() / (68 * 64)
    # A standard normal is within 1 with a probability of 68 %.
    assert float(share) == pytest.approx(0.683, abs=0.02)
    assert found.found == f"{share:.0%} of the entries are 0, and none of the others is small"
    assert found.meaning.startswith("entries were cut by size")


@pytest.mark.parametrize("size", [1, 4])
def test_a_random_mask_is_told_whatever_the_batch(look: Look, size: int) -> None:
    model, stream = relu(width=256), torch_stream(0, "mask")
    update = gradient(model, images(size), torch.arange(size))
    masked = {name: t * (torch.rand(t.shape, generator=stream) < 0.3) for name, t in update.items()}
    found = look(model, fv.Update.gradient(masked), image_shape=SHAPE, batch_size=size)
    assert found["pruning"].outlook is Outlook.HINDERS
    assert found["pruning"].found.endswith(
        " outside of units and inputs that are 0 altogether), strewn as chance would"
    )
    live = int(found["pruning"].found.partition("(")[2].partition("%")[0])
    # Of some 8,000 entries; of four images a few were 0 before.
    assert 66 <= live <= 76
    assert found["labels"].outlook is not Outlook.HELPS or "if what is left" in found["labels"].meaning
    assert found["loss"].outlook is Outlook.NEUTRAL


def test_zeros_that_relu_leaves_in_a_batch_are_no_mask(look: Look) -> None:
    """Half of the units sleep for one image or the other, where dark halves of the images meet them."""
    model, x = relu(), images(2)
    x[0, :, :4], x[1, :, 4:] = 0, 0
    update = gradient(model, x, torch.tensor([1, 2]))
    found = look(model, update, image_shape=SHAPE, batch_size=2)["pruning"]
    assert found.outlook is Outlook.NEUTRAL
    assert "as units leave them" in found.found


def test_zeros_of_the_last_layer_prove_that_entries_were_left_out(look: Look) -> None:
    """Too few rows for chance, too few entries for sizes: but of one image softmax leaves none."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    update = gradient(model, images(1), torch.tensor([1]))
    update["1.weight"][::2, ::2] = 0
    found = look(model, fv.Update.gradient(update), image_shape=SHAPE)
    assert found["pruning"].found == "25% of the entries are 0, some in the last layer, where softmax leaves none"
    # 2 rows of 32 columns each, of 4 x 65.
    assert found["loss"].found == ("64 of the last layer's 260 entries are 0, where softmax cross-entropy leaves none")
    # Its rank is no longer the number of images.
    assert "batch size" not in found


@pytest.mark.parametrize(("name", "share"), [("top_k", 90), ("dgp", 80)])
def test_what_shipped_defences_leave_out(look: Look, name: str, share: int) -> None:
    model = relu(width=256)
    update, _ = fv.client_update(model, images(1), [1], defense=DEFENSES[name]())
    found = look(model, update, image_shape=SHAPE)["pruning"]
    assert found.outlook is Outlook.HINDERS
    assert int(found.found.partition("%")[0]) == pytest.approx(share, abs=1)
    assert found.found.endswith("and none of the others is small")


def test_a_quantised_updates_zeros_are_one_of_its_values(look: Look) -> None:
    model = relu(width=256)
    update, _ = fv.client_update(model, images(4), [0, 1, 2, 3], defense=DEFENSES["quantisation"](bits=3))
    found = look(model, update, image_shape=SHAPE, batch_size=4)
    assert "quantisation" in found
    assert "pruning" not in found


def test_dark_pixels_and_sleeping_units_of_one_image_are_no_pruning(look: Look) -> None:
    model, x = relu(), images(1)
    x[..., :4, :] = 0
    update = gradient(model, x, torch.tensor([1]))
    # Half of the columns and some of the rows are 0.
    assert int(update["1.weight"].count_nonzero()) < 0.4 * update["1.weight"].numel()
    assert "pruning" not in look(model, update, image_shape=SHAPE)
