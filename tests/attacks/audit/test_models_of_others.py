"""Audits of classifiers that are not ours, and of clients that train them otherwise than ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from fedveil.attacks import (
    InvertingGradients,
)
from fedveil.attacks.audit.api import audit
from fedveil.attacks.audit.capture import client_update
from fedveil.fl.data import Images, load_data
from fedveil.fl.models import ModelSpec, build_model

SPEC = ModelSpec("lenet", (1, 12, 12), 2, width=4)
WIDE = ModelSpec("lenet", (1, 16, 16), 2, width=8)
CLOSE = InvertingGradients(steps=60, learning_rate=0.1, tv=1e-3)
PLAIN = InvertingGradients(steps=1)

Blobs = Callable[..., Images]


def brains(size: int, count: int = 1) -> Images:
    slices = load_data("mni152", size=size).train.take(torch.arange(count))
    return Images(slices.pixels.repeat(1, 3, 1, 1), slices.labels)


def vision_transformer() -> nn.Module:
    net = torchvision.models.VisionTransformer(
        32, 16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=3
    )
    # Its head starts at 0, where the gradient of all other layers is 0 too.
    nn.init.normal_(net.heads.head.weight, std=0.1)
    return net


@pytest.fixture(scope="module")
def seeded() -> Callable[[Callable[[], nn.Module]], nn.Module]:
    def make(build: Callable[[], nn.Module]) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return build()

    return make


@pytest.mark.parametrize(
    ("build", "size", "mode"),
    [
        # Below 64 px a client's own BatchNorm refuses a batch of one image in training mode.
        (lambda: torchvision.models.resnet18(num_classes=3), 64, "train"),
        (lambda: torchvision.models.mobilenet_v3_small(num_classes=3), 64, "train"),
        (lambda: torchvision.models.mobilenet_v3_small(num_classes=3), 64, "eval"),
        (vision_transformer, 32, "train"),
        (vision_transformer, 32, "eval"),
    ],
    ids=["resnet18-train", "mobilenet_v3_small-train", "mobilenet_v3_small-eval", "vit-train", "vit-eval"],
)
def test_torchvisions_models_are_audited_on_real_images(
    build: Callable[[], nn.Module], size: int, mode: Any, seeded: Callable[[Callable[[], nn.Module]], nn.Module]
) -> None:
    net, victim = seeded(build), brains(size)
    update, _ = client_update(net, victim, None, mode=mode)
    report = audit(net, update, images=victim, mode=mode, attacks=[PLAIN])
    (record,) = report.records
    found = report.reconstructions["inverting_gradients"]
    assert found.shape == (1, 3, size, size)
    assert bool(((found >= 0) & (found <= 1)).all())
    assert record.mse == pytest.approx(float((found - victim.floats()).square().mean()), rel=1e-4)
    assert record.label_recovered


def test_a_client_that_froze_its_body_is_audited(blobs: Blobs) -> None:
    victim, net = blobs(1, 1), build_model(WIDE)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(not name.startswith("body.0"))
    update, _ = client_update(net, victim, None)
    assert "body.0.weight" not in update.tensors
    report = audit(net, update, images=victim, attacks=[CLOSE])
    assert report.worst("mse") < 0.01


def test_a_model_on_images_that_clients_normalise(blobs: Blobs) -> None:
    victim = blobs(1, 1, side=12)
    normalize: tuple[Sequence[float], Sequence[float]] = ([0.4], [0.2])
    update, _ = client_update(build_model(SPEC), victim, None, normalize=normalize)
    right, wrong = (
        audit(build_model(SPEC), update, images=victim, attacks=[CLOSE], normalize=given) for given in (normalize, None)
    )
    assert right.worst("mse") < 0.2 * wrong.worst("mse")


@pytest.mark.parametrize("told", [True, False])
def test_a_weight_change_of_unknown_rate_says_which_one_was_taken(told: bool) -> None:
    model = build_model(ModelSpec("lenet", (1, 16, 16), 4))
    x = torch.rand((6, 1, 16, 16), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 0, 2, 3, 2])
    update, _ = client_update(model, x, labels, local_steps=2, learning_rate=0.02)
    state = model.state_dict()
    arrays = [(state[name] + change).numpy() for name, change in update.tensors.items()]
    report = audit(model, arrays, images=x, labels=labels, labels_known=told, attacks=[InvertingGradients(steps=2)])
    unsure = [note for note in report.notes if "learning rate of update 0 is not known" in note]
    assert len(unsure) == 1
    assert ("direction alone" in unsure[0]) == told
    assert sum(bool(record.label_recovered) for record in report.records) >= 4
