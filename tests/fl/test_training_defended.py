"""Where a defence acts on a client's training and on its predictions, and what it may not make of them."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from one_client import DELTA, GRADIENT, by_hand, shard, spec, stream, train
from torch import Tensor, nn
from torch.nn import functional as F

from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.hooks import NoHooks
from fedveil.fl.messages import ClientUpdate, UpdateKind
from fedveil.fl.models import build_model, init_model
from fedveil.fl.training import LocalTraining, local_update, predict

torch.set_num_threads(1)


class Scaled(NoHooks):
    """Darkens the images, triples the loss, adds one to the update and counts what it was asked."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.labels: list[Tensor | None] = []

    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        self.calls.append("data")
        self.labels.append(y)
        return x / 2

    def loss(self, loss: Tensor, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        self.calls.append("loss")
        assert torch.equal(loss, F.cross_entropy(logits, y))
        assert x.max() <= 0.5
        return 3 * loss

    def update(self, update: ClientUpdate, stream: torch.Generator) -> ClientUpdate:
        self.calls.append("update")
        return replace(update, tensors={n: t + 1 for n, t in update.tensors.items()})

    def output(self, logits: Tensor) -> Tensor:
        self.calls.append("output")
        return -logits


def test_a_defence_acts_on_data_then_loss_then_update() -> None:
    hooks = Scaled()
    result = train(GRADIENT, hooks=hooks)
    assert hooks.calls == ["data", "loss", "update"]
    model, _ = by_hand("group")
    x, y = shard().batch(torch.randperm(10, generator=stream())[:4])
    loss = 3 * F.cross_entropy(model(x / 2), y)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(result.update.tensors[name], gradient + 1)
    assert result.loss == pytest.approx(loss.item())


class Mixed(NoHooks):
    """Labels are shares of two classes, and one image comes beside the batch."""

    def batch(self, model: nn.Module, x: Tensor, y: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        shares = 0.75 * F.one_hot(y, 3).float() + 0.25 * F.one_hot(torch.zeros_like(y), 3).float()
        return torch.cat([x / 2, torch.ones_like(x[:1])]), torch.cat([shares, torch.full((1, 3), 1 / 3)])


def test_a_defence_may_make_labels_shares_and_add_images() -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    result = train(GRADIENT, hooks=Mixed(), on_batch=lambda x, at: seen.append((x, at)))
    model, _ = by_hand("group")
    x, y = shard().batch(torch.randperm(10, generator=stream())[:4])
    log = model(torch.cat([x / 2, torch.ones_like(x[:1])])).log_softmax(1)
    # -(3/4 log p_y + 1/4 log p_0) of each image, -(mean log p) of the one beside them, over all five.
    own = 0.75 * log[:4].gather(1, y[:, None])[:, 0] + 0.25 * log[:4, 0]
    loss = -(own.sum() + log[4].mean()) / 5
    for (name, _), gradient in zip(
        model.named_parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
    ):
        torch.testing.assert_close(result.update.tensors[name], gradient)
    assert result.loss == pytest.approx(loss.item())
    assert result.update.examples == 4
    # What is shown to an audit stands for the client's images alone.
    assert torch.equal(seen[0][0], x / 2)


def test_public_images_beside_shares_have_whole_ones() -> None:
    kept: list[Tensor] = []

    class Watched(Mixed):
        def loss(self, loss: Tensor, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
            kept.append(y)
            return loss

    local_update(
        build_model(spec()),
        init_model(spec(), 3),
        shard(),
        Watched(),
        replace(GRADIENT, replay=0.5),
        stream(),
        public=Images(shard(3).pixels, torch.tensor([2, 2, 2])),
    )
    assert torch.equal(kept[0][5:], torch.tensor([[0.0, 0.0, 1.0]]).expand(4, 3))
    assert kept[0].sum(1).tolist() == pytest.approx([1.0] * 9)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda x, y: x, "got Tensor"),
        (lambda x, y: (x[:2], y[:2]), "got images of shape"),
        (lambda x, y: (x[..., :6], y), "got images of shape"),
        (lambda x, y: (x, y[:2]), "got labels of shape \\(2,\\) for 4 images"),
        (lambda x, y: (x, y.float()), "got labels of shape"),
        (lambda x, y: (x, F.one_hot(y)), "got labels of shape"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(made: Callable[[Tensor, Tensor], object], message: str) -> None:
    class Odd(NoHooks):
        def batch(self, model: nn.Module, x: Tensor, y: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
            return made(x, y)  # type: ignore[return-value]

    with pytest.raises(FedveilError, match=message):
        train(GRADIENT, hooks=Odd())


def test_an_audit_sees_each_batch_as_it_was_trained_on() -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    train(replace(DELTA, epochs=1), hooks=Scaled(), on_batch=lambda x, at: seen.append((x, at)))
    assert [len(x) for x, _ in seen] == [4, 4, 2]
    assert torch.equal(torch.cat([at for _, at in seen]).sort().values, torch.arange(10))
    for x, at in seen:
        assert torch.equal(x, shard().floats()[at] / 2)
        assert not x.requires_grad


def test_predictions_pass_the_clients_own_defence() -> None:
    hooks = Scaled()
    weights = init_model(spec(), 3)
    found = predict(build_model(spec()), weights, shard(), hooks, stream())
    model, _ = by_hand("group")
    torch.testing.assert_close(found, (-model(shard().floats() / 2)).softmax(dim=1))
    assert hooks.calls == ["data", "output"]
    assert hooks.labels == [None], "labels are not known at test time"


class Cropping(NoHooks):
    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        return x[..., 1:]


def test_a_defence_that_changes_the_images_shape_is_refused_in_words() -> None:
    how = LocalTraining(UpdateKind.GRADIENT, 1, 4, 0.1)
    with pytest.raises(
        FedveilError, match=r"defence: data\(\) has to return images of shape \(4, \d+, \d+, \d+\), got"
    ):
        local_update(build_model(spec()), init_model(spec(), 0), shard(), Cropping(), how, stream())
