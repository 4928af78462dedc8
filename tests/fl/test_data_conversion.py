from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedveil.fl.data import conversion
from fedveil.fl.data.conversion import UNIT, WHOLE_BYTE, ValueRange, as_pictures, channels_last, value_range
from fedveil.fl.errors import FedveilError


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.array([0.0, 1.0]), UNIT),
        (np.array([0.1, 0.2], np.float16), UNIT),
        (np.array([True, False]), UNIT),
        (np.array([0.0, 7.0, 255.0]), WHOLE_BYTE),
        (np.array([3, 200], np.int64), WHOLE_BYTE),
        (np.array([0, 1], np.int32), WHOLE_BYTE),
        (np.array([0.0, 1.02]), ValueRange(0.0, 1.02)),
        (np.array([-0.5, 0.5]), ValueRange(-0.5, 0.5)),
        (np.array([-1000, 3000], np.int16), ValueRange(-1000.0, 3000.0)),
        (np.array([0, 65535], np.uint16), ValueRange(0.0, 65535.0)),
    ],
)
def test_which_values_become_black_and_white(pixels: Any, expected: ValueRange) -> None:
    assert value_range({"a": pixels}, "x") == expected


def test_one_range_holds_for_all_splits() -> None:
    parts = {"a": np.array([[10, 20]], np.uint16), "b": np.array([[300, 510]], np.uint16)}
    found, notes = as_pictures(parts, "x.npz")
    # (20 - 10) / (510 - 10) * 255 = 5.1; (300 - 10) / 500 * 255 = 147.9
    assert {name: part.tolist() for name, part in found.items()} == {"a": [[0, 5]], "b": [[148, 255]]}
    assert notes == ("x.npz: pixels were uint16; 10 became 0 and 510 became 255",)


def test_bytes_with_channels_last_stay_as_they_are() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    found, notes = as_pictures({"a": pixels}, "x")
    assert found["a"] is pixels
    assert notes == ()


@given(st.sampled_from([1, 3]), st.integers(4, 6), st.integers(4, 6))
def test_channels_are_moved_to_the_end(channels: int, height: int, width: int) -> None:
    pixels = np.arange(2 * channels * height * width).reshape(2, channels, height, width)
    moved = channels_last(pixels)
    assert moved.shape == (2, height, width, channels)
    assert moved[1, 2, 3, 0] == pixels[1, 0, 2, 3]
    assert channels_last(moved) is moved


def test_a_narrow_picture_is_none_with_channels_first() -> None:
    assert channels_last(np.zeros((2, 3, 5, 1))).shape == (2, 3, 5, 1)


@given(st.lists(st.integers(-(2**15), 2**15 - 1), min_size=2, max_size=30))
def test_order_is_kept_and_nothing_is_clipped(values: list[int]) -> None:
    pixels = np.array(values, np.int16).reshape(-1, 1, 1)
    shown = value_range({"a": pixels}, "x").bytes_of(pixels).flatten()
    order = np.argsort(values, kind="stable")
    assert (np.diff(shown[order].astype(int)) >= 0).all()
    if min(values) < 0 and min(values) < max(values):
        assert (shown.min(), shown.max()) == (0, 255)


def test_pieces_make_the_same_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).normal(size=(11, 3, 4))
    whole = value_range({"a": pixels}, "x")
    monkeypatch.setattr(conversion, "_AT_ONCE", 30)
    assert value_range({"a": pixels}, "x") == whole
    slow = np.rint(255 * (pixels - pixels.min()) / (pixels.max() - pixels.min()))
    assert (whole.bytes_of(pixels) == slow).all()


def test_one_value_is_black() -> None:
    pixels = np.full((2, 2, 2), 1000, np.uint16)
    assert not value_range({"a": pixels}, "x").bytes_of(pixels).any()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([np.array(["a"])], "x: 0: the dtype is <U1; allowed: real numbers"),
        ([np.zeros(1), np.array([0.0, np.nan])], "x: 1: some pixels are NaN or infinite; allowed: finite numbers"),
        ([np.array([np.inf])], "x: 0: some pixels are NaN or infinite; allowed: finite numbers"),
        (
            [np.zeros(1), np.zeros(1, int)],
            "x: the splits are of float64, int64; whole numbers and fractions do not share",
        ),
    ],
)
def test_what_cannot_be_converted(parts: list[Any], message: str) -> None:
    with pytest.raises(FedveilError) as error:
        value_range({str(at): part for at, part in enumerate(parts)}, "x")
    assert str(error.value).startswith(message)
