from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fedveil.defense import ConcealedSamples, DefenseContext, MixUp, Stack, TrainedOn
from fedveil.defense.concealed import PreparedConcealment, covered
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.models import ModelSpec, build_model
from fedveil.fl.training import as_shares


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def prepared(context: DefenseContext, **options: float) -> PreparedConcealment:
    hooks = ConcealedSamples(**options).prepare(context.public, context, None, client=0)  # type: ignore[arg-type]
    assert isinstance(hooks, PreparedConcealment)
    return hooks


def model_of(context: DefenseContext, norm: str = "group") -> nn.Module:
    shape = context.public.shape
    return build_model(ModelSpec("convnet", shape, 2, norm=norm, width=4)).train()


def test_labels_by_hand_and_who_stands_for_whom(context: DefenseContext, private: Images) -> None:
    x, y = private.floats()[:3], torch.tensor([0, 1, 0])
    images, shares = prepared(context, count=2, share=0.7, steps=1).batch(model_of(context), x, y, stream())
    assert torch.equal(images[:3], x)
    expected = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]] + 2 * [[0.3, 0.7], [0.7, 0.3], [0.3, 0.7]]
    torch.testing.assert_close(shares, torch.tensor(expected))
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    assert not images.requires_grad


def test_they_cover_the_gradient_and_get_farther_from_the_images(context: DefenseContext, private: Images) -> None:
    model = model_of(context)
    x, y = private.floats()[:4], private.labels[:4]
    cover = covered(model, x, as_shares(y, 2))

    def made(steps: int, **options: float) -> tuple[float, float]:
        images, shares = prepared(context, steps=steps, **options).batch(model, x, y, stream())
        likeness = F.cosine_similarity(covered(model, images[4:], shares[4:]), cover, dim=0)
        return float(likeness), float((images[4:] - x).norm())

    first, last = made(1), made(40)
    assert last[0] > first[0]
    assert made(40, distance=0.5)[1] > made(40, distance=0)[1]


def test_the_model_and_global_randomness_stay_as_they_were(context: DefenseContext, private: Images) -> None:
    """Running statistics count the step's own pass, and no other."""
    model = model_of(context, "batch")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(1)
    state = torch.get_rng_state()
    x, y = private.floats()[:4], private.labels[:4]
    hooks = prepared(context, steps=2)
    images, _ = hooks.batch(model, x, y, stream(5))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(hooks.batch(model, x, y, stream(5))[0], images)
    assert not torch.equal(hooks.batch(model, x, y, stream(6))[0][4:], images[4:])


class Linear(nn.Module):
    """Two logits, w x and 0, of one pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        logit = self.weight * x.flatten(1)
        return torch.cat([logit, torch.zeros_like(logit)], dim=1)


def step(x: list[float], shares: list[list[float]]) -> float:
    model, hooks = (
        Linear(),
        PreparedConcealment(ConcealedSamples(), Images(torch.zeros(1, 1, 1, 1).byte(), torch.zeros(1).long()), 2),
    )
    images, labels = torch.tensor(x).view(-1, 1, 1, 1), torch.tensor(shares)
    loss = F.cross_entropy(model(images), labels)
    (gradient,) = hooks.gradients(loss, model, images, labels, 1, stream())
    return float(gradient)


def test_a_step_against_the_batch_is_projected_by_hand() -> None:
    """At weight 0 a white image of class 0 has the gradient (1/2 - 1) 1 = -1/2, a concealed one of shares (s, 1 - s)
    and brightness b (1/2 - s) b. Along one axis what points away is taken off altogether."""
    assert step([1.0, 1.0], [[1.0, 0.0], [0.3, 0.7]]) == pytest.approx((-0.5 + 0.2) / 2)
    assert step([0.2, 1.0], [[1.0, 0.0], [0.1, 0.9]]) == pytest.approx(0.0)
    # Of whole labels alone, nothing is concealed.
    assert step([0.2, 1.0], [[1.0, 0.0], [0.0, 1.0]]) == pytest.approx((-0.1 + 0.5) / 2)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 99))
def test_no_step_is_against_what_the_batch_alone_would_do(seed: int) -> None:
    public = Images(torch.randint(256, (6, 1, 8, 8), generator=stream(1), dtype=torch.uint8), torch.arange(6) % 3)
    model = build_model(ModelSpec("lenet", (1, 8, 8), 3, width=3), seed).train()
    hooks = PreparedConcealment(ConcealedSamples(), public, 3)
    x, y = (
        torch.rand((4, 1, 8, 8), generator=stream(seed)),
        torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.2, 0.1, 0.7], [0.1, 0.1, 0.8]]),
    )
    loss = F.cross_entropy(model(x), y)
    found = torch.cat([one.flatten() for one in hooks.gradients(loss, model, x, y, 2, stream())])
    own = covered(model, x[:2], y[:2])
    assert float(found @ own) >= -1e-6 * float(own.norm() * found.norm())


def test_who_knows_the_public_images_knows_how_they_are_made(context: DefenseContext, private: Images) -> None:
    assert ConcealedSamples().trained_on is TrainedOn.PUBLIC
    hooks, model = prepared(context, steps=2), model_of(context)
    surrogate = hooks.surrogate()
    assert surrogate.complete
    assert surrogate.data is None
    assert surrogate.batch is not None
    x, y = private.floats()[:2], private.labels[:2]
    ours, theirs = hooks.batch(model, x, y, stream(3)), surrogate.batch(model, x, y, stream(3))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_alone_in_a_list_it_may_be_and_beside_what_changes_the_step_not(
    context: DefenseContext, private: Images
) -> None:
    def made(*parts: object) -> None:
        stack = Stack(parts=parts)  # type: ignore[arg-type]
        stack.prepare(private, context, stack.pretrain(context), client=0)

    made(ConcealedSamples())
    with pytest.raises(FedveilError, match=r"concealed_samples takes the gradient.*not mixup"):
        made(MixUp(), ConcealedSamples())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.0}, "share is 0.0"),
        ({"share": 1.0}, "share is 1.0"),
        ({"count": 0}, "count is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"distance": -1.0}, "distance is -1.0"),
    ],
)
def test_settings_without_sense_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(FedveilError, match=f"concealed_samples: {message}"):
        ConcealedSamples(**options)  # type: ignore[arg-type]
