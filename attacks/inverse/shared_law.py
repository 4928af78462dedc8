"""Forward matching against a defence that makes one image of many: which candidate had a part in the image that was seen?

No candidate can be passed through such a defence alone, since what it becomes hangs on images that the attacker lacks. What
it adds on average can be learnt from rehearsals: x' is, among the leading components of images, a linear function of x plus
what the other images of the group add, taken for Gaussian.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedveil.defense.inverse.lessons import RehearsedLessons
from fedveil.defense.latent.grouping import digests

COMPONENTS = (32, 96, 256)
RIDGES = (0.01, 0.1, 1.0)
"""To choose from, by how far up held-out originals stand among their like."""


def leading(x: Tensor, names: Sequence[bytes], count: int) -> Tensor:
    """Return the leading components of points about their mean, (D, p), orthonormal; p is at most ``count``, n and D.

    Those of the smaller one of both Gram matrices: of colour images of 64 px there are far fewer than pixels.

    Args:
        x: (n, D).
        names: of the n points; rows of one name are equal and are worked with once.
        count: at least 1.
    """
    times = Counter(names)
    first = dict(zip(reversed(names), reversed(range(len(names))), strict=True))
    weights = torch.tensor([times[name] for name in first], dtype=x.dtype).sqrt()
    rows = (x[list(first.values())] - x.mean(0)) * weights[:, None]
    narrow = len(rows) < rows.shape[1]
    values, vectors = torch.linalg.eigh((rows @ rows.T if narrow else rows.T @ rows).double())
    kept = (values > values[-1].clamp_min(1e-30) * torch.finfo(x.dtype).eps).nonzero()[:, 0].flip(0)[:count]
    found = vectors[:, kept].to(x.dtype)
    # Lengths are taken out, and what rounding has left of the components before.
    basis: Tensor = torch.linalg.qr(rows.T @ found).Q if narrow else found
    return basis


@dataclass(frozen=True, eq=False)
class SharedLaw:
    """log p(x' | x) up to a constant, for the images of a group and what became of it.

    Attributes:
        basis: (D, p) leading components of images.
        before: (D,) mean of originals.
        after: (D,) mean of what became of them.
        effect: (p, p) what x adds to x'.
        whiten: (p, p), by the scatter of what remains.
    """

    basis: Tensor
    before: Tensor
    after: Tensor
    effect: Tensor
    whiten: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, lessons: RehearsedLessons) -> SharedLaw:
        """Learn it from rehearsals; components and shrinkage are chosen on held-out originals."""
        originals, became = lessons.pairs()
        x, seen = originals.floats().flatten(1), became.flatten(1)
        basis = leading(x, digests(originals.pixels), max(COMPONENTS))
        held, _, shown = lessons.measured
        laws = [cls._fitted(x, seen, basis[:, :count], ridge) for count in COMPONENTS for ridge in RIDGES]
        ranks = [law._mean_log_rank(held.cpu(), shown[0].cpu()) for law in laws]
        return laws[ranks.index(min(ranks))]

    @classmethod
    def _fitted(cls, x: Tensor, seen: Tensor, basis: Tensor, ridge: float) -> SharedLaw:
        before, after = x.mean(0), seen.mean(0)
        u, v = (x - before) @ basis, (seen - after) @ basis
        inner = u.T @ u
        effect = torch.linalg.solve(inner + ridge * inner.diagonal().mean() * torch.eye(len(inner)), u.T @ v)
        rest = v - u @ effect
        scatter = rest.T @ rest / len(rest)
        scatter = scatter + ridge * scatter.diagonal().mean() * torch.eye(len(scatter))
        values, vectors = torch.linalg.eigh(scatter)
        return cls(basis, before, after, effect, vectors * values.clamp_min(1e-12).rsqrt())

    @torch.no_grad()
    def __call__(self, seen: Tensor, candidates: Tensor) -> Tensor:
        """Return (V, c) scores, larger where a candidate is likelier to have had a part.

        Args:
            seen: (V, C, H, W) in [0, 1], what was trained on, or what the attacker takes for it.
            candidates: (c, C, H, W) in [0, 1].
        """
        shown = ((seen.cpu().flatten(1) - self.after) @ self.basis) @ self.whiten
        expected = ((candidates.cpu().flatten(1) - self.before) @ self.basis) @ self.effect @ self.whiten
        return -torch.cdist(shown, expected).square()

    def _mean_log_rank(self, originals: Tensor, seen: Tensor) -> float:
        scores = self(seen, originals)
        return float((scores > scores.diagonal()[:, None]).sum(1).add(1).double().log().mean())
