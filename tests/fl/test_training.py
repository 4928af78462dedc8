"""A client's gradients, weight changes and predictions, against those of PyTorch."""

from dataclasses import replace

import pytest
import torch
from one_client import DELTA, GRADIENT, KINDS, by_hand, shard, spec, stream, train
from torch import Tensor, nn
from torch.nn import functional as F

from fedveil.fl.hooks import NoHooks
from fedveil.fl.messages import UpdateKind
from fedveil.fl.models import build_model, init_model
from fedveil.fl.training import LocalTraining, predict

torch.set_num_threads(1)

NORMS = ["none", "group", "batch"]


@pytest.mark.parametrize("norm", NORMS)
def test_a_gradient_is_that_of_autograd_on_one_batch(norm: str) -> None:
    result = train(GRADIENT, norm)
    model, _ = by_hand(norm)
    x, y = shard().batch(torch.randperm(10, generator=stream())[:4])
    loss = F.cross_entropy(model(x), y)
    loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(result.update.tensors[name], parameter.grad)
        assert parameter.grad.abs().sum() > 0
    assert result.loss == pytest.approx(loss.item())
    assert (result.update.kind, result.update.local_steps, result.update.examples) == (UpdateKind.GRADIENT, 1, 4)


def test_a_gradient_of_a_small_shard_counts_the_examples_that_it_has() -> None:
    assert train(replace(GRADIENT, batch_size=64)).update.examples == 10


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_a_weight_change_is_that_of_sgd_on_the_proximal_loss(norm: str, mu: float) -> None:
    result = train(replace(DELTA, proximal=mu), norm)
    model, weights = by_hand(norm)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    order = stream()
    for _ in range(2):
        for indices in torch.randperm(10, generator=order).split(4):
            x, y = shard().batch(indices)
            distance = sum((p - weights[n]).square().sum() for n, p in model.named_parameters())
            optimizer.zero_grad()
            (F.cross_entropy(model(x), y) + mu / 2 * distance).backward()
            optimizer.step()
    after = model.state_dict()
    for name, change in {**result.update.tensors, **result.update.buffers}.items():
        torch.testing.assert_close(change, after[name] - weights[name], atol=1e-6, rtol=1e-5)
    # Batches of 4, 4 and 2 images, twice.
    assert (result.update.kind, result.update.local_steps, result.update.examples) == (UpdateKind.DELTA, 6, 10)


def test_the_proximal_term_acts_from_the_second_step_on() -> None:
    def change(mu: float, steps: int) -> Tensor:
        how = replace(DELTA, epochs=steps, batch_size=10, proximal=mu)
        return torch.cat([t.flatten() for t in train(how).update.tensors.values()])

    assert torch.equal(change(0, 1), change(5, 1))
    assert change(5, 4).norm() < 0.9 * change(0, 4).norm()


def test_one_step_of_sgd_is_the_gradient_times_the_learning_rate() -> None:
    gradient = train(replace(GRADIENT, batch_size=10)).update
    change = train(replace(DELTA, batch_size=10, epochs=1, learning_rate=0.25)).update
    for name, tensor in gradient.tensors.items():
        torch.testing.assert_close(change.tensors[name], -0.25 * tensor, atol=1e-6, rtol=1e-4)


def test_the_loss_is_the_mean_over_examples_and_not_over_batches() -> None:
    # Three batches of 4, 4 and 2 images at a learning rate of zero.
    result = train(replace(DELTA, epochs=1, learning_rate=0.0))
    model, _ = by_hand("group")
    assert result.loss == pytest.approx(F.cross_entropy(model(shard().floats()), shard().labels).item(), rel=1e-5)


@pytest.mark.parametrize("how", KINDS, ids=lambda how: str(how.kind))
def test_batchnorm_statistics_travel_as_buffers(how: LocalTraining) -> None:
    result = train(replace(how, batch_size=10, epochs=1), "batch")
    model, weights = by_hand("batch")
    names = {n for n, b in model.named_buffers() if b.is_floating_point()}
    assert result.update.buffers.keys() == names
    assert len(names) == 6
    assert result.update.tensors.keys() == dict(model.named_parameters()).keys()
    # The first convolution's output over the whole shard, by PyTorch's rule with momentum 0.1.
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    mean = first(shard().floats()).mean((0, 2, 3))
    old = weights["body.0.1.running_mean"]
    torch.testing.assert_close(result.update.buffers["body.0.1.running_mean"], 0.1 * (mean - old))


@pytest.mark.parametrize("norm", ["none", "group"])
def test_without_batchnorm_there_are_no_buffers(norm: str) -> None:
    assert train(DELTA, norm).update.buffers == {}


def test_each_epoch_sees_each_image_once_and_in_a_new_order() -> None:
    seen: list[Tensor] = []
    train(DELTA, on_batch=lambda x, at: seen.append(at))
    first, second = torch.cat(seen[:3]), torch.cat(seen[3:])
    assert torch.equal(first.sort().values, second.sort().values)
    assert not torch.equal(first, second)


def test_predictions_are_those_of_the_model_in_evaluation_mode() -> None:
    weights = init_model(spec("batch"), 3)
    found = predict(build_model(spec("batch")), weights, shard(), NoHooks(), stream())
    model, _ = by_hand("batch")
    expected = model.eval()(shard().floats()).softmax(dim=1)
    torch.testing.assert_close(found, expected)
    pieces = predict(build_model(spec("batch")), weights, shard(), NoHooks(), stream(), batch_size=3)
    torch.testing.assert_close(pieces, found)
    assert not found.requires_grad


def test_in_eval_mode_statistics_are_used_and_not_moved() -> None:
    how = replace(GRADIENT, mode="eval")
    update = train(how, "batch").update
    assert not any(delta.any() for delta in update.buffers.values())
    model, _ = by_hand("batch")
    x, y = shard().batch(torch.randperm(10, generator=stream())[:4])
    gradients = torch.autograd.grad(F.cross_entropy(model.eval()(x), y), list(model.parameters()))
    for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(update.tensors[name], gradient)
