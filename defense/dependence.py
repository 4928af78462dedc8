"""How much two sets of vectors depend on each other, measured by kernels over one batch.

The two measures of BiDO (Peng et al. 2022, arXiv 2206.05483) as its published code computes them; where that is not the
textbook's form, it is said. All is computed in double precision: a kernel this wide is nearly constant, and what counts is
the small rest.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-5
"""Regularisation of the normalised HSIC, per example."""
_LEAST = 1e-30


def gaussian_kernel(rows: Tensor, width: float) -> Tensor:
    """Return (n, n) values exp(-|a - b|^2 / (2 width^2 D)) of n vectors (n, D): widths count per dimension.

    Args:
        rows: the vectors.
        width: in units of the vectors' entries, above 0.
    """
    rows = rows.double()
    rows = rows - rows.mean(0)
    lengths = rows.square().sum(1)
    distances = (lengths[:, None] + lengths - 2 * rows @ rows.T).clamp_min(0)
    return (-distances / (2 * width**2 * rows.shape[1])).exp()


def linear_kernel(rows: Tensor) -> Tensor:
    """Return the (n, n) inner products of n vectors (n, D)."""
    rows = rows.double()
    return rows @ rows.T


def normalised_hsic(first: Tensor, second: Tensor, epsilon: float = EPSILON) -> Tensor:
    """Return tr(R_1 R_2), R = K H (K H + epsilon n I)^-1, H = I - 11^T / n, of two kernels (n, n): HSIC, normalised.

    It is at least 0 and at most the smaller rank of the two centred kernels, so n - 1 at most, and for a linear kernel of
    labels the number of classes among them, less one. Vectors that have nothing to do with each other do not read 0: with
    D far above n both R are nearly H, whatever the vectors.

    Args:
        first: positive semi-definite.
        second: likewise, of the same n examples.
        epsilon: above 0; larger ones count weak directions less.
    """
    return (_normalised(first, epsilon) * _normalised(second, epsilon).T).sum()


def _normalised(kernel: Tensor, epsilon: float) -> Tensor:
    count = len(kernel)
    identity = torch.eye(count, dtype=kernel.dtype, device=kernel.device)
    centred = kernel - kernel.mean(1, keepdim=True)
    # K H and its resolvent commute, and no eigenvalue of K H is below 0.
    inverse: Tensor = torch.linalg.inv_ex(centred + epsilon * count * identity)[0]
    return identity - epsilon * count * inverse


def coco(first: Tensor, second: Tensor) -> Tensor:
    """Return sqrt(|H K_1 H H K_2 H|) / n of two kernels (n, n): constrained covariance, by the Frobenius norm.

    The textbook's (Gretton et al. 2005) takes the spectral norm, which is smaller by a factor that depends on how many
    directions count; the weights that BiDO's authors publish belong to this form.

    Args:
        first: positive semi-definite.
        second: likewise, of the same n examples.
    """
    squares = (_centred(first) @ _centred(second)).square().sum()
    # Of independent constants nothing is left, and a root has no slope there.
    return squares.clamp_min(_LEAST).pow(0.25) / len(first)


def _centred(kernel: Tensor) -> Tensor:
    rows = kernel - kernel.mean(1, keepdim=True)
    return rows - rows.mean(0, keepdim=True)
