from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fedveil.defense import Precode, Soteria, Stack
from fedveil.defense.base import Stateless
from fedveil.defense.precode import divergence, revealed, visible
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.hooks import NoHooks
from fedveil.fl.messages import ClientUpdate, UpdateKind
from fedveil.fl.models import ModelSpec, build_model, init_model
from fedveil.fl.training import LocalTraining, local_update

DEFENSE = Precode(size=6)
SPEC = DEFENSE.classifier(ModelSpec("lenet", (1, 8, 8), 3, width=3))


def images(count: int, seed: int = 0) -> Images:
    stream = torch.Generator().manual_seed(seed)
    return Images(torch.randint(256, (count, 1, 8, 8), generator=stream, dtype=torch.uint8), torch.arange(count) % 3)


def sent(count: int, *, hooks: NoHooks | None = None, seed: int = 0) -> ClientUpdate:
    training = LocalTraining(UpdateKind.GRADIENT, 1, count, 0.1)
    stream = torch.Generator().manual_seed(seed)
    own = Stateless(DEFENSE) if hooks is None else hooks
    return local_update(build_model(SPEC), init_model(SPEC, 2), images(count), own, training, stream).update


def test_a_divergence_by_hand() -> None:
    """Of N(0, 1) none, of N(2, 1) half of 4, of N(0, e^2) half of e^2 - 1 - 2."""
    found = divergence(torch.tensor([[0.0], [2.0], [0.0]]), torch.tensor([[1.0], [1.0], [math.e]]))
    torch.testing.assert_close(found, torch.tensor([0.0, 2.0, (math.e**2 - 3) / 2]))


@settings(max_examples=30)
@given(st.floats(-3, 3), st.floats(0.1, 4))
def test_it_is_that_of_the_distributions(mean: float, deviation: float) -> None:
    torch_own = torch.distributions.kl_divergence(
        torch.distributions.Normal(torch.tensor(mean), torch.tensor(deviation)), torch.distributions.Normal(0.0, 1.0)
    )
    found = divergence(torch.full((1, 3), mean), torch.full((1, 3), deviation))
    torch.testing.assert_close(found, 3 * torch_own[None], rtol=1e-4, atol=1e-5)


def test_the_penalty_is_that_of_the_codes_and_is_read_without_a_draw() -> None:
    model = build_model(SPEC).train()
    x, y = images(4).batch(torch.arange(4))
    before = torch.get_rng_state()
    loss = Precode(size=6, strength=0.5).loss(torch.tensor(1.0), model, x, y, torch.zeros(4, 3))
    assert torch.equal(torch.get_rng_state(), before)
    encoder = model.get_submodule("head.bottleneck.encoder")
    mean, spread = encoder(model.get_submodule("body")(x).flatten(1)).chunk(2, 1)
    expected = 1 + 0.5 * divergence(mean, F.softplus(spread)).mean()
    torch.testing.assert_close(loss, expected)
    assert Precode(strength=0).loss(loss, model, x, y, x) is loss


def drawn(seed: int, count: int = 1) -> Tensor:
    """What the bottleneck draws in a client's step, watched from inside."""
    model, kept = build_model(SPEC), []
    layer = model.get_submodule("head.bottleneck")

    class Watched(NoHooks):
        def loss(self, loss: Tensor, model: torch.nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
            return Stateless(DEFENSE).loss(loss, model, x, y, logits)

    def note(module: torch.nn.Module, args: tuple[Tensor]) -> None:
        kept.append(args[0])

    decoder, encoder = layer.get_submodule("decoder"), layer.get_submodule("encoder")
    decoder.register_forward_pre_hook(note)
    training = LocalTraining(UpdateKind.GRADIENT, 1, count, 0.1)
    stream = torch.Generator().manual_seed(seed)
    local_update(model, init_model(SPEC, 2), images(count), Watched(), training, stream)
    x = images(count).floats()
    mean, spread = encoder(model.get_submodule("body")(x).flatten(1)).chunk(2, 1)
    noise: Tensor = ((kept[0] - mean) / F.softplus(spread)).detach()
    return noise


@pytest.mark.parametrize("seed", range(5))
def test_one_images_update_tells_what_was_drawn(seed: int) -> None:
    update = sent(1, seed=seed)
    found = revealed(update.tensors, init_model(SPEC, 2))
    assert found.keys() == {"head.bottleneck.noise"}
    torch.testing.assert_close(found["head.bottleneck.noise"], drawn(seed), atol=1e-3, rtol=1e-3)


def test_with_it_the_model_sends_the_very_gradient() -> None:
    update, model = sent(1), build_model(SPEC)
    model.load_state_dict(init_model(SPEC, 2), strict=False)
    model.eval().get_submodule("head.bottleneck").noise = revealed(update.tensors, init_model(SPEC, 2))[
        "head.bottleneck.noise"
    ]
    x, y = images(1).batch(torch.arange(1))
    logits = model(x)
    loss = DEFENSE.loss(F.cross_entropy(logits, y), model, x, y, logits)
    for (name, _), gradient in zip(
        model.named_parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
    ):
        torch.testing.assert_close(gradient, update.tensors[name], atol=1e-5, rtol=1e-3)


def test_the_bottleneck_is_left_out_of_the_match() -> None:
    for update in (sent(1), sent(2)):
        for name, mask in visible(update.tensors).items():
            assert bool((mask == (0 if "bottleneck" in name else 1)).all())


def test_of_several_images_or_without_all_of_the_bottleneck_nothing_is_told() -> None:
    assert revealed(sent(2).tensors, init_model(SPEC, 2)) == {}
    single = dict(sent(1).tensors)
    del single["head.bottleneck.encoder.bias"]
    assert revealed(single, init_model(SPEC, 2)) == {}


def test_a_model_without_a_bottleneck_is_refused() -> None:
    plain = build_model(ModelSpec("lenet", (1, 8, 8), 3))
    with pytest.raises(FedveilError, match="precode: LeNet has no bottleneck"):
        DEFENSE.loss(torch.tensor(1.0), plain, torch.zeros(1, 1, 8, 8), torch.tensor([0]), torch.zeros(1, 3))


def test_a_stack_changes_the_model_and_hands_all_of_it_over() -> None:
    stack = Stack(parts=(Soteria(), DEFENSE))
    assert stack.classifier(ModelSpec("lenet", (1, 8, 8), 3)).bottleneck == 6
    surrogate = Stack(parts=(DEFENSE,)).prepare(images(2), None, (None,), client=0).surrogate()  # type: ignore[arg-type]
    assert surrogate.revealed is revealed
    assert surrogate.loss is not None
    assert surrogate.complete
