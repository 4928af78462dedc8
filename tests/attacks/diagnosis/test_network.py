from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fedveil as fv
from fedveil.attacks.diagnosis import Finding, Outlook
from fedveil.fl.seeding import torch_stream

Look = Callable[..., dict[str, Finding]]
SHAPE = (1, 8, 8)
X = torch.rand((4, *SHAPE), generator=torch_stream(0, "images"))
Y = torch.tensor([0, 1, 2, 1])


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def plain(*between: nn.Module, bias: bool = True) -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Conv2d(1, 4, 3, bias=bias), *between, nn.Flatten(), nn.Linear(144, 3)))


def trained(model: nn.Module, *, steps: int = 1, train: bool = True) -> list[Tensor]:
    """What a client returns: its state after some steps, in order."""
    client = copy.deepcopy(model).train(train)
    optimizer = torch.optim.SGD(client.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(client(X), Y).backward()
        optimizer.step()
    return [value.detach() for value in client.state_dict().values()]


def gradient(model: nn.Module) -> dict[str, Tensor]:
    twin = copy.deepcopy(model)
    loss = F.cross_entropy(twin(X), Y)
    return {
        n: g for (n, _), g in zip(model.named_parameters(), torch.autograd.grad(loss, twin.parameters()), strict=True)
    }


@pytest.mark.parametrize("ran", ["train", "eval"])
@pytest.mark.parametrize("said", ["train", "eval"])
def test_buffers_tell_how_batch_norm_ran(look: Look, ran: str, said: str) -> None:
    model = plain(nn.BatchNorm2d(4))
    found = look(model, trained(model, train=ran == "train"), image_shape=SHAPE, batch_size=4, mode=said)["BatchNorm"]
    if ran == said:
        assert found.outlook is Outlook.HELPS
    else:
        assert (found.outlook, found.advice) == (Outlook.HINDERS, f"say mode={ran!r}")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("ran", ["train", "eval"])
@pytest.mark.parametrize("said", ["train", "eval"])
def test_without_buffers_a_right_angle_tells_how_it_ran(look: Look, ran: str, said: str, bias: bool) -> None:
    model = plain(nn.BatchNorm2d(4), bias=bias)
    update = fv.Update.gradient(gradient(model.train(ran == "train")))
    found = look(model, update, image_shape=SHAPE, batch_size=4, mode=said)["BatchNorm"]
    if ran != said:
        assert (found.outlook, found.advice) == (Outlook.HINDERS, f"say mode={ran!r}")
    elif said == "train":
        assert (found.outlook, found.advice) == (Outlook.HINDERS, "if the client sends its buffers pass them")
    else:
        assert (found.outlook, found.advice) == (Outlook.HELPS, "")


def test_nothing_tells_how_batch_norm_ran(look: Look) -> None:
    behind = plain(nn.ReLU(), nn.BatchNorm2d(4))  # of rectified numbers: no weights are before it
    noisy = plain(nn.BatchNorm2d(4))
    stream = torch_stream(0, "noise")
    for model, size in ((behind, 0.0), (noisy, 0.01)):
        update = {n: g + size * torch.randn(g.shape, generator=stream) for n, g in gradient(model).items()}
        found = look(model, fv.Update.gradient(update), image_shape=SHAPE, batch_size=4)["BatchNorm"]
        assert found.advice == "if the client sends its buffers pass them; if it ran in eval mode say mode='eval'"
    assert "BatchNorm" not in look(plain(), gradient(plain()), image_shape=SHAPE, batch_size=4)


def test_buffers_of_an_update_that_says_its_kind_count_too(look: Look) -> None:
    model = plain(nn.BatchNorm2d(4))
    update, _ = fv.client_update(model, X, Y, learning_rate=0.01, local_steps=2)
    assert update.buffers
    found = look(model, update, image_shape=SHAPE, batch_size=4)
    assert "change of their running statistics is in the update" in found["BatchNorm"].found
    assert found["BatchNorm"].advice == "try gradinversion"
    assert found["local steps"].found == "2 of them"


def test_batch_norm_counts_the_steps(look: Look) -> None:
    model = plain(nn.BatchNorm2d(4))
    assert look(model, trained(model, steps=3), image_shape=SHAPE, batch_size=4)["local steps"].found == (
        "BatchNorm counted 3, not 1"
    )
    assert "local steps" not in look(model, trained(model), image_shape=SHAPE, batch_size=4)


class Functional(nn.Module):
    """Drops at random without a layer that says so."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.training)


def test_dropout_hinders_where_it_ran(look: Look) -> None:
    for part, what, text in (
        (nn.Dropout2d(0.25), "dropout", "p = 0.25 in 1"),
        (Functional(), "randomness", "in train mode the network answers otherwise each time"),
    ):
        model = plain(part)
        update = fv.Update.gradient(gradient(plain(nn.Identity())))
        found = look(model, update, image_shape=SHAPE, batch_size=4)[what]
        assert (found.found, found.outlook) == (text, Outlook.HINDERS)
        assert what not in look(model, update, image_shape=SHAPE, batch_size=4, mode="eval")
    off = plain(nn.Dropout(0.0))
    assert not {"dropout", "randomness"} & set(look(off, gradient(off), image_shape=SHAPE, batch_size=4))


class Rounded(nn.Module):
    """Has no derivative."""

    def forward(self, x: Tensor) -> Tensor:
        return x.round()


def test_which_search_suits_and_whether_any_does(look: Look) -> None:
    smooth, bent = plain(nn.Sigmoid()), plain(nn.ReLU())
    assert "deep_leakage" in look(smooth, gradient(smooth), image_shape=SHAPE, batch_size=4)["network"].meaning
    assert "modern" in look(bent, gradient(bent), image_shape=SHAPE, batch_size=4)["network"].meaning
    stuck = seeded(lambda: nn.Sequential(Rounded(), nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 3)))
    found = look(stuck, gradient(stuck), image_shape=SHAPE, batch_size=4)["network"]
    assert found.outlook is Outlook.STOPS
    assert "the images have no influence on its gradient" in found.found


def test_normalisation_hides_brightness(look: Look) -> None:
    hidden = plain(nn.GroupNorm(2, 4, eps=1e-12), bias=False)
    shown = plain(nn.GroupNorm(2, 4, eps=1e-12))
    with torch.no_grad():
        shown[0].bias.copy_(torch.tensor([1.0, -1.0, 2.0, 0.0]))  # type: ignore[index, union-attr]
    assert look(hidden, gradient(hidden), image_shape=SHAPE, batch_size=4)["brightness"].outlook is Outlook.HINDERS
    assert "brightness" not in look(shown, gradient(shown), image_shape=SHAPE, batch_size=4)


def test_the_model_stays_as_it_is() -> None:
    model = plain(nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    fv.diagnose(model, trained(plain(nn.BatchNorm2d(4))), image_shape=SHAPE, batch_size=4)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
