"""A data set of six and four pictures as an .npz file, with what a test changes of it."""

from pathlib import Path
from typing import Any

import numpy as np


def good() -> dict[str, Any]:
    """Six training and four test images of 4x5; each pixel holds its own number."""
    return {
        "train_images": np.arange(120, dtype=np.uint8).reshape(6, 4, 5),
        "train_labels": np.array([[0], [1], [2], [0], [1], [2]], np.uint8),
        "test_images": np.arange(80, dtype=np.uint8).reshape(4, 4, 5),
        "test_labels": np.array([0, 1, 2, 0], np.int32),
    }


def saved(folder: Path, **changes: Any) -> str:
    """Write `good` with ``changes`` (None removes a key) and return the data set's name."""
    arrays = {key: value for key, value in {**good(), **changes}.items() if value is not None}
    np.savez(folder / "mine.npz", **arrays)
    return f"npz:{folder / 'mine.npz'}"
