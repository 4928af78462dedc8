"""A few numbers that stand for an image, so that its group's learnt image can show no more than their mean.

Whoever is handed the mean of a group's features in many networks finds the members in it: thousands of features, of which a
mean of ten still points at each of the ten. Most of them are no use to the task. Here all networks' features are read as a
code of ``dimensions`` numbers: first those that tell the classes apart on public images (linear discriminant analysis,
Fisher 1936), then the leading components of what is left. The image is learnt from a public image's view: it keeps what that
view has beside the code, and what goes with the code moves to where the group's mean code lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedveil.defense.latent.pool import Features, Pool
from fedveil.fl.augmentation import augment
from fedveil.fl.data.images import Images

VIEWS = 1920
"""About so many random views of public images are read to fit the code."""
COMPONENTS = 200
"""Directions in which classes are told apart are looked for among so many leading ones."""
RIDGE = 0.1
"""On the scatter within classes, in units of its mean: public images are few."""
_CARRY_RIDGE = 1e-3


@dataclass(frozen=True, eq=False)
class Code:
    """Reads codes, and says what features an image with another code would have. No private image has touched it.

    Attributes:
        views: m views of public images.
        origin: (m,) of which public image each is a view.
        codes: (m, d) theirs.
        centre: (D,) mean features of the views, of all networks' deepest stages one after another.
        deviation: (D,) theirs.
        basis: (D, d) from features, so standardised, to the code.
        carry: of each network (d, D_i), how its features go with the code.
    """

    views: Images
    origin: Tensor
    codes: Tensor
    centre: Tensor
    deviation: Tensor
    basis: Tensor
    carry: tuple[Tensor, ...]

    @classmethod
    @torch.no_grad()
    def fitted(
        cls,
        pool: Pool,
        public: Images,
        kinds: tuple[str, ...],
        *,
        dimensions: int,
        device: torch.device,
        stream: torch.Generator,
    ) -> Code:
        """Fit it on public images.

        Args:
            pool: the networks.
            public: at least two images.
            kinds: how they are varied; see `augment`.
            dimensions: d, at least 1; there are never more than views, less one.
            device: where to read.
            stream: draws the views.
        """
        times = max(1, VIEWS // len(public)) if kinds else 1
        pixels = torch.cat([(255 * augment(public.floats(), kinds, stream)).round() for _ in range(times)])
        origin = torch.arange(len(public)).repeat(times)
        views = Images(pixels.to(torch.uint8), public.labels[origin])
        parts = [reader.of(views)[0] for reader in pool.readers(public.shape, device, deepest=1)]
        features = torch.cat(parts, dim=1)
        centre, deviation = features.mean(0), features.std(0, unbiased=False).clamp_min(1e-6)
        standard = (features - centre) / deviation
        basis = _basis(standard, views.labels, min(dimensions, len(views) - 1))
        codes = standard @ basis
        inner = codes.T @ codes
        inner = inner + _CARRY_RIDGE * inner.diagonal().diag()
        carry = tuple(torch.linalg.solve(inner, codes.T @ (part - part.mean(0))) for part in parts)
        return cls(views, origin, codes, centre, deviation, basis, carry)

    @property
    def scatter(self) -> float:
        """How much codes of public views scatter about their mean, summed over d."""
        return max(1e-12, float((self.codes - self.codes.mean(0)).square().sum(1).mean()))

    def starts(self, codes: Tensor, labels: Tensor, allowed: Tensor | None) -> Tensor:
        """Return for each group the place (G,) of the view of its class whose code is the nearest.

        Args:
            codes: (G, d).
            labels: (G,) the groups' classes; of one without a view, the view may be of any.
            allowed: (G, public) bool, of which public images the views may start which group; None for all.
        """
        unit = self.codes.std(0, unbiased=False).clamp_min(1e-12)
        distances = torch.cdist(codes / unit, self.codes / unit, compute_mode="donot_use_mm_for_euclid_dist")
        alike = labels[:, None] == self.views.labels[None]
        if allowed is not None:
            may = allowed[:, self.origin]
            alike = torch.where((alike & may).any(1, keepdim=True), alike & may, may)
        alike |= ~alike.any(1, keepdim=True)
        return distances.masked_fill(~alike, torch.inf).argmin(1)

    def targets(self, codes: Tensor, starts: Tensor, readers: Sequence[Features]) -> list[list[Tensor]]:
        """Return what each network should see (one stage each, (G, D_i)): the start, moved to the group's code.

        Args:
            codes: (G, d) where to.
            starts: (G,) places of the views to begin at.
            readers: of the pool's deepest stages.
        """
        away = codes - self.codes[starts]
        begun = self.views.take(starts)
        return [
            [reader.of(begun)[0] + _by_rows(away, carry)] for reader, carry in zip(readers, self.carry, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class CodeReader:
    """Reads codes of images.

    Attributes:
        code: which.
        readers: of the pool's deepest stages.
    """

    code: Code
    readers: Sequence[Features]

    def of(self, images: Images) -> list[Tensor]:
        """See `fedveil.defense.latent.pool.Reads`: one vector each, (n, d)."""
        features = torch.cat([reader.of(images)[0] for reader in self.readers], dim=1)
        return [_by_rows((features - self.code.centre) / self.code.deviation, self.code.basis)]


def _basis(standard: Tensor, labels: Tensor, dimensions: int) -> Tensor:
    """(D, d) orthonormal: between the classes first, then along the scatter that is left.

    Directions are sought in the span of the views, by way of their Gram matrix: there are fewer views than features.
    """
    values, vectors = torch.linalg.eigh((standard @ standard.T).double())
    count = min(COMPONENTS, int((values > 1e-9 * values[-1]).sum()))
    leading = vectors[:, -count:].flip(1)
    span = standard.T.double() @ (leading / values[-count:].flip(0).sqrt())
    scores = standard.double() @ span
    classes = labels.unique()
    centres = torch.stack([scores[labels == label].mean(0) for label in classes])
    within = scores - centres[torch.searchsorted(classes, labels)]
    scatter = within.T @ within / len(within)
    scatter = scatter + RIDGE * scatter.diagonal().mean().clamp_min(1e-12) * torch.eye(count, dtype=torch.float64)
    factor = torch.linalg.cholesky(scatter)
    between = torch.linalg.solve_triangular(factor, (centres - centres.mean(0)).T, upper=False)
    sides, sizes, _ = torch.linalg.svd(between, full_matrices=False)
    sides = sides[:, sizes > 1e-9 * sizes.max().clamp_min(1e-300)][:, : min(dimensions, len(classes) - 1)]
    telling = torch.linalg.qr(torch.linalg.solve_triangular(factor.T, sides, upper=True)).Q
    left = scores - scores @ telling @ telling.T
    rest = torch.linalg.svd(left, full_matrices=False).Vh[: dimensions - telling.shape[1]].T
    basis: Tensor = span @ torch.cat([telling, rest], dim=1)
    return basis.float()


def _by_rows(rows: Tensor, matrix: Tensor) -> Tensor:
    """The product; a row of it depends in no bit on other rows."""
    # Each alone, and where memory begins: in a product of matrices the place of a row may show in how its sums are rounded.
    found = [row.clone() @ matrix for row in rows]
    return torch.stack(found) if found else rows @ matrix
