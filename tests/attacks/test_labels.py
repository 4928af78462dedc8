from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fedveil.attacks import Observation
from fedveil.attacks.base import AttackerPreparation, Knowledge
from fedveil.attacks.labels import labels_of, likeliest_rate, recover_labels
from fedveil.attacks.labels.counts import least_counts, nearest_counts
from fedveil.attacks.labels.last_layer import LastGradient, find_last_layer, last_gradient
from fedveil.attacks.labels.recovery import mean_input
from fedveil.attacks.labels.rules import geng, idlg, llg, yin
from fedveil.attacks.labels.simulation import StandIns, simulated
from fedveil.attacks.target.model import TargetModel, target_model
from fedveil.defense.base import Stateless, Surrogate
from fedveil.defense.update_noise import UpdateNoise
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import ClientUpdate, ThreatModel, UpdateKind
from fedveil.fl.models import ModelSpec
from fedveil.fl.seeding import torch_stream

SHAPE = (1, 16, 16)
MODELS = {
    "lenet": ModelSpec("lenet", SHAPE, 4, width=4),
    "convnet-group": ModelSpec("convnet", SHAPE, 4, width=4),
    "convnet-none": ModelSpec("convnet", SHAPE, 4, norm="none", width=4),
    "resnet20-batch": ModelSpec("resnet20", SHAPE, 4, norm="batch", width=4),
}
TargetOf = Callable[[ModelSpec], TargetModel]


def only(bias: list[float]) -> LastGradient:
    return LastGradient(None, torch.tensor(bias, dtype=torch.float64))


def theory(logits: Tensor, labels: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The mean gradient of cross-entropy at the last layer: weight (k, d) and bias (k,)."""
    errors = logits.softmax(dim=1) - F.one_hot(labels, logits.shape[1])
    return errors.T @ inputs / len(labels), errors.mean(dim=0)


def counts_of(labels: Tensor, classes: int = 4) -> list[int]:
    return torch.bincount(labels, minlength=classes).tolist()


# Rules by hand


def test_idlg_takes_the_one_negative_entry_not_the_largest() -> None:
    assert idlg(only([0.2, -0.7, 0.5])).tolist() == [0, 1, 0]
    assert idlg(only([0.9, -0.3, -0.6])).tolist() == [0, 0, 1]


def test_without_a_bias_the_row_sums_tell() -> None:
    # Inputs (1, 2), softmax (0.2, 0.3, 0.5), label 2; no single entry of a row decides.
    rows = torch.tensor([0.2, 0.3, -0.5]).outer(torch.tensor([1.0, 2.0]))
    assert idlg(LastGradient(rows, None)).tolist() == [0, 0, 1]


def test_yin_takes_the_classes_with_the_lowest_entries() -> None:
    weight = torch.tensor([[0.1, -0.4], [0.3, 0.2], [-0.1, 0.5], [0.1, -0.2]])
    assert yin(weight, 2).tolist() == [1, 0, 0, 1]
    with pytest.raises(FedveilError, match="5 images of 4 classes repeat a label"):
        yin(weight, 5)


def test_llg_takes_each_label_s_impact_away() -> None:
    # Impact: -0.9 * (1 + 1 / 3) / 3 = -0.4. Found 0 and 1: left -0.4, 0.3, 0.9; then 0 again.
    assert llg(torch.tensor([-0.8, -0.1, 0.9]), 3).tolist() == [2, 1, 0]
    # Impact -1/3: left -1/6 and -1/6, then 1/6 and -1/6. breaching takes its impacts from a stale index: 3 and 1.
    assert llg(torch.tensor([-0.5, -0.5, 1.0]), 4).tolist() == [2, 2, 0]


def test_geng_adds_the_mean_softmax() -> None:
    # Softmax (0.2, 0.3, 0.5), counts (3, 1, 0) of 4.
    bias = torch.tensor([0.2 - 0.75, 0.3 - 0.25, 0.5])
    assert geng(bias, torch.tensor([[0.1, 0.4, 0.5], [0.3, 0.2, 0.5]]), 4).tolist() == [3, 1, 0]


def test_a_negative_entry_bounds_the_count_from_below() -> None:
    assert least_counts(torch.tensor([-0.3, 0.1, 0.2]), 4).tolist() == [2, 0, 0]
    # A classifier that is wrong about everything may mislead the estimate, and not the bound.
    assert geng(torch.tensor([-0.3, 0.1, 0.2]), torch.tensor([[0.0, 0.0, 1.0]]), 4).tolist() == [2, 0, 2]
    # Noise that asks for more labels than there are.
    assert least_counts(torch.tensor([-0.9, -0.9, 1.8]), 4).tolist() == [0, 0, 0]


def test_the_mean_input_is_exact_where_all_inputs_are_one() -> None:
    x = torch.tensor([0.5, 2.0, 0.0]).expand(4, -1).double()
    weight, bias = theory(torch.randn((4, 5), generator=torch_stream(0, "z")).double(), torch.tensor([0, 0, 1, 4]), x)
    assert torch.allclose(mean_input(LastGradient(weight, bias)), x[0])


# Laws


@st.composite
def batches(draw: st.DrawFn) -> tuple[int, Tensor]:
    classes = draw(st.integers(2, 9))
    return classes, torch.tensor(draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=64)))


@given(batches(), st.integers(0, 10_000))
@settings(max_examples=60)
def test_counts_are_exact_where_the_softmax_is_known(batch: tuple[int, Tensor], seed: int) -> None:
    classes, labels = batch
    stream = torch_stream(seed, "logits")
    logits = 2 * torch.randn((len(labels), classes), generator=stream, dtype=torch.float64)
    inputs = torch.rand((len(labels), 3), generator=stream, dtype=torch.float64)
    _, bias = theory(logits, labels, inputs)
    assert geng(bias, logits.softmax(dim=1), len(labels)).tolist() == counts_of(labels, classes)
    order = torch.randperm(len(labels), generator=stream)
    _, again = theory(logits[order], labels[order], inputs[order])
    assert geng(again, logits.softmax(dim=1), len(labels)).tolist() == counts_of(labels, classes)


@given(batches(), st.integers(0, 10_000), st.integers(1, 4), st.booleans())
@settings(max_examples=40)
def test_simulated_training_is_exact_where_all_inputs_are_one(
    batch: tuple[int, Tensor], seed: int, steps: int, with_bias: bool
) -> None:
    """One input for all images, so the gradient gives it away, and the simulation is the training itself."""
    classes, labels = batch
    stream = torch_stream(seed, "head")
    x = torch.rand(6, generator=stream, dtype=torch.float64) + 0.1
    weight = torch.randn((classes, 6), generator=stream, dtype=torch.float64)
    bias = torch.randn(classes, generator=stream, dtype=torch.float64) if with_bias else None
    w, b, rate = weight.clone(), torch.zeros(classes).double() if bias is None else bias.clone(), 0.05
    for _ in range(steps):
        own_w, own_b = theory((w @ x + b).expand(len(labels), -1), labels, x.expand(len(labels), -1))
        w -= rate * own_w
        b -= rate * own_b * with_bias
    gradient = LastGradient((weight - w) / (rate * steps), None if bias is None else (bias - b) / (rate * steps))
    inputs = x if bias is None else mean_input(gradient)
    counts, _ = simulated(
        gradient, StandIns([inputs[None]] * steps), weight, bias, learning_rate=rate, batch_size=len(labels)
    )
    assert counts.tolist() == counts_of(labels, classes)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12), st.integers(1, 64))
def test_every_rule_s_counts_sum_to_the_batch(values: list[float], size: int) -> None:
    bias = torch.tensor(values, dtype=torch.float64)
    softmax = bias.softmax(dim=0)[None]
    weight = bias.outer(torch.tensor([1.0, 0.5]).double())
    both = LastGradient(weight, bias)
    stand_ins = StandIns([torch.tensor([[1.0, 0.5]]).double()])
    for counts in (
        llg(bias, size),
        geng(bias, softmax, size),
        nearest_counts(bias, size),
        simulated(both, stand_ins, weight, bias, learning_rate=0.1, batch_size=size)[0],
    ):
        assert int(counts.sum()) == size
        assert int(counts.min()) >= 0


# Real updates


@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize("size", [1, 2, 6, 16])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("spec", MODELS.values(), ids=MODELS.keys())
def test_the_labels_of_a_real_update_are_recovered(
    spec: ModelSpec,
    steps: int,
    size: int,
    auxiliary: bool,
    blobs: Callable[..., Images],
    observe: Callable[..., Observation],
    target_of: TargetOf,
) -> None:
    labels = torch.tensor([3, 0, 3, 3, 1, 0, 3, 3, 3, 1, 1, 3, 3, 0, 0, 3])[:size]
    seen = observe(replace(blobs(size, 1), labels=labels), spec, steps=steps, learning_rate=0.01)
    assert seen.update.kind is (UpdateKind.DELTA if steps > 1 else UpdateKind.GRADIENT)
    own = replace(blobs(24, 2), labels=torch.arange(24) % 4) if auxiliary else None
    found = recover_labels(seen.update, batch_size=size, target=target_of(spec), weights=seen.weights, auxiliary=own)
    assert found.tolist() == sorted(labels.tolist())
    assert found.dtype == torch.int64


@pytest.mark.parametrize("size", [1, 6])
@pytest.mark.parametrize("lacking", ["head.bias", "head.weight"])
def test_one_of_the_last_layer_s_parameters_is_enough(
    lacking: str, size: int, blobs: Callable[..., Images], observe: Callable[..., Observation], target_of: TargetOf
) -> None:
    labels = torch.tensor([3, 0, 3, 3, 1, 0])[:size]
    seen = observe(replace(blobs(size, 1), labels=labels), MODELS["lenet"])
    update = replace(seen.update, tensors={n: t for n, t in seen.update.tensors.items() if n != lacking})
    found = recover_labels(update, batch_size=size, target=target_of(MODELS["lenet"]), weights=seen.weights)
    assert found.tolist() == sorted(labels.tolist())


def test_a_frozen_last_layer_is_refused(
    blobs: Callable[..., Images], observe: Callable[..., Observation], target_of: TargetOf
) -> None:
    # Its four first channels have as many rows as there are classes.
    seen = observe(blobs(2, 1), MODELS["convnet-none"])
    update = replace(seen.update, tensors={n: t for n, t in seen.update.tensors.items() if "head" not in n})
    with pytest.raises(FedveilError, match=r"the update lacks the last layer \(head.weight and head.bias\)"):
        recover_labels(update, batch_size=2, target=target_of(MODELS["convnet-none"]), weights=seen.weights)


def test_granted_labels_are_used_as_they_are(
    blobs: Callable[..., Images], observe: Callable[..., Observation], target_of: TargetOf
) -> None:
    seen = observe(blobs(2, 1), MODELS["lenet"])
    knowledge = Knowledge(ThreatModel(), target_of(MODELS["lenet"]), torch.device("cpu"), 0)
    assert labels_of(replace(seen, labels=torch.tensor([2, 1])), knowledge).tolist() == [2, 1]
    assert labels_of(replace(seen, labels=None), knowledge).tolist() == [0, 1]


# Sizes that are not known


@pytest.mark.parametrize("rate", [0.05, 0.005])
def test_an_unknown_learning_rate_is_found(
    rate: float, blobs: Callable[..., Images], observe: Callable[..., Observation], target_of: TargetOf
) -> None:
    labels = torch.tensor([3, 0, 3, 3, 1, 0, 3, 3])
    spec = MODELS["lenet"]
    seen = observe(replace(blobs(8, 1), labels=labels), spec, steps=2, learning_rate=rate)
    unknown = replace(seen.update, learning_rate=1.0)
    found = likeliest_rate(unknown, batch_size=8, target=target_of(spec), weights=seen.weights)
    assert found == pytest.approx(rate, rel=0.5)


def test_a_bias_alone_tells_no_rate(
    blobs: Callable[..., Images], observe: Callable[..., Observation], target_of: TargetOf
) -> None:
    head = nn.utils.parametrizations.weight_norm(nn.Linear(16, 3))
    module = nn.Sequential(nn.Flatten(), head)
    update = ClientUpdate.delta({"1.bias": torch.tensor([0.1, -0.3, 0.2])})
    weights = dict(module.named_parameters())
    assert likeliest_rate(update, batch_size=4, target=made(module), weights=weights) == 1.0


def test_a_defence_that_scales_updates_is_seen_through(
    blobs: Callable[..., Images], observe: Callable[..., Observation], target_of: TargetOf
) -> None:
    spec, clipping = MODELS["lenet"], UpdateNoise(strength=0.0, clip=0.01)
    granted = ThreatModel(labels=False, auxiliary_data=True, defense_algorithm=True)
    own = replace(blobs(24, 2), labels=torch.arange(24) % 4)
    prepared: dict[int | None, AttackerPreparation] = {None: AttackerPreparation(clipping.surrogate(), None)}
    knowing = Knowledge(granted, target_of(spec), torch.device("cpu"), 0, own, prepared)
    blind = replace(knowing, preparations={}, threat_model=replace(granted, defense_algorithm=False))
    hits = {True: 0, False: 0}
    for number in range(4):
        labels = torch.randint(4, (8,), generator=torch_stream(number, "labels")).clamp(max=number % 3 + 1)
        seen = observe(replace(blobs(8, number), labels=labels), spec, hooks=Stateless(clipping), labels=False)
        for knows, knowledge in ((True, knowing), (False, blind)):
            found = torch.bincount(labels_of(seen, knowledge), minlength=4)
            hits[knows] += int(torch.minimum(found, torch.bincount(labels, minlength=4)).sum())
    assert hits[True] > hits[False]


def test_stand_ins_pass_the_defence(
    blobs: Callable[..., Images], observe: Callable[..., Observation], target_of: TargetOf
) -> None:
    asked: list[tuple[int, ...]] = []

    def darken(x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        assert y is not None
        asked.append(tuple(x.shape))
        return x / 2

    seen = observe(blobs(4, 1), MODELS["lenet"])
    recover_labels(
        seen.update,
        batch_size=4,
        target=target_of(MODELS["lenet"]),
        weights=seen.weights,
        auxiliary=blobs(24, 2),
        surrogate=Surrogate(data=darken),
    )
    assert asked == [(24, 1, 16, 16)]


# Finding the last layer


class Scaled(nn.Module):
    """A head, beside a layer of as many outputs that is declared later and runs earlier, and a scale after it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)
        self.early = nn.Linear(16, 3)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.early(x.flatten(1)).sigmoid()) * self.scale
        return logits


class Written(nn.Module):
    """A head that is written out."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(16, 5)
        self.weight = nn.Parameter(torch.randn(3, 5))
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.flatten(1)) @ self.weight.T + self.bias


def made(module: nn.Module) -> TargetModel:
    return target_model(module, image_shape=(1, 4, 4), classes=3)


def test_the_last_layer_is_the_last_that_runs() -> None:
    found = find_last_layer(made(Scaled()))
    assert (found.weight, found.bias) == ("head.weight", "head.bias")


def test_a_head_that_is_written_out_is_found_by_its_shape() -> None:
    found = find_last_layer(made(Written()))
    assert (found.weight, found.bias) == ("weight", "bias")


def test_a_pooled_convolution_is_a_last_layer() -> None:
    found = find_last_layer(made(nn.Sequential(nn.Conv2d(1, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())))
    assert (found.weight, found.bias) == ("0.weight", "0.bias")


def test_a_head_whose_weight_is_computed_has_its_bias() -> None:
    head = nn.utils.parametrizations.weight_norm(nn.Linear(16, 3))
    found = find_last_layer(made(nn.Sequential(nn.Flatten(), head)))
    assert (found.weight, found.bias) == (None, "1.bias")


def test_a_classifier_without_a_last_layer_is_refused() -> None:
    with pytest.raises(FedveilError, match="Sequential has no last layer of 3 outputs"):
        find_last_layer(made(nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Unflatten(1, (3, 2)), nn.Flatten(2))))


def convolution() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize("make", [Scaled, Written, convolution])
@pytest.mark.parametrize("auxiliary", [False, True])
def test_labels_are_recovered_whatever_the_head_is(
    make: Callable[[], nn.Module], auxiliary: bool, blobs: Callable[..., Images]
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = make()
    images = replace(blobs(6, 3, side=4), labels=torch.tensor([0, 0, 0, 2, 1, 0]))
    loss = F.cross_entropy(module(images.floats()), images.labels)
    named = dict(module.named_parameters())
    update = ClientUpdate.gradient(dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True)))
    own = replace(blobs(9, 4, side=4), labels=torch.arange(9) % 3) if auxiliary else None
    found = recover_labels(update, batch_size=6, target=made(module), weights=dict(named), auxiliary=own)
    assert found.tolist() == [0, 0, 0, 0, 1, 2]


def test_the_sign_and_size_of_a_delta_are_turned() -> None:
    layer = find_last_layer(made(Scaled()))
    bias = torch.tensor([0.2, -0.7, 0.5])
    update = ClientUpdate.delta({"head.bias": -0.1 * 5 * bias}, learning_rate=0.1, local_steps=5)
    found = last_gradient(update, layer)
    assert found.weight is None
    assert found.bias is not None
    assert torch.allclose(found.bias, bias.double())
