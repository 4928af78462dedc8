from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fedveil.defense import BiDO, DefenseContext, PreparedDefense, Stack, TrainedOn
from fedveil.defense.base import Stateless
from fedveil.defense.bido import PreparedBiDO
from fedveil.defense.dependence import coco, gaussian_kernel, linear_kernel, normalised_hsic
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.hooks import NoHooks
from fedveil.fl.messages import UpdateKind
from fedveil.fl.models import ModelSpec, build_model, init_model
from fedveil.fl.seeding import torch_stream
from fedveil.fl.training import LocalTraining, local_update

GRADIENT = LocalTraining(UpdateKind.GRADIENT, 1, 8, 0.1)


def batch(count: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(seed)
    return torch.rand((count, 1, 16, 16), generator=stream), torch.randint(classes, (count,), generator=stream)


def penalty(defense: BiDO, model: nn.Module, x: Tensor, y: Tensor) -> float:
    logits = model(x)
    plain = F.cross_entropy(logits, y)
    return float(defense.loss(plain, model, x, y, logits) - plain)


class Two(nn.Module):
    """One hidden layer of one feature, the brightness of the only pixel times a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.hidden, self.head = nn.Conv2d(1, 1, 1, bias=False), nn.Linear(1, 2)
        nn.init.constant_(self.hidden.weight, factor)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.hidden(x).flatten(1))
        return logits


def test_two_images_of_one_pixel_by_hand() -> None:
    """X = (0, 1), Z = (0, 2), kernel width 1: K_X has a = exp(-1/2) beside its diagonal, K_Z b = exp(-2), and Y none."""
    x, y = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), torch.tensor([0, 1])
    a, b, e = math.exp(-0.5), math.exp(-2), 2e-5
    inputs = (1 - a) / (1 - a + e) * (1 - b) / (1 - b + e)
    labels = (1 - b) / (1 - b + e) / (1 + e)
    given = {"layers": ("hidden",), "kernel_width": 1.0, "input_weight": 2.0, "label_weight": 3.0}
    found = penalty(BiDO(**given), Two(2.0), x, y)  # type: ignore[arg-type]
    assert found == pytest.approx(2 * inputs - 3 * labels, abs=1e-5)
    # H K_X H H K_Z H is (1 - a)(1 - b) times a projection on one direction.
    found = penalty(BiDO(measure="coco", **given), Two(2.0), x, y)  # type: ignore[arg-type]
    expected = 2 * math.sqrt((1 - a) * (1 - b)) / 2 - 3 * math.sqrt(1 - b) / 2
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_the_loss_is_the_sum_over_layers_of_shares_of_the_largest_values(classes: int) -> None:
    model = build_model(ModelSpec("convnet", (1, 16, 16), classes, width=4))
    x, y = batch(9, classes)
    layers = ("body.0", "body.1", "body")
    hidden = [model.get_submodule("body")[:count](x).flatten(1) for count in (1, 2, 3)]  # type: ignore[index]
    shares = linear_kernel(F.one_hot(y, classes))
    expected = {"hsic": 0.0, "coco": 0.0}
    for one in hidden:
        images, features = gaussian_kernel(x.flatten(1), 5.0), gaussian_kernel(one, 5.0)
        expected["hsic"] += 6.3 / 8 * float(normalised_hsic(images, features))
        expected["hsic"] -= 4 / (classes - 1) * float(normalised_hsic(features, shares))
        expected["coco"] += 0.1 * float(coco(images, features)) - 5 * float(coco(features, shares))
    assert penalty(BiDO(layers=layers), model, x, y) == pytest.approx(expected["hsic"], abs=1e-4)
    assert penalty(BiDO(layers=layers, strength=0.5), model, x, y) == pytest.approx(expected["hsic"] / 2, abs=1e-4)
    assert penalty(BiDO(layers=layers, measure="coco"), model, x, y) == pytest.approx(expected["coco"], abs=1e-5)


@settings(max_examples=15)
@given(st.integers(2, 12), st.integers(2, 9), st.integers(0, 100))
def test_each_term_is_a_share_whatever_the_batch_and_the_classes(count: int, classes: int, seed: int) -> None:
    model = build_model(ModelSpec("lenet", (1, 16, 16), classes, width=3))
    x, y = batch(count, classes, seed)
    hidden = [model.get_submodule("body")(x).flatten(1)]
    for (found,) in BiDO().dependences(x, hidden, y, classes):
        assert -1e-6 <= float(found) <= 1 + 1e-6
    labels = BiDO().dependences(x, hidden, y, classes)[1][0]
    torch.testing.assert_close(BiDO().dependences(x, hidden, F.one_hot(y, classes).double(), classes)[1][0], labels)


def images(count: int, classes: int) -> Images:
    x, y = batch(count, classes)
    return Images((255 * x).round().to(torch.uint8), y)


def sent(hooks: Any, spec: ModelSpec, shard: Images, training: LocalTraining = GRADIENT) -> Any:
    return local_update(build_model(spec), init_model(spec, 0), shard, hooks, training, torch_stream(0, "a")).update


@pytest.mark.parametrize("name", ["lenet", "convnet", "resnet20"])
@pytest.mark.parametrize("measure", ["hsic", "coco"])
def test_it_changes_what_the_body_sends_and_not_what_the_head_does(name: str, measure: Any) -> None:
    spec, shard = ModelSpec(name, (1, 16, 16), 3, width=4), images(8, 3)
    plain, found = sent(NoHooks(), spec, shard), sent(Stateless(BiDO(measure=measure)), spec, shard)
    for key, tensor in found.tensors.items():
        assert bool(tensor.isfinite().all())
        # Nothing hidden lies behind the head.
        assert torch.equal(tensor, plain.tensors[key]) is key.startswith("head"), key
    same = sent(Stateless(BiDO(measure=measure, strength=0)), spec, shard)
    for key, tensor in same.tensors.items():
        torch.testing.assert_close(tensor, plain.tensors[key])


def test_batch_statistics_count_a_batch_once_and_a_step_is_replayed_to_the_bit() -> None:
    spec, shard = ModelSpec("convnet", (1, 16, 16), 3, norm="batch", width=4), images(8, 3)
    training = replace(GRADIENT, kind=UpdateKind.DELTA, epochs=2, batch_size=4, learning_rate=1e-9)
    plain, found = sent(NoHooks(), spec, shard, training), sent(Stateless(BiDO()), spec, shard, training)
    assert found.buffers.keys() == plain.buffers.keys() != set()
    for key, tensor in found.buffers.items():
        torch.testing.assert_close(tensor, plain.buffers[key])
    again = sent(Stateless(BiDO()), spec, shard, training)
    assert all(torch.equal(tensor, again.tensors[key]) for key, tensor in found.tensors.items())


def test_one_image_depends_on_nothing() -> None:
    model, (x, y) = build_model(ModelSpec("lenet", (1, 16, 16), 2, width=3)), batch(1, 2)
    logits = model(x)
    loss = F.cross_entropy(logits, y)
    assert BiDO().loss(loss, model, x, y, logits) is loss


def test_the_floor_of_independent_pairs_is_told(context: DefenseContext, private: Images) -> None:
    defense = BiDO()
    assert defense.trained_on is TrainedOn.NOTHING
    prepared = defense.prepare(private, context, defense.pretrain(context), client=0)
    found = prepared.diagnostics()
    assert set(found) == {"inputs_dependence", "inputs_floor", "labels_dependence", "labels_floor"}
    assert 0 < found["inputs_floor"] < found["inputs_dependence"] <= 1
    assert 0 < found["labels_floor"] < found["labels_dependence"] <= 1
    assert prepared.diagnostics() == found
    stacked: PreparedDefense = Stack(parts=(defense,)).prepare(private, context, (None,), client=0)
    assert stacked.diagnostics() == found
    few = PreparedBiDO(defense, context.public.take(torch.tensor([0])), context.model, 0)
    assert few.diagnostics() == {}


def test_its_surrogate_is_the_loss_itself(context: DefenseContext, private: Images) -> None:
    surrogate = BiDO().prepare(private, context, None, client=0).surrogate()
    assert surrogate.complete
    assert not surrogate.inverted_plainly
    assert surrogate.data is None
    model, (x, y) = build_model(context.model), batch(4, 2)
    x = x[..., :12, :12]
    logits = model(x)
    assert surrogate.loss is not None
    torch.testing.assert_close(
        surrogate.loss(F.cross_entropy(logits, y), model, x, y, logits),
        BiDO().loss(F.cross_entropy(logits, y), model, x, y, logits),
    )


def test_a_layer_that_the_model_lacks_is_refused_in_words() -> None:
    model, (x, y) = build_model(ModelSpec("lenet", (1, 16, 16), 2, width=3)), batch(2, 2)
    with pytest.raises(FedveilError, match=r"^model LeNet: 'stem' gives no features; allowed: those of body"):
        penalty(BiDO(layers=("stem",)), model, x, y)
