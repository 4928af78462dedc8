"""A metric in which noise of a known law counts equally in all directions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Whitening:
    """Distances by the inverse of a covariance S = f * I + R^T R of noise, by way of the small matrix f * I + R R^T.

    The identity (Woodbury) keeps the cost linear in the number of entries, of which a gradient has many:
    f * S^-1 = I - R^T (f * I + R R^T)^-1 R.

    Attributes:
        floor: f.
        scatter: R, (n, D): residuals over the root of their number; no rows for noise that is alike in all directions.
        factor: (n, n) the Cholesky factor of f * I + R R^T.
    """

    floor: float
    scatter: Tensor
    factor: Tensor

    @classmethod
    def of(cls, residuals: Tensor, *, shrinkage: float | None) -> Whitening:
        """Fit it.

        Args:
            residuals: (n, D) examples of the noise; if all are 0, the metric is a round one.
            shrinkage: f in units of the residuals' mean variance, above 0: the larger, the rounder the metric. It makes up
                for how few residuals there are. None for a round one.
        """
        variance = float(residuals.double().square().mean())
        if shrinkage is None or variance == 0:
            return cls(variance or 1.0, residuals[:0], residuals.new_zeros(0, 0))
        scatter = residuals / len(residuals) ** 0.5
        gram = (scatter @ scatter.T).double()
        floor = shrinkage * variance
        factor = torch.linalg.cholesky(gram + floor * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
        return cls(floor, scatter, factor.to(scatter.dtype))

    def distances(self, observed: Tensor, candidates: Tensor) -> Tensor:
        """Return the (V, c) squared distances between (V, D) observed and (c, D) candidate vectors."""
        seen, shown = self._reduced(observed), self._reduced(candidates)
        lengths = [x.square().sum(1) - y.square().sum(0) for x, y in ((observed, seen), (candidates, shown))]
        dots = observed @ candidates.T - seen.T @ shown
        return (lengths[0][:, None] + lengths[1] - 2 * dots) / self.floor

    def _reduced(self, vectors: Tensor) -> Tensor:
        solved: Tensor = torch.linalg.solve_triangular(self.factor, self.scatter @ vectors.T, upper=False)
        return solved
