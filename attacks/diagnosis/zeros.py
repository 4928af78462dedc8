"""Zeros in an update: units that sleep and dark pixels leave whole rows and columns, defences leave single entries out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from torch import Tensor

FEW = 0.05
"""Share of zeros outside of rows and columns of zeros, up to which they are not looked at."""
CUT = 0.1
"""The smallest entry that is left, in units of their median: entries that were cut by size leave none near 0. Of a thousand
numbers that nothing has cut, the smallest is about a thousandth of the median."""
ENOUGH = 1024
"""Entries that are left, below which their smallest tells nothing."""
STREWN = 3.0
"""Variance of the zeros' number from row to row, in units of what chance makes of it, up to which chance laid them. Chance
gives 1, up to 2.5 on top of what sleeping units and dark pixels leave; these leave 8 and more by themselves, and the largest
entries 10 and more (MLP, LeNet, ConvNet, ResNet-18 and a plain ReLU network, batches of 1 to 8 of three data sets)."""
SURE = 64
"""Rows, less one for each matrix, below which that variance tells nothing."""


class Pattern(Enum):
    """How zeros lie that no row or column of zeros accounts for."""

    NONE = "hardly any but in whole rows and columns"
    CUT = "and none of the others is small"
    STREWN = "strewn as chance would"
    LAST = "some in the last layer, where softmax leaves none"
    SPARSE = "as units leave them that sleep for some images, or here and there in a map"


@dataclass(frozen=True)
class Zeros:
    """The zeros of an update's matrices; a convolution's weight is one with a row for each output channel.

    Attributes:
        share: of all entries.
        live: share of the entries outside of rows and columns that are 0 altogether.
        pattern: how the latter lie.
    """

    share: float
    live: float
    pattern: Pattern

    @property
    def left_out(self) -> bool:
        """Something has put zeros in the place of entries: no image leaves them so."""
        return self.pattern in (Pattern.CUT, Pattern.STREWN, Pattern.LAST)


def read_zeros(gradient: Mapping[str, Tensor], last: int) -> Zeros:
    """Look at the zeros of a gradient.

    Args:
        gradient: by parameter name; vectors are not looked at.
        last: zeros of the last layer that softmax does not leave, see `holes`.
    """
    matrices = [tensor.flatten(1) for tensor in gradient.values() if tensor.ndim > 1 and bool(tensor.any())]
    # A row is 0 where a unit sleeps, a column where an input is 0.
    live = [m[m.any(dim=1)][:, m.any(dim=0)] for m in matrices]
    whole, entries = (sum(m.numel() for m in some) for some in (matrices, live))
    left = sum(int(m.count_nonzero()) for m in live)
    if not entries:
        return Zeros(1.0, 0.0, Pattern.NONE)
    share, open_ = 1 - left / whole, 1 - left / entries
    if open_ <= FEW:
        pattern = Pattern.NONE
    elif left >= ENOUGH and all(_smallest(m) > CUT for m in live if int(m.count_nonzero()) >= ENOUGH):
        pattern = Pattern.CUT
    elif _unevenness(live) <= STREWN:
        pattern = Pattern.STREWN
    else:
        pattern = Pattern.LAST if last else Pattern.SPARSE
    return Zeros(share, open_, pattern)


def holes(rows: Tensor) -> int:
    """Return how many zeros a last layer's (k, d) gradient holds that softmax cross-entropy does not leave.

    Each image leaves softmax - onehot, of which no entry is 0, times the layer's input: where that is 0 for all images the
    whole column is. Where a network is so sure of a class that its float32 has no difference left, the whole row is.

    >>> import torch
    >>> holes(torch.tensor([[0.0, 1.0, 0.0], [0.0, -1.0, 2.0], [0.0, 0.0, 0.0]]))
    1
    """
    live = rows[rows.any(dim=1)][:, rows.any(dim=0)]
    return live.numel() - int(live.count_nonzero())


def _smallest(matrix: Tensor) -> float:
    left = matrix[matrix != 0].abs()
    return float(left.min() / left.median())


def _unevenness(matrices: Iterable[Tensor]) -> float:
    """Variance of the number of zeros from row to row, in units of a binomial distribution's; infinite of too few rows."""
    spread, free = 0.0, 0
    for matrix in matrices:
        zeros = (matrix == 0).double()
        share, (rows, columns) = float(zeros.mean()), zeros.shape
        if 0 < share < 1:
            spread += float((zeros.sum(dim=1) - columns * share).square().sum()) / (columns * share * (1 - share))
            free += rows - 1
    return spread / free if free >= SURE else float("inf")
