"""What entered a linear layer, from the gradient of its weight and bias.

The weight's gradient is sum_b error_b outer input_b, the bias's is sum_b error_b: m rows that mix the B inputs by the same
errors. Several local steps on one batch add terms of the same form. For one input that was seen by Phong et al. 2017,
"Privacy-Preserving Deep Learning via Additively Homomorphic Encryption".
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

ROUND = 512
"""Starts that are tried together."""
ITERATIONS = 30
ALIKE = 1e-3
"""Rows whose ratios differ by less, relative to their size, show the same input."""


def single_input(weight: Tensor, bias: Tensor) -> Tensor:
    """Return the (d,) input that all rows share: the ratio of the gradients (Phong et al. 2017).

    Of all rows the least-squares one, so noise averages out. Entries that are 0 where their row's bias is not were not sent
    (or the input is 0 there, and then all are), so they count as unknown.

    Args:
        weight: (m, d) gradient.
        bias: (m,) gradient.
    """
    told = (weight != 0).to(weight)
    return bias @ weight / (bias.square() @ told).clamp_min(1e-300)


def lone_inputs(ratios: Tensor, most: int) -> list[Tensor]:
    """Return groups of rows that show the same input, largest first: a unit that one image alone has woken shows it.

    Passively, that is the extraction of Fowl et al. 2022 (Robbing the Fed) and Boenisch et al. 2021 (When the Curious
    Abandon Honesty), whose servers change the model so that there are more such units.

    Args:
        ratios: (m, d) weight gradient over bias gradient, of rows that may be images.
        most: groups to return.

    Returns:
        Row numbers, (n,) int64 each.
    """
    size = ratios.norm(dim=1)
    near = torch.cdist(ratios, ratios) < ALIKE * torch.maximum(size[:, None], size[None])
    left = torch.ones(len(ratios), dtype=torch.bool)
    groups: list[Tensor] = []
    while bool(left.any()) and len(groups) < most:
        members = near & left
        largest = int(members.sum(dim=1).argmax())
        groups.append(members[largest].nonzero().flatten())
        left &= ~members[largest]
    return groups


def unmixed_inputs(
    weight: Tensor, bias: Tensor, batch_size: int, *, starts: int, stream: torch.Generator
) -> Iterator[Tensor]:
    """Yield ever better guesses at all (B, d) inputs of a layer that ReLUs follow; none where there is no way.

    SPEAR (Dimitrov et al. 2024, arXiv 2403.03945): the weight's gradient has rank B, and the errors of one image, a vector
    in its column space, are 0 wherever that image leaves a unit asleep. B independent such sparse vectors are the errors up
    to their sizes, and these the bias's gradient gives. The paper draws rows at random until the vector that vanishes on
    them vanishes on many more. Here each draw starts a reweighted least-squares descent to a sparse vector, which needs far
    fewer. A right guess is exact; whether it is right, a replay of the client's steps tells.

    Args:
        weight: (m, d) gradient.
        bias: (m,) gradient.
        batch_size: B, at least 2.
        starts: at most so many draws.
        stream: of the draws.
    """
    awake = weight.norm(dim=1) > 1e-7 * weight.norm()
    if int(awake.sum()) < batch_size or weight.shape[1] < batch_size:
        return
    left, sizes, right = torch.linalg.svd(weight[awake].double(), full_matrices=False)
    noise = _noise(sizes, batch_size, weight.shape)
    left, sizes, right = left[:, :batch_size], sizes[:batch_size], right[:batch_size]
    if float(sizes[-1]) <= noise:
        return
    chosen = torch.zeros((0, batch_size), dtype=torch.float64)
    for _ in range(0, starts, ROUND):
        found = torch.cat([chosen, _sparse(left, _draw(left, stream), noise / float(sizes[-1]))])
        chosen = _independent(left, found, noise / sizes)
        if len(chosen) == batch_size:
            scale = torch.linalg.lstsq(left @ chosen.T, bias[awake].double()[:, None]).solution
            yield torch.linalg.solve(chosen.T, sizes[:, None] * right) / scale


def _noise(sizes: Tensor, batch_size: int, shape: torch.Size) -> float:
    """Standard deviation of a gradient entry, from what exceeds rank B; float32's own at least."""
    rest = float(sizes[batch_size]) / (shape[0] ** 0.5 + shape[1] ** 0.5) if len(sizes) > batch_size else 0.0
    return max(rest, 1e-9 * float(sizes[0]))


def _draw(left: Tensor, stream: torch.Generator) -> Tensor:
    """(n, B) unit vectors, each of which some B - 1 rows vanish along."""
    batch_size = left.shape[1]
    rows = torch.rand((ROUND, len(left)), generator=stream).topk(batch_size - 1, dim=1).indices
    vanishing: Tensor = torch.linalg.qr(left[rows].mT, mode="complete")[0][..., -1]
    return vanishing


def _sparse(left: Tensor, start: Tensor, floor: float) -> Tensor:
    """Lower sum log |left q| from each (n, B) start, by weighted least squares with weights 1 / (left q)^2."""
    batch_size = left.shape[1]
    outer = (left[:, :, None] * left[:, None, :]).flatten(1)
    q, soft = start, 0.5
    for _ in range(ITERATIONS):
        errors = (q @ left.T).square()
        weights = 1 / (errors + soft**2 * errors.mean(dim=1, keepdim=True))
        q = torch.linalg.eigh((weights @ outer).view(-1, batch_size, batch_size)).eigenvectors[..., 0]
        soft = max(0.75 * soft, floor, 1e-6)
    return q


def _zeros(left: Tensor, q: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return (n, m) which entries of left q are 0 as far as noise lets one see, and (n,) how many are no accident."""
    errors = (q @ left.T).abs()
    size = errors.square().mean(dim=1).sqrt()
    tolerance = (5 * (q * noise).norm(dim=1) / size).clamp(1e-4, 0.1)
    return errors < tolerance[:, None] * size[:, None], left.shape[1] + 1 + tolerance * len(left)


def _independent(left: Tensor, q: Tensor, noise: Tensor) -> Tensor:
    """The (at most B, B) sparsest vectors that are no accident and no combination of those before them."""
    zeros, needed = _zeros(left, q, noise)
    count = zeros.sum(dim=1)
    kept: list[Tensor] = []
    basis = torch.zeros((0, q.shape[1]), dtype=q.dtype)
    for at in count.argsort(descending=True).tolist():
        if len(kept) == q.shape[1] or count[at] < needed[at]:
            break
        rest = q[at] - basis.T @ (basis @ q[at])
        if float(rest.norm()) > ALIKE:
            basis = torch.cat([basis, (rest / rest.norm())[None]])
            # Where it vanishes it does so exactly.
            kept.append(torch.linalg.svd(left[zeros[at]])[2][-1])
    return torch.stack(kept) if kept else q[:0]
