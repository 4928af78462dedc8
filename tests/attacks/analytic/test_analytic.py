from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fedveil.attacks import Analytic, Knowledge, Observation
from fedveil.attacks.analytic.disentangle import lone_inputs, single_input, unmixed_inputs
from fedveil.attacks.analytic.first_layer import find_first_layer
from fedveil.attacks.labels.pairing import paired
from fedveil.attacks.scoring import match
from fedveil.attacks.target.model import TargetModel, target_model
from fedveil.defense import DEFENSES
from fedveil.defense.base import Stateless
from fedveil.defense.update_noise import UpdateNoise
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import ClientUpdate, Reconstruction, ThreatModel
from fedveil.fl.models import ModelSpec, build_model
from fedveil.fl.seeding import seeded_globals, torch_stream

SPEC = ModelSpec("mlp", (1, 16, 16), 2, width=128)

Blobs = Callable[..., Images]
Observe = Callable[..., Observation]


def knowing(target: TargetModel, *, labels: bool = True) -> Knowledge:
    return Knowledge(ThreatModel(labels=labels), target, torch.device("cpu"), 3)


def known(spec: ModelSpec = SPEC, *, labels: bool = True) -> Knowledge:
    target = target_model(build_model(spec), image_shape=spec.image_shape, classes=spec.classes)
    return knowing(target, labels=labels)


def error(found: Reconstruction, images: Images) -> Tensor:
    truth = images.floats()
    return (found.images[match(found.images, truth)] - truth).square().flatten(1).mean(dim=1)


def random(count: int, seed: int = 1) -> Images:
    pixels = torch.randint(256, (count, 1, 16, 16), generator=torch_stream(seed, "pixels"))
    return Images(pixels.to(torch.uint8), torch.arange(count) % 2)


# Algebra


def test_one_input_is_the_ratio_of_the_gradients() -> None:
    x, errors = torch.tensor([0.0, 0.25, 1.0]).double(), torch.tensor([0.5, -2.0, 0.0]).double()
    weight = errors.outer(x)
    assert single_input(weight, errors).tolist() == [0.0, 0.25, 1.0]
    # What was not sent is unknown, and not 0: 0.25 shows in the second row alone.
    weight[0, 1] = 0
    assert single_input(weight, errors).tolist() == [0.0, 0.25, 1.0]


def test_noise_averages_out_over_the_rows() -> None:
    stream = torch_stream(0, "noise")
    x, errors = torch.rand(20, generator=stream).double(), torch.randn(4000, generator=stream).double()
    noisy = errors.outer(x) + 0.1 * torch.randn((4000, 20), generator=stream)
    assert (single_input(noisy, errors) - x).abs().max() < 0.01


def test_rows_that_show_one_input_are_grouped_largest_first() -> None:
    a, b, c = torch.rand((3, 8), generator=torch_stream(0, "rows")).double()
    groups = lone_inputs(torch.stack([a, b, a, c, b, a * (1 + 1e-5)]), 2)
    assert [group.tolist() for group in groups] == [[0, 2, 5], [1, 4]]


@pytest.mark.parametrize("count", [2, 5])
def test_sparse_errors_tell_a_batch_apart(count: int) -> None:
    stream = torch_stream(0, "sparse", count)
    inputs = torch.rand((count, 30), generator=stream).double()
    errors = torch.randn((80, count), generator=stream).double()
    errors *= torch.rand((80, count), generator=stream) < 0.5
    *_, found = unmixed_inputs(errors @ inputs, errors.sum(dim=1), count, starts=512, stream=stream)
    assert torch.cdist(inputs, found).min(dim=1).values.max() < 1e-9


def test_errors_without_zeros_tell_nothing_apart() -> None:
    stream = torch_stream(0, "dense")
    inputs = torch.rand((3, 30), generator=stream).double()
    errors = torch.randn((80, 3), generator=stream).double()
    assert not [*unmixed_inputs(errors @ inputs, errors.sum(dim=1), 3, starts=512, stream=stream)]
    # More images than rows.
    assert not [*unmixed_inputs(errors[:2] @ inputs, errors[:2].sum(dim=1), 3, starts=512, stream=stream)]


# The first layer


class Turned(nn.Module):
    """Normalises, turns and mirrors its pixels, and asks a weight for its type first."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.first.weight.dtype)
        x = (x - torch.tensor([0.2, 0.6]).view(-1, 1, 1)) / torch.tensor([0.5, 2.0]).view(-1, 1, 1)
        logits: Tensor = self.head(self.first(x.flip(3).transpose(1, 3).flatten(1)).relu())
        return logits


def test_what_stands_before_the_first_layer_is_undone() -> None:
    module = Turned()
    target = target_model(module, image_shape=(2, 4, 4), classes=2)
    layer = find_first_layer(target)
    assert (layer.weight, layer.bias) == ("first.weight", "first.bias")
    images = torch.rand((3, 2, 4, 4), generator=torch_stream(0, "images"))
    entered: list[Tensor] = []
    module.first.register_forward_hook(lambda module, args, output: entered.append(args[0].detach()))
    module(images)
    torch.testing.assert_close(layer.pixels(entered[0].double()).float(), images.flatten(1))


class PerRow(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 4), nn.Flatten(), nn.Linear(16, 2))


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)),
            "the first layer of Sequential is not a linear one over all pixels",
        ),
        (PerRow(), r"the first layer of PerRow is linear in \(1, 4, 4\) numbers, not in all 16 pixels"),
        (nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False)), "the first layer of Sequential has no bias"),
        (nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 2)), r"linear in \(4,\) numbers"),
        (nn.Sequential(nn.InstanceNorm2d(1), nn.Flatten(), nn.Linear(16, 2)), "pixels are mixed before they enter"),
        (nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, 2)), "is not a linear one over all pixels"),
        (
            nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(16, 2))),
            "is not a linear one over all pixels",
        ),
    ],
)
def test_other_first_layers_are_refused(module: nn.Module, sentence: str) -> None:
    target = target_model(module, image_shape=(1, 4, 4), classes=2)
    with pytest.raises(FedveilError, match=sentence):
        find_first_layer(target)
    assert not Analytic().applies(knowing(target))


# The attack


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("labels", [True, False])
def test_one_image_is_exact(steps: int, labels: bool, blobs: Blobs, observe: Observe) -> None:
    images = blobs(1, 1)
    seen = observe(images, SPEC, steps=steps, labels=labels)
    (found,) = Analytic()([seen], known(labels=labels))
    assert float((found.images - images.floats()).abs().max()) < 1e-5
    assert found.labels.tolist() == images.labels.tolist()
    assert found.loss < 1e-6


def test_normalisation_outside_of_the_model_is_undone(blobs: Blobs) -> None:
    images = blobs(1, 1)
    normalize = ([0.3], [0.2])
    module = build_model(SPEC)
    target = target_model(module, image_shape=(1, 16, 16), classes=2, normalize=normalize)
    loss = nn.functional.cross_entropy(module((images.floats() - 0.3) / 0.2), images.labels)
    names = dict(module.named_parameters())
    update = ClientUpdate.gradient(dict(zip(names, torch.autograd.grad(loss, list(names.values())), strict=True)))
    weights = {name: weight.detach() for name, weight in names.items()}
    seen = Observation(0, 0, update, weights, 1, labels=images.labels)
    (found,) = Analytic()([seen], knowing(target))
    assert float((found.images - images.floats()).abs().max()) < 1e-5


@pytest.mark.parametrize(("size", "steps"), [(2, 1), (4, 1), (4, 3)])
def test_a_batch_behind_relus_is_exact(size: int, steps: int, observe: Observe) -> None:
    images = random(size)
    (found,) = Analytic()([observe(images, SPEC, steps=steps, labels=False)], known(labels=False))
    assert float(error(found, images).max()) < 1e-10
    # Each image with its own label, though an update tells no order.
    order = match(found.images, images.floats())
    assert found.labels[order].tolist() == images.labels.tolist()
    assert found.loss < 1e-6


def test_units_that_one_image_woke_show_it_where_the_rest_is_mixed(
    observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedveil.attacks.analytic.attack.unmixed_inputs", lambda *arguments, **options: ())
    images = random(3)
    (found,) = Analytic()([observe(images, SPEC)], known())
    assert float(error(found, images).max()) < 1e-10


def test_without_sparse_errors_the_loss_says_that_nothing_was_found(observe: Observe) -> None:
    with seeded_globals(0):
        smooth = nn.Sequential(nn.Flatten(), nn.Linear(256, 64), nn.Sigmoid(), nn.Linear(64, 2))
    images = random(3)
    loss = nn.functional.cross_entropy(smooth(images.floats()), images.labels)
    names = dict(smooth.named_parameters())
    seen = observe(images, SPEC)
    gradient = dict(zip(names, torch.autograd.grad(loss, list(names.values())), strict=True))
    weights = {name: weight.detach() for name, weight in names.items()}
    seen = replace(seen, update=replace(seen.update, tensors=gradient), weights=weights)
    (found,) = Analytic(starts=512)([seen], knowing(target_model(smooth, image_shape=(1, 16, 16), classes=2)))
    assert found.images.shape == (3, 1, 16, 16)
    assert found.loss > 1e-5


@pytest.mark.parametrize(
    ("defense", "bound"), [({"name": "top_k", "keep": 0.3}, 0.02), ({"name": "update_noise", "strength": 1e-4}, 1e-3)]
)
def test_updates_that_are_thinned_or_blurred_show_the_image_still(
    defense: dict[str, object], bound: float, blobs: Blobs, observe: Observe
) -> None:
    images = blobs(1, 1)
    settings = dict(defense)
    hooks = Stateless(DEFENSES[str(settings.pop("name"))](**settings))
    (found,) = Analytic()([observe(images, SPEC, hooks=hooks)], known())
    assert float(error(found, images).max()) < bound


def test_repeated_observations_add_rows(blobs: Blobs, observe: Observe) -> None:
    images = blobs(1, 1)
    hooks = Stateless(UpdateNoise(strength=1e-3))
    first, *others = (observe(images, SPEC, hooks=hooks, number=number) for number in range(8))
    once, often = (
        float(error(Analytic()([seen], known())[0], images).max())
        for seen in (first, replace(first, repeats=tuple(others)))
    )
    assert often < once / 2


def test_a_frozen_first_layer_and_another_model_are_refused(blobs: Blobs, observe: Observe) -> None:
    seen = observe(blobs(1, 1), SPEC)
    tensors = {name: t for name, t in seen.update.tensors.items() if name != "body.1.bias"}
    with pytest.raises(FedveilError, match=r"the update lacks body\.1\.bias, which shows the images"):
        Analytic()([replace(seen, update=replace(seen.update, tensors=tensors))], known())
    lenet = ModelSpec("lenet", (1, 16, 16), 2, width=4)
    with pytest.raises(FedveilError, match="the first layer of LeNet is not a linear one over all pixels"):
        Analytic()([observe(blobs(1, 1), lenet)], known(lenet))
    with pytest.raises(FedveilError, match="analytic: starts is 0"):
        Analytic(starts=0)


# Labels


def test_labels_are_put_to_the_images_that_they_belong_to(observe: Observe) -> None:
    images = random(4)
    images = replace(images, labels=torch.tensor([1, 0, 0, 1]))
    seen = observe(images, SPEC)
    order = torch.tensor([2, 0, 3, 1])
    assert paired(images.floats()[order], torch.tensor([0, 0, 1, 1]), seen, known()).tolist() == [0, 1, 1, 0]
    headless = replace(seen.update, tensors={n: t for n, t in seen.update.tensors.items() if n != "head.weight"})
    labels = torch.tensor([0, 0, 1, 1])
    assert paired(images.floats()[order], labels, replace(seen, update=headless), known()).tolist() == [0, 0, 1, 1]
