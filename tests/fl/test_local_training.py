"""What a client's training may have beside plain SGD on its own images, see test_training.py for that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fedveil.fl.training as module
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.hooks import NoHooks
from fedveil.fl.messages import ClientUpdate, UpdateKind
from fedveil.fl.models import ModelSpec, build_model, init_model, model_on
from fedveil.fl.optimizers import SGD, Adam, LocalOptimizer
from fedveil.fl.training import LocalResult, LocalTraining, local_update

torch.set_num_threads(1)

SPEC = ModelSpec("lenet", (1, 12, 12), classes=3, width=4)
DELTA = LocalTraining(UpdateKind.DELTA, epochs=2, batch_size=4, learning_rate=0.1)
STEPS = replace(DELTA, epochs=None, steps=7)


def images(count: int, seed: int = 1) -> Images:
    stream = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, 1, 12, 12), generator=stream, dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % 3)


class Seen(nn.Module):
    """A model that keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = build_model(SPEC)
        self.shown: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.shown.append(x.detach().clone())
        logits: Tensor = self.inner(x)
        return logits


def train(
    how: LocalTraining,
    *,
    model: nn.Module | None = None,
    hooks: NoHooks | None = None,
    shard: Images | None = None,
    public: Images | None = None,
    on_batch: Callable[[Tensor, Tensor], None] | None = None,
) -> LocalResult:
    weights = init_model(SPEC, seed=3)
    if model is not None:
        weights = {f"inner.{name}": weight for name, weight in weights.items()}
    stream = torch.Generator().manual_seed(7)
    shard = images(10) if shard is None else shard
    where = build_model(SPEC) if model is None else model
    return local_update(where, weights, shard, hooks or NoHooks(), how, stream, public=public, on_batch=on_batch)


def same_bits(left: ClientUpdate, right: ClientUpdate) -> bool:
    return all(torch.equal(left.tensors[name], right.tensors[name]) for name in left.tensors)


THEIRS: dict[str, tuple[LocalOptimizer, Callable[[Any], torch.optim.Optimizer]]] = {
    "momentum": (
        SGD(momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    ),
    "adam": (Adam(), lambda p: torch.optim.Adam(p, lr=0.1)),
    "adamw": (Adam(weight_decay=0.1), lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1)),
}


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_a_weight_change_is_that_of_pytorchs_optimiser_on_the_proximal_loss(name: str, mu: float) -> None:
    rule, theirs = THEIRS[name]
    update = train(replace(DELTA, optimizer=rule, proximal=mu)).update
    weights, model = init_model(SPEC, 3), build_model(SPEC)
    model.load_state_dict(weights, strict=False)
    optimizer, order = theirs(model.parameters()), torch.Generator().manual_seed(7)
    for _ in range(2):
        for indices in torch.randperm(10, generator=order).split(4):
            x, y = images(10).batch(indices)
            distance = sum((p - weights[n]).square().sum() for n, p in model.named_parameters())
            optimizer.zero_grad()
            (F.cross_entropy(model(x), y) + mu / 2 * distance).backward()
            optimizer.step()
    for name, change in update.tensors.items():
        # Adam divides by the size of gradients that are nearly zero.
        torch.testing.assert_close(change, model.state_dict()[name] - weights[name], atol=1e-4, rtol=1e-3)
    assert update.local_steps == 6


def test_an_optimiser_begins_anew_in_each_round() -> None:
    how, model = replace(DELTA, optimizer=Adam()), Seen()
    first = train(how, model=model).update
    assert same_bits(first, train(how, model=model).update)


def test_steps_are_counted_over_reshuffled_passes() -> None:
    seen: list[Tensor] = []
    update = train(STEPS, on_batch=lambda x, at: seen.append(at)).update
    # Passes of 4, 4 and 2 images, and one batch of the third.
    assert [len(at) for at in seen] == [4, 4, 2, 4, 4, 2, 4]
    passes = [torch.cat(seen[:3]), torch.cat(seen[3:6])]
    assert all(torch.equal(one.sort().values, torch.arange(10)) for one in passes)
    assert not torch.equal(*passes)
    assert (update.local_steps, update.examples) == (7, 10)
    few = train(replace(STEPS, steps=2)).update
    assert (few.local_steps, few.examples) == (2, 10)


def test_as_many_steps_as_passes_have_are_the_passes_to_the_last_bit() -> None:
    assert same_bits(train(DELTA).update, train(replace(STEPS, steps=6)).update)


def test_public_images_come_beside_each_batch_in_their_share_with_their_labels() -> None:
    public, model = images(20, seed=2), Seen()
    private: list[Tensor] = []
    how = replace(DELTA, epochs=1, replay=0.25)
    train(how, model=model, public=public, on_batch=lambda x, at: private.append(x))
    # A quarter of the whole: 4 and 1, 4 and 1, 2 and 1 (two thirds of one, rounded).
    assert [len(x) for x in model.shown] == [5, 5, 3]
    for shown, own in zip(model.shown, private, strict=True):
        assert torch.equal(shown[: len(own)], own)
        beside = [(one == public.floats()).flatten(1).all(1).any() for one in shown[len(own) :]]
        assert len(beside) == 1
        assert all(beside)
    assert [replace(how, replay=share).replayed(32) for share in (0.0, 0.25, 0.5, 0.9)] == [0, 11, 32, 288]


def test_public_images_pass_no_defence_and_count_in_the_loss() -> None:
    class Dark(NoHooks):
        labels: Tensor

        def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
            return 0 * x

        def loss(self, loss: Tensor, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
            self.labels = y
            assert torch.equal(loss, F.cross_entropy(logits, y))
            return loss

    model, hooks, public = Seen(), Dark(), images(1, seed=2)
    update = train(replace(DELTA, kind=UpdateKind.GRADIENT, replay=0.5), model=model, hooks=hooks, public=public).update
    (shown,) = model.shown
    assert len(shown) == 8
    assert not shown[:4].any()
    assert all(torch.equal(one, public.floats()[0]) for one in shown[4:])
    assert torch.equal(hooks.labels[4:], public.labels.expand(4))
    assert update.examples == 4, "the server weighs clients by their own images"


def test_without_replay_public_images_change_nothing() -> None:
    assert same_bits(train(DELTA).update, train(DELTA, public=images(5, seed=2)).update)


def test_views_are_of_all_images_after_the_audit_has_seen_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, tuple[str, ...]]] = []

    def darken(x: Tensor, kinds: tuple[str, ...], stream: torch.Generator) -> Tensor:
        asked.append((len(x), kinds))
        return 0 * x

    monkeypatch.setattr(module, "augment", darken)
    model = Seen()
    private: list[Tensor] = []
    how = replace(DELTA, epochs=1, replay=0.5, augmentation=("flip", "shift"))
    train(how, model=model, public=images(5, seed=2), on_batch=lambda x, at: private.append(x))
    assert asked == [(8, ("flip", "shift")), (8, ("flip", "shift")), (4, ("flip", "shift"))]
    assert all(not x.any() for x in model.shown)
    assert all(x.any() for x in private)


def test_views_change_what_is_learnt_and_are_a_function_of_the_stream() -> None:
    how = replace(DELTA, augmentation=("transpose", "shift"))
    once = train(how).update
    assert same_bits(once, train(how).update)
    assert not same_bits(once, train(DELTA).update)


@pytest.mark.parametrize(
    ("how", "sized", "plain"),
    [
        (DELTA, True, True),
        (replace(DELTA, proximal=0.1), True, True),
        (replace(DELTA, augmentation=("flip",)), True, True),
        (replace(DELTA, optimizer=Adam()), False, False),
        (replace(DELTA, optimizer=SGD(momentum=0.9)), False, False),
        (replace(STEPS, steps=1, optimizer=SGD(momentum=0.9)), True, True),
        (replace(DELTA, optimizer=SGD(weight_decay=0.1)), False, False),
        (replace(DELTA, replay=0.5), False, True),
        (replace(DELTA, kind=UpdateKind.GRADIENT, optimizer=Adam()), True, True),
        (replace(DELTA, kind=UpdateKind.GRADIENT, replay=0.5), False, True),
    ],
)
def test_an_update_says_whether_it_is_made_of_gradients(how: LocalTraining, sized: bool, plain: bool) -> None:
    update = train(how, public=images(5, seed=2)).update
    assert (update.rate_known, update.plain) == (sized, plain)
    assert update.optimizer == (SGD() if how.kind is UpdateKind.GRADIENT else how.optimizer)
    assert update.learning_rate == how.learning_rate


def test_impossible_settings_are_refused_in_words() -> None:
    with pytest.raises(FedveilError, match="epochs is 2, steps is 3; give one of the two"):
        replace(DELTA, steps=3)
    with pytest.raises(FedveilError, match="epochs is None, steps is None; give one of the two"):
        replace(DELTA, epochs=None)
    with pytest.raises(FedveilError, match=r"replay is 1\.0; it has to be at least 0 and below 1"):
        replace(DELTA, replay=1.0)
    with pytest.raises(FedveilError, match="unknown augmentation 'turn'"):
        replace(DELTA, augmentation=("turn",))
    for public in (None, images(3).take(torch.arange(0))):
        with pytest.raises(FedveilError, match=r"replay is 0\.5, and there are no public images"):
            train(replace(DELTA, replay=0.5), public=public)


@pytest.mark.parametrize("how", [DELTA, replace(DELTA, kind=UpdateKind.GRADIENT)], ids=lambda how: how.kind)
def test_an_update_does_not_show_how_the_model_lies_in_memory(how: LocalTraining) -> None:
    spec = replace(SPEC, image_shape=(3, 12, 12))
    pixels = torch.randint(256, (9, 3, 12, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    shard, weights = Images(pixels, torch.arange(9) % 3), init_model(spec, seed=3)
    models = (build_model(spec), model_on(torch.device("cpu"), spec))
    plain, laid_out = (
        local_update(model, weights, shard, NoHooks(), how, torch.Generator().manual_seed(1)).update.tensors
        for model in models
    )
    assert not all(parameter.is_contiguous() for parameter in models[1].parameters())
    assert all(tensor.is_contiguous() for tensor in laid_out.values())
    torch.testing.assert_close(laid_out, plain, rtol=1e-3, atol=1e-6)
