from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedveil.attacks import Adaptive, InvertingGradients, Knowledge
from fedveil.attacks.base import AttackerPreparation, Observation
from fedveil.attacks.target.model import target_model
from fedveil.defense import Soteria, Stack, Surrogate, TopK, TrainedOn
from fedveil.defense.base import Stateless
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.hooks import NoHooks
from fedveil.fl.messages import ClientUpdate, ThreatModel, UpdateKind
from fedveil.fl.models import ModelSpec, build_model, init_model
from fedveil.fl.seeding import torch_stream
from fedveil.fl.training import LocalTraining, local_update

GRADIENT = LocalTraining(UpdateKind.GRADIENT, 1, 4, 0.1)


class Scaled(nn.Module):
    """Features are the pixels, each times a number of its own."""

    def __init__(self, factors: list[float]) -> None:
        super().__init__()
        self.factors, self.head = nn.Parameter(torch.tensor(factors)), nn.Linear(len(factors), 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.flatten(1) * self.factors)
        return logits


def gradients(model: nn.Module, x: Tensor, y: Tensor, defense: Soteria | None) -> dict[str, Tensor]:
    logits = model(x)
    loss = F.cross_entropy(logits, y)
    if defense is not None:
        changed = defense.loss(loss, model, x, y, logits)
        assert float(changed) == float(loss)
        loss = changed
    names = dict(model.named_parameters())
    return dict(zip(names, torch.autograd.grad(loss, list(names.values())), strict=True))


@pytest.mark.parametrize("probes", [0, 64])
def test_the_features_of_the_brightest_pixels_are_pruned_by_hand(probes: int) -> None:
    """r_i = a_i x_i has the slope a_i, so that |r_i| / |dr_i / dX| is the pixel's brightness, whatever a_i is."""
    model, y = Scaled([5.0, -1.0, 0.1, 2.0]), torch.tensor([1])
    x = torch.tensor([0.1, 0.9, 0.5, 0.0]).view(1, 1, 2, 2)
    told = Soteria(probes=probes).telling(model, model.head, x)
    # 64 directions leave the root mean square a standard error of 9 %.
    assert told.tolist() == pytest.approx(x.flatten().tolist(), rel=1e-5 if not probes else 0.4)
    found = gradients(model, x, y, Soteria(prune=0.5, probes=probes))
    assert (found["head.weight"] != 0).any(0).tolist() == [True, False, False, False]  # the last pixel is black


@pytest.mark.parametrize("name", ["lenet", "convnet", "resnet20"])
def test_it_masks_columns_of_one_layer_and_leaves_all_else(name: str) -> None:
    model = build_model(ModelSpec(name, (1, 16, 16), 3, width=3))
    stream = torch.Generator().manual_seed(0)
    x, y = torch.rand((4, 1, 16, 16), generator=stream), torch.tensor([0, 1, 2, 0])
    plain = gradients(model, x, y, None)
    found = gradients(model, x, y, Soteria(prune=0.5, probes=8))
    for key, tensor in found.items():
        if key == "head.weight":
            kept = (tensor != 0).any(0)
            torch.testing.assert_close(tensor[:, kept], plain[key][:, kept])
            # Features that are 0 themselves tell nothing, and are not among those that are pruned.
            assert int(((plain[key] != 0).any(0) & ~kept).sum()) == tensor.shape[1] // 2
        else:
            torch.testing.assert_close(tensor, plain[key], rtol=1e-5, atol=1e-7)


def test_slopes_are_those_of_one_backward_pass_per_feature_and_probes_come_near_them() -> None:
    model = build_model(ModelSpec("lenet", (1, 12, 12), 2, width=2))
    head = model.get_submodule("head")
    assert isinstance(head, nn.Linear)
    x = torch.rand((3, 1, 12, 12), generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(3, head.in_features)
    for image in range(3):
        own = x[image : image + 1].clone().requires_grad_(True)
        features = model.get_submodule("body")(own).flatten(1)[0]
        for at, one in enumerate(features):
            slope = torch.autograd.grad(one, own, retain_graph=True)[0].norm()
            expected[image, at] = (one.abs() / slope).detach()
    exact = Soteria(probes=0).telling(model, head, x)
    torch.testing.assert_close(exact, expected.mean(0), rtol=1e-4, atol=1e-6)
    near = Soteria(probes=400).telling(model, head, x)
    assert float(((near - exact) / exact).abs().mean()) < 0.05


def test_statistics_count_a_batch_once_and_a_step_is_replayed_to_the_bit() -> None:
    spec = ModelSpec("convnet", (1, 16, 16), 2, norm="batch", width=4)
    pixels = torch.randint(256, (4, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    shard = Images(pixels, torch.tensor([0, 1, 0, 1]))

    def sent(hooks: Any) -> ClientUpdate:
        return local_update(build_model(spec), init_model(spec, 0), shard, hooks, GRADIENT, torch_stream(0, "a")).update

    plain, one, again = sent(NoHooks()), sent(Stateless(Soteria())), sent(Stateless(Soteria()))
    assert all(torch.equal(tensor, plain.buffers[name]) for name, tensor in one.buffers.items())
    assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in one.tensors.items())


def test_a_layer_that_is_not_there_is_refused_in_words() -> None:
    x, y = torch.rand(1, 1, 16, 16), torch.tensor([0])
    with pytest.raises(FedveilError, match=r"^soteria: model LeNet has no linear layer body; allowed: head"):
        gradients(build_model(ModelSpec("lenet", (1, 16, 16), 2, width=3)), x, y, Soteria(layer="body"))
    bare = nn.Sequential(nn.Conv2d(1, 2, 16), nn.Flatten())
    with pytest.raises(FedveilError, match=r"^soteria: model Sequential has no linear layer at all; it has none"):
        gradients(bare, x, y, Soteria())


def visible(defense: Any, observed: dict[str, Tensor]) -> dict[str, Tensor]:
    surrogate = defense.surrogate() if isinstance(defense, Soteria) else defense
    assert surrogate.complete
    assert surrogate.visible is not None
    masks: dict[str, Tensor] = surrogate.visible(observed)
    return masks


def test_the_attacker_leaves_out_what_was_masked_by_hand() -> None:
    assert Soteria().trained_on is TrainedOn.NOTHING
    seen = {
        "conv": torch.zeros(1, 1, 2, 2),
        "head.weight": torch.tensor([[1.0, 0, 2, 0], [0, 0, 3, 0]]),
        "b": torch.zeros(2),
    }
    masks = visible(Soteria(prune=0.5), seen)
    assert masks["head.weight"].tolist() == [[1, 0, 1, 0], [1, 0, 1, 0]]
    assert float(masks["conv"].min()) == float(masks["b"].min()) == 1
    # Three of four are pruned in each step, and two are zero in all: not one column is known to be whole.
    assert visible(Soteria(prune=0.75), seen)["head.weight"].tolist() == [[0] * 4] * 2
    named = {"first.weight": torch.ones(2, 2), **seen}
    assert visible(Soteria(prune=0.5, layer="head"), named)["first.weight"].tolist() == [[1, 1], [1, 1]]
    both = Stack(parts=(Soteria(prune=0.5), TopK(keep=0.375)))
    stacked = both.prepare(None, None, (None, None), client=0).surrogate()  # type: ignore[arg-type]
    assert visible(stacked, {"head.weight": seen["head.weight"]})["head.weight"].tolist() == [
        [1, 0, 1, 0],
        [0, 0, 1, 0],
    ]


def test_who_leaves_it_out_finds_an_explanation_of_all_the_rest(blobs: Any) -> None:
    spec, defense = ModelSpec("lenet", (1, 12, 12), 2, width=4), Soteria(prune=0.8)
    images = blobs(1, 0, side=12)
    weights = init_model(spec, 0)
    sent = local_update(build_model(spec), weights, images, Stateless(defense), GRADIENT, torch_stream(0, "a")).update
    one = Observation(0, 0, sent, weights, 1, labels=images.labels)
    target = target_model(build_model(spec), image_shape=spec.image_shape, classes=2)
    found = {}
    for name, surrogate in (("adaptive", defense.surrogate()), ("plain", Surrogate())):
        grants = ThreatModel(auxiliary_data=True, defense_algorithm=True)
        auxiliary = blobs(12, 3, side=12)
        knowledge = Knowledge(
            grants, target, torch.device("cpu"), 0, auxiliary, {None: AttackerPreparation(surrogate, None)}
        )
        attack = Adaptive(inversion=InvertingGradients(steps=200), calibration=0)
        (result,) = attack([one], knowledge)
        found[name] = float((result.images - images.floats()).square().mean())
    assert found["adaptive"] < found["plain"]
