"""Zeros in an update: units that sleep and dark pixels leave whole rows and columns, defences leave single entries out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from torch import Tensor

from fedveil.attacks.diagnosis.coarseness import coarseness
from fedveil.attacks.diagnosis.finding import Finding, Outlook, some

if TYPE_CHECKING:
    from fedveil.attacks.diagnosis.evidence import Evidence

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


def zero(evidence: Evidence) -> Iterator[Finding]:
    """Tensors that are 0 altogether, and units that are."""
    dead = [name for name, tensor in evidence.gradient.items() if not bool(tensor.any())]
    if dead:
        heavy = any(evidence.gradient[name].ndim > 1 for name in dead)
        yield Finding(
            "zero layers",
            Outlook.HINDERS if heavy else Outlook.NEUTRAL,
            f"{len(dead)} of {len(evidence.gradient)} tensors are 0 altogether ({some(dead)})",
            "no gradient came so far: frozen, dead (no unit awake) or dropped by a defence",
            "look whether the client trains them" if heavy else "",
        )
    asleep = {
        name: (len(rows), int((~rows).sum()))
        for name, tensor in evidence.gradient.items()
        if name not in dead and tensor.ndim > 1 and bool((~(rows := tensor.flatten(1).any(dim=1))).any())
    }
    if asleep:
        name = max(asleep, key=lambda one: asleep[one][1] / asleep[one][0])
        units, silent = asleep[name]
        mostly = silent >= 0.9 * units
        yield Finding(
            "units",
            Outlook.HINDERS if mostly else Outlook.NEUTRAL,
            f"{silent} of {units} units of {name} have no gradient",
            "asleep for all images of the batch, or pruned: the others tell what there is to tell",
        )


def pruned(evidence: Evidence) -> Iterator[Finding]:
    """Zeros that no sleeping unit and no dark pixel accounts for. Of few values 0 is one: these are another finding."""
    zeros = evidence.zeros
    if zeros.pattern is Pattern.NONE or coarseness(evidence.update) is not None:
        return
    found = f"{zeros.share:.0%} of the entries are 0"
    if round(100 * zeros.live) < round(100 * zeros.share):
        found += f" ({zeros.live:.0%} outside of units and inputs that are 0 altogether)"
    found += f", {zeros.pattern.value}"
    if zeros.left_out:
        how = {Pattern.CUT: "entries were cut by size", Pattern.STREWN: "a random mask was laid over the update"}
        yield Finding(
            "pruning",
            Outlook.HINDERS,
            found,
            f"{how.get(zeros.pattern, 'entries were left out')}: what was left out is lost, the others may be as they were",
            "tell the audit the client's defence (fv.audit(..., defense=)): adaptive attacks match what is visible alone",
        )
    elif evidence.batch_size == 1:
        yield Finding(
            "pruning",
            Outlook.HINDERS,
            found,
            "entries may have been left out; sparse maps behind ReLU and dark borders leave some, too",
            "if the client has a defence, tell the audit (fv.audit(..., defense=))",
        )
    else:
        yield Finding("pruning", Outlook.NEUTRAL, found, "nothing says that any were left out")
