from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedveil.defense import DefenseContext, InstaHide, PreparedDefense, TrainedOn
from fedveil.defense.instahide import PublicInstaHide
from fedveil.defense.partners import Partners
from fedveil.fl.data.images import Images


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def even(level: int, count: int = 4, side: int = 6) -> Images:
    return Images(torch.full((count, 1, side, side), level, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64))


def test_even_images_by_hand() -> None:
    """White and a share of 0.6 in black: 0.6, which is 0.1 above grey, so that flipping its sign shows 0.4."""
    x = torch.ones(3, 1, 6, 6)
    mixed = PublicInstaHide(InstaHide(share=0.6, flip=False), Partners(even(0), 2)).data(x, None, stream())
    torch.testing.assert_close(mixed, torch.full_like(x, 0.6))
    flipped = PublicInstaHide(InstaHide(share=0.6), Partners(even(0), 2)).data(x, None, stream())
    assert {round(value, 5) for value in flipped.flatten().tolist()} == {0.4, 0.6}
    assert float((flipped > 0.5).float().mean()) == pytest.approx(0.5, abs=0.2)


@settings(max_examples=20)
@given(st.floats(0.05, 1), st.integers(1, 5), st.integers(0, 99))
def test_magnitudes_are_those_of_the_mix_and_the_mix_lies_between_its_parts(
    share: float, others: int, seed: int
) -> None:
    public = Images(torch.randint(256, (9, 3, 6, 6), generator=stream(1), dtype=torch.uint8), torch.zeros(9).long())
    x = torch.rand((4, 3, 6, 6), generator=stream(2))
    mixed, flipped = (
        PublicInstaHide(InstaHide(share=share, others=others, flip=flip), Partners(public, 2)).data(
            x, None, stream(seed)
        )
        for flip in (False, True)
    )
    torch.testing.assert_close((flipped - 0.5).abs(), (mixed - 0.5).abs(), atol=1e-6, rtol=0)
    rest = mixed - share * x
    low, high = public.floats().amin(0), public.floats().amax(0)
    assert bool((rest >= (1 - share) * low - 1e-5).all())
    assert bool((rest <= (1 - share) * high + 1e-5).all())
    # Signs are of pixels, not of channels, where grey itself hides none.
    clear = (mixed - 0.5).abs().amin(1) > 1e-3
    signs = ((flipped - 0.5) * (mixed - 0.5)).sign()
    assert bool((signs.amin(1) == signs.amax(1))[clear].all())


def prepared(context: DefenseContext, private: Images) -> PreparedDefense:
    return InstaHide().prepare(private, context, None, client=0)


def test_draws_are_fresh_and_follow_the_stream_and_all_of_it_is_known(context: DefenseContext, private: Images) -> None:
    assert InstaHide().trained_on is TrainedOn.PUBLIC
    hooks, x = prepared(context, private), private.floats()
    surrogate = hooks.surrogate()
    assert surrogate.complete
    assert surrogate.data is not None

    def draw(seed: int, y: Tensor | None = None) -> Tensor:
        return hooks.data(x, y, stream(seed))

    assert torch.equal(draw(1), draw(1, private.labels))
    assert torch.equal(surrogate.data(x, None, stream(1)), draw(1))
    assert not torch.equal(draw(1), draw(2))
    same = hooks.data(x[:1].repeat(2, 1, 1, 1), None, stream())
    assert not torch.equal(same[0], same[1])
