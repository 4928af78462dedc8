from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus import GradSampleModule
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.accountants.analysis.rdp import compute_rdp
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.nn import functional as F

from fedveil.defense import DPSGD, Defense, DefenseContext, GroupMean, PixelNoise, Stack, UpdateNoise, dp_sgd
from fedveil.defense.dp_sgd import clipped_sums
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.hooks import NoHooks
from fedveil.fl.messages import ClientUpdate, UpdateKind
from fedveil.fl.models import ModelSpec, build_model
from fedveil.fl.rounds import Exposure
from fedveil.fl.training import LocalTraining, exchanged, local_update

SPEC = ModelSpec("convnet", (1, 12, 12), classes=2, norm="group", width=4)


@dataclass(frozen=True, kw_only=True)
class Curved(Defense[None]):
    """Changes the loss."""

    def loss(self, loss: Tensor, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        return loss.square()


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def one_by_one(model: nn.Module, x: Tensor, y: Tensor, clip: float) -> list[Tensor]:
    """The definition, image by image."""
    sums = [torch.zeros_like(parameter) for parameter in trained(model)]
    for image, label in zip(x, y, strict=True):
        gradients = torch.autograd.grad(F.cross_entropy(model(image[None]), label[None]), trained(model))
        norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
        for total, gradient in zip(sums, gradients, strict=True):
            total += gradient * min(1.0, clip / norm)
    return sums


@pytest.mark.parametrize("clip", [0.05, 0.7, 1e6])
def test_the_sum_is_that_of_single_images_and_that_of_opacus(private: Images, clip: float) -> None:
    model = build_model(SPEC, 1)
    x, y = private.floats()[:20], private.labels[:20]
    found = clipped_sums(model, x, y, clip, stream())
    for mine, slow in zip(found, one_by_one(model, x, y, clip), strict=True):
        torch.testing.assert_close(mine, slow, atol=1e-5, rtol=1e-4)
    theirs = GradSampleModule(build_model(SPEC, 1))
    optimizer = DPOptimizer(
        torch.optim.SGD(theirs.parameters(), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=clip,
        expected_batch_size=20,
        loss_reduction="mean",
    )
    F.cross_entropy(theirs(x), y).backward()
    optimizer.pre_step()
    for mine, parameter in zip(found, theirs.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(mine / 20, parameter.grad, atol=1e-6, rtol=1e-3)


def test_frozen_parameters_are_left_out_and_chunks_change_rounding_at_most(
    private: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model(SPEC, 1)
    model.get_parameter("head.bias").requires_grad_(False)
    x, y = private.floats()[:10], private.labels[:10]
    whole = clipped_sums(model, x, y, 0.5, stream())
    assert len(whole) == len(trained(model)) == len(list(model.parameters())) - 1
    monkeypatch.setattr(dp_sgd, "NUMBERS_AT_ONCE", 3 * sum(parameter.numel() for parameter in trained(model)))
    for left, right in zip(clipped_sums(model, x, y, 0.5, stream()), whole, strict=True):
        torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-5)


def test_a_step_worked_by_hand() -> None:
    """One weight per class and a bright image: the gradient of image (1) with probabilities (1/2, 1/2)."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :1] * self.weight

    # (-1/2, 1/2) has the norm .7071; at most .35355 is half of it.
    model, x, y = Two(), torch.ones(2, 1, 1, 1), torch.tensor([0, 1])
    found = clipped_sums(model, x[:1], y[:1], math.sqrt(0.5) / 2, stream())
    torch.testing.assert_close(found[0], torch.tensor([-0.25, 0.25]))
    hook = DPSGD(strength=1e-9, clip=math.sqrt(0.5) / 2)
    loss = F.cross_entropy(model(x[:1]), y[:1])
    # Four images are expected in a step, and one came.
    (step,) = hook.gradients(loss, model, x[:1], y[:1], 4, stream())
    torch.testing.assert_close(step, torch.tensor([-0.0625, 0.0625]), atol=1e-7, rtol=0)


def test_a_step_without_images_is_noise_of_the_right_size() -> None:
    model = build_model(SPEC)
    hook = DPSGD(strength=2.0, clip=0.5)
    nothing = torch.zeros(0, 1, 12, 12), torch.zeros(0, dtype=torch.long)
    found = hook.gradients(torch.zeros(()), model, *nothing, 10, stream())
    flat = torch.cat([one.flatten() for one in found])
    assert flat.numel() == sum(parameter.numel() for parameter in model.parameters())
    assert float(flat.std()) == pytest.approx(2.0 * 0.5 / 10, rel=0.05)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 5.0), st.integers(1, 12), st.integers(0, 5))
def test_no_image_moves_the_sum_by_more_than_the_clip(clip: float, count: int, seed: int) -> None:
    model = build_model(SPEC, seed)
    x = torch.rand((count, 1, 12, 12), generator=stream(seed))
    y = torch.randint(2, (count,), generator=stream(seed))
    all_of_them = clipped_sums(model, x, y, clip, stream())
    without = clipped_sums(model, x[1:], y[1:], clip, stream())
    moved = sum(float((a - b).double().square().sum()) for a, b in zip(all_of_them, without, strict=True))
    assert math.sqrt(moved) <= clip * (1 + 1e-4)


def test_batchnorm_is_refused(private: Images) -> None:
    model = build_model(replace(SPEC, norm="batch"))
    x, y = private.floats()[:2], private.labels[:2]
    with pytest.raises(FedveilError, match=r"is BatchNorm, which mixes images; allowed: model\.norm: group"):
        DPSGD().gradients(F.cross_entropy(model(x), y), model, x, y, 2, stream())


def test_what_a_model_notes_of_its_images_is_not_sent_without_noise(private: Images) -> None:
    class Noting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("brightness", torch.zeros(()))
            self.head = nn.Linear(144, 2)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.brightness = x.detach().mean()
            found: Tensor = self.head(x.flatten(1))
            return found

    model = Noting()
    weights = {name: value.clone() for name, value in exchanged(model).items()}
    hooks = DPSGD().prepare(private, DefenseContext(private, SPEC, torch.device("cpu"), 0), None, client=0)
    spec = LocalTraining(UpdateKind.DELTA, 1, 8, 0.1, sampling="poisson")
    with pytest.raises(
        FedveilError, match="the model's buffer brightness changes in training and is sent without noise"
    ):
        local_update(model, weights, private, hooks, spec, stream())
    sent = local_update(model, weights, private, hooks, replace(spec, mode="eval"), stream()).update
    assert not sent.buffers["brightness"].any()


def test_epsilon_is_that_of_opacus_step_by_step() -> None:
    accountant = RDPAccountant()
    for _ in range(300):
        accountant.step(noise_multiplier=1.1, sample_rate=0.02)
    busiest = Exposure(rate=0.02, steps=300)
    spent = DPSGD(strength=1.1).guarantee([Exposure(0.02, 10), busiest, busiest, Exposure(0.01, 300), Exposure(0.5, 0)])
    assert spent == {"epsilon": accountant.get_epsilon(1e-5), "delta": 1e-5}
    tighter = PRVAccountant()
    tighter.history = [(1.1, 0.02, 300)]
    assert DPSGD(strength=1.1, accountant="prv").guarantee([busiest])["epsilon"] == tighter.get_epsilon(1e-5)
    assert tighter.get_epsilon(1e-5) < spent["epsilon"]


def test_epsilon_of_the_usual_example() -> None:
    # MNIST in 60 epochs of batches of 256 with noise 1.1: 3.0 by moments with the first conversion from them (Mironov 2017,
    # proposition 3), which is what tutorials show; Opacus converts more tightly.
    rate, steps = 256 / 60000, 60 * 60000 // 256
    orders = RDPAccountant.DEFAULT_ALPHAS
    moments = compute_rdp(q=rate, noise_multiplier=1.1, steps=steps, orders=orders)
    first = min(one + math.log(1e5) / (order - 1) for one, order in zip(moments, orders, strict=True))
    assert first == pytest.approx(3.0, abs=0.05)
    assert 0.8 * first < DPSGD(strength=1.1).guarantee([Exposure(rate, steps)])["epsilon"] < first


def test_a_client_that_never_took_part_has_spent_nothing() -> None:
    assert DPSGD(delta=1e-6).guarantee([Exposure(0.1, 0)]) == {"epsilon": 0.0, "delta": 1e-6}


def test_where_an_accountant_finds_no_epsilon_a_sentence_says_so() -> None:
    with pytest.raises(
        FedveilError, match=r"accountant gdp finds no epsilon for strength 0\.1 over 100 steps .*; try rdp"
    ):
        DPSGD(strength=0.1, accountant="gdp").guarantee([Exposure(1.0, 100)])


def test_without_opacus_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    with pytest.raises(FedveilError, match="epsilon needs Opacus: pip install opacus"):
        DPSGD().guarantee(())


def test_images_are_drawn_by_chance_each_with_the_same(private: Images) -> None:
    model = build_model(SPEC)
    spec = LocalTraining(UpdateKind.DELTA, 40, 8, 0.01, sampling="poisson")
    sizes: list[int] = []
    drawn = torch.zeros(len(private))

    def note(x: Tensor, at: Tensor) -> None:
        sizes.append(len(at))
        drawn[at] += 1
        assert len(at.unique()) == len(at)

    result = local_update(model, exchanged(build_model(SPEC)), private, NoHooks(), spec, stream(), on_batch=note)
    assert len(sizes) == result.update.local_steps == 40 * 10
    # Binomial(80, 1/10): mean 8, variance 7.2; over 400 steps the mean's deviation is .13.
    assert sum(sizes) / 400 == pytest.approx(8, abs=0.5)
    assert float(torch.tensor(sizes, dtype=torch.float32).var()) == pytest.approx(7.2, rel=0.3)
    # Each image in Binomial(400, 1/10): 40 with a deviation of 6.
    assert float(drawn.min()) > 15
    assert float(drawn.max()) < 65


def test_a_turn_without_a_single_image_still_sends(private: Images) -> None:
    few = private.take(torch.tensor([0, 1, 2]))
    hooks = DPSGD().prepare(few, DefenseContext(few, SPEC, torch.device("cpu"), 0), None, client=0)
    spec = LocalTraining(UpdateKind.GRADIENT, None, 1, 0.1, steps=1, sampling="poisson")
    results = [
        local_update(build_model(SPEC), exchanged(build_model(SPEC)), few, hooks, spec, stream(seed))
        for seed in range(12)
    ]
    assert {result.update.examples for result in results} == {1}, "how many were drawn is not said"
    assert any(result.loss == 0.0 for result in results)
    assert all(tensor.isfinite().all() for result in results for tensor in result.update.tensors.values())
    assert all(result.update.tensors["head.weight"].count_nonzero() > 0 for result in results)


def test_the_attackers_copy_does_to_one_image_what_the_client_does(private: Images) -> None:
    context = DefenseContext(private, SPEC, torch.device("cpu"), 0)
    defence = DPSGD(strength=1e-9, clip=0.05)
    prepared = defence.prepare(private, context, None, client=0)
    surrogate = prepared.surrogate()
    assert surrogate.complete
    assert surrogate.update is not None
    one, spec = private.take(torch.tensor([3])), LocalTraining(UpdateKind.GRADIENT, None, 1, 0.1, steps=1)
    weights = exchanged(build_model(SPEC))
    sent = local_update(build_model(SPEC), weights, one, prepared, spec, stream()).update
    bare = local_update(build_model(SPEC), weights, one, NoHooks(), spec, stream()).update
    copied = surrogate.update(bare, stream())
    for name, tensor in sent.tensors.items():
        torch.testing.assert_close(copied.tensors[name], tensor, atol=1e-6, rtol=1e-4)
    # As a weight change of one step it is the same, times the rate.
    change = ClientUpdate.delta({name: -0.25 * tensor for name, tensor in bare.tensors.items()}, learning_rate=0.25)
    for name, tensor in surrogate.update(change, stream()).tensors.items():
        torch.testing.assert_close(tensor, -0.25 * sent.tensors[name], atol=1e-6, rtol=1e-4)


def test_its_noise_is_that_of_a_single_step(private: Images) -> None:
    defence = DPSGD(strength=3.0, clip=0.5)
    update = ClientUpdate.gradient({"w": torch.zeros(20000)}, examples=4)
    assert float(defence.surrogate().update(update, stream()).tensors["w"].std()) == pytest.approx(
        3 * 0.5 / 4, rel=0.05
    )  # type: ignore[misc]


def test_in_a_list_it_stands_beside_what_leaves_loss_and_gradients_alone(
    context: DefenseContext, private: Images
) -> None:
    stack = Stack(parts=(PixelNoise(strength=0.1), DPSGD(strength=2.0), UpdateNoise()))
    prepared = stack.prepare(private, context, stack.pretrain(context), client=0)
    nothing = torch.zeros(0, 1, 12, 12), torch.zeros(0, dtype=torch.long)
    noise = prepared.gradients(torch.zeros(()), build_model(SPEC), *nothing, 1, stream())
    assert float(torch.cat([one.flatten() for one in noise]).std()) == pytest.approx(2.0, rel=0.05)
    exposure = [Exposure(0.1, 50)]
    assert stack.guarantee(exposure) == DPSGD(strength=2.0).guarantee(exposure)


@pytest.mark.parametrize(
    ("other", "named"), [(DPSGD(), "dp_sgd"), (GroupMean(k=3), "group_mean"), (Curved(), "Curved")], ids=repr
)
def test_beside_it_no_image_may_depend_on_others_and_no_loss_be_changed(
    other: Defense[Any], named: str, context: DefenseContext, private: Images
) -> None:
    stack = Stack(parts=(other, DPSGD()))
    with pytest.raises(FedveilError, match=f"lets no image depend on others, not {named}"):
        stack.prepare(private, context, stack.pretrain(context), client=0)


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({"strength": 0.0}, "strength"),
        ({"clip": -1.0}, "clip"),
        ({"delta": 1.0}, "below 1"),
        ({"delta": 0.0}, "delta"),
        ({"accountant": "moments"}, "rdp, prv, gdp"),
    ],
)
def test_impossible_settings_are_refused(given_: dict[str, float], said: str) -> None:
    with pytest.raises(FedveilError, match=said):
        DPSGD(**given_)  # type: ignore[arg-type]
