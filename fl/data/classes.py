"""Users' labels as whole numbers: floats that are whole, truth values and one-hot rows are converted, and said."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedveil.fl.data.checks import Array
from fedveil.fl.errors import FedveilError

_ALLOWED = "allowed: whole numbers from 0, (n,) or (n, 1), or one-hot rows (n, classes)"


def as_classes(parts: Mapping[str, Array], where: str) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Convert the labels of all splits to whole numbers, each split by itself.

    Args:
        parts: the labels of each split by its name in messages.
        where: the file, for messages and notes.

    Returns:
        They, and what was done to them, a sentence each; none where nothing was. Shapes that are not labels' stay.

    Raises:
        FedveilError: a label is no whole number, is text, or an image has several.
    """
    found: dict[str, Array] = {}
    notes: dict[str, list[str]] = {}
    for name, labels in parts.items():
        found[name], done = _converted(labels, f"{where}: {name}")
        if done:
            notes.setdefault(done, []).append(name)
    return found, tuple(f"{where}: {', '.join(names)} {done}" for done, names in notes.items())


def _converted(labels: Array, what: str) -> tuple[Array, str]:
    """Return labels, and what was done to them as the end of a sentence; empty where nothing was."""
    if labels.dtype.kind in "US":
        raise FedveilError(
            f"{what}: the labels are text; number them (names, numbers = np.unique(labels, return_inverse=True)), and save"
            " the names of all classes as label_names"
        )
    if labels.dtype.kind not in "biuf":
        raise FedveilError(f"{what}: the dtype is {labels.dtype}; {_ALLOWED}")
    if labels.dtype.kind == "f" and not bool((labels == np.rint(labels)).all()):
        odd = labels[labels != np.rint(labels)].flat[0]
        raise FedveilError(f"{what}: {odd:g} is no whole number; {_ALLOWED}")
    if labels.ndim == 2 and labels.shape[1] > 1:
        return _of_rows(labels, what), "were one-hot rows"
    if labels.dtype.kind in "bf":
        return labels.astype(np.int64), f"were {labels.dtype}, and were taken for whole numbers"
    return labels, ""


def _of_rows(labels: Array, what: str) -> Array:
    sums, ones = labels.astype(np.float64).sum(axis=1), ((labels == 0) | (labels == 1)).all(axis=1)
    if not ones.all():
        raise FedveilError(
            f"{what}: the shape is {labels.shape}, and row {int(ones.argmin())} is not one-hot; {_ALLOWED}"
        )
    if not (sums == 1).all():
        row = int((sums != 1).argmax())
        raise FedveilError(
            f"{what}: row {row} names {int(sums[row])} classes; one class for each image is what is trained on: choose one"
            " finding, or make a class of each combination"
        )
    return np.asarray(labels.argmax(axis=1), np.int64)
