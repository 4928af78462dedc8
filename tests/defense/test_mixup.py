from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest
from torch import Tensor, nn

from fedveil.defense import DefenseContext, InstaHide, MixUp, PixelNoise, Stack, TrainedOn, UpdateNoise
from fedveil.defense.dp_sgd import DPSGD
from fedveil.defense.instahide import PrivateInstaHide
from fedveil.defense.mixup import PreparedMixUp
from fedveil.defense.partners import Partners
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.hooks import HOOKS

MODEL = nn.Identity()


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def even(level: int, label: int, count: int = 1) -> Images:
    return Images(torch.full((count, 1, 6, 6), level, dtype=torch.uint8), torch.full((count,), label))


def test_a_mix_by_hand() -> None:
    """0.75 of white of class 0 and 0.25 of black of class 2."""
    partners, which = Partners(even(0, 2), classes=3), torch.tensor([[0]])
    shares = torch.tensor([[0.75, 0.25]])
    torch.testing.assert_close(partners.mixed(torch.ones(1, 1, 6, 6), shares, which), torch.full((1, 1, 6, 6), 0.75))
    torch.testing.assert_close(partners.labels(torch.tensor([0]), shares, which), torch.tensor([[0.75, 0.0, 0.25]]))
    # Shares that another defence has made are mixed on.
    soft = torch.tensor([[0.5, 0.5, 0.0]])
    torch.testing.assert_close(partners.labels(soft, shares, which), torch.tensor([[0.375, 0.375, 0.25]]))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_have_the_law_of_the_larger_of_a_beta_variate_and_its_rest(alpha: float) -> None:
    own = MixUp(alpha=alpha).shares(2000, stream())[:, 0].double()
    drawn = torch.distributions.Beta(alpha, alpha)
    torch.manual_seed(1)
    other = drawn.sample((2000,)).double()
    assert kstest(own.numpy(), torch.maximum(other, 1 - other).numpy()).pvalue > 0.01


@settings(max_examples=25)
@given(st.floats(0.05, 20), st.integers(0, 99), st.integers(1, 5))
def test_labels_tell_what_is_in_the_images(alpha: float, seed: int, count: int) -> None:
    """Where the grey value of an image is its class, the mean class by the shares is the grey value of the mix."""
    classes = 6
    pool = Images(torch.arange(classes, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 6, 6), torch.arange(classes))
    y = torch.randint(classes, (count,), generator=stream(seed))
    x = (y / 255.0).view(-1, 1, 1, 1).repeat(1, 1, 6, 6)
    for hooks in (
        PreparedMixUp(MixUp(alpha=alpha), Partners(pool, classes)),
        PrivateInstaHide(InstaHide(source="private", flip=False), Partners(pool, classes)),
    ):
        mixed, shares = hooks.batch(MODEL, x, y, stream(seed))
        assert mixed.shape == x.shape
        assert shares.shape == (count, classes)
        torch.testing.assert_close(shares.sum(1), torch.ones(count))
        torch.testing.assert_close(
            shares @ torch.arange(classes).float() / 255, mixed[:, 0, 0, 0], atol=1e-6, rtol=1e-5
        )
        # It is its own image and class above all.
        assert bool((shares.gather(1, y[:, None]) >= 0.5 - 1e-6).all())


@pytest.mark.parametrize("defense", [MixUp(), InstaHide(source="private")], ids=repr)
def test_the_attacker_mixes_with_its_own_images(
    defense: MixUp | InstaHide, context: DefenseContext, private: Images
) -> None:
    """No tier of attackers is handed the client's images for partners."""
    assert defense.trained_on is TrainedOn.NOTHING
    ours, theirs = even(0, 0), even(255, 1)
    x, y = torch.full((2, 1, 6, 6), 0.5), torch.tensor([0, 0])
    client = defense.prepare(ours, context, None, client=0)
    attacker = defense.shadow(theirs, context, None).surrogate()
    assert attacker.complete
    assert not attacker.inverted_plainly
    assert attacker.batch is not None
    assert attacker.data is not None
    images, shares = attacker.batch(MODEL, x, y, stream(3))
    # White partners push it one way or, with signs flipped, the other; black ones were the client's.
    assert bool((shares[:, 1] > 0).all())
    assert torch.equal(attacker.data(x, y, stream(3)), images)
    assert torch.equal(client.batch(MODEL, x, y, stream(3))[1], torch.tensor([[1.0, 0.0], [1.0, 0.0]]))


def test_a_finished_model_is_asked_about_whole_images_by_mixup_and_about_mixes_by_instahide(
    context: DefenseContext, private: Images
) -> None:
    x = private.floats()[:3]
    defenses = (MixUp(), InstaHide(source="private"))
    mixup, instahide = (one.prepare(private, context, None, client=0) for one in defenses)
    assert defenses[1].hooks == {hook for hook in HOOKS if instahide.changes(hook)}
    assert torch.equal(mixup.data(x, None, stream()), x)
    assert torch.equal(instahide.data(x, private.labels[:3], stream()), x)
    assert not torch.allclose(instahide.data(x, None, stream()), x, atol=0.1)


def test_in_a_list_what_would_show_images_that_others_hide_is_refused(context: DefenseContext, private: Images) -> None:
    def prepared(*parts: object) -> None:
        stack = Stack(parts=parts)  # type: ignore[arg-type]
        stack.prepare(private, context, stack.pretrain(context), client=0)

    prepared(MixUp(), UpdateNoise())
    with pytest.raises(
        FedveilError, match=r"^defense: mixup mixes in images of the client's as they are.*not pixel_noise"
    ):
        prepared(PixelNoise(), MixUp())
    with pytest.raises(FedveilError, match=r"dp_sgd takes the gradient.*not mixup"):
        prepared(MixUp(), DPSGD())


def test_a_stack_mixes_labels_as_its_part_does(context: DefenseContext, private: Images) -> None:
    x, y = private.batch(torch.arange(4))
    alone, stack = MixUp(), Stack(parts=(MixUp(), UpdateNoise()))
    one = alone.prepare(private, context, None, client=0)
    all_of_it = stack.prepare(private, context, stack.pretrain(context), client=0)
    mine, theirs = one.batch(MODEL, x, y, stream(5)), all_of_it.batch(MODEL, x, y, stream(5))
    surrogate = all_of_it.surrogate()
    assert surrogate.batch is not None
    for found in (theirs, surrogate.batch(MODEL, x, y, stream(5))):
        assert all(torch.equal(a, b) for a, b in zip(mine, found, strict=True))
    assert surrogate.data is not None
    assert torch.equal(surrogate.data(x, y, stream(5)), mine[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MixUp(alpha=0), "mixup: alpha is 0"),
        (lambda: InstaHide(source="both"), "instahide: source is 'both'.*public, private"),  # type: ignore[arg-type]
    ],
)
def test_settings_without_sense_are_refused(make: object, message: str) -> None:
    with pytest.raises(FedveilError, match=message):
        make()  # type: ignore[operator]


def test_draws_follow_the_stream(context: DefenseContext, private: Images) -> None:
    hooks = MixUp().prepare(private, context, None, client=0)
    x, y = private.batch(torch.arange(4))

    def draw(seed: int) -> tuple[Tensor, Tensor]:
        return hooks.batch(MODEL, x, y, stream(seed))

    assert all(torch.equal(a, b) for a, b in zip(draw(1), draw(1), strict=True))
    assert not torch.equal(draw(1)[0], draw(2)[0])
