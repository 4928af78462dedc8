"""Counts whose simulated training of the last layer leaves the gradient that was observed.

Geng et al. (2021) put one mean softmax for all batches. Two things move it: the labels themselves, once the classifier tells
classes apart, and, over several local steps, the training. Both are simulated here: stand-ins for the client's images are
weighted by the candidate counts, and the last layer is trained on what enters it. Of the stand-ins, auxiliary images carry
their class. Without them one input serves all classes: the mean that the gradient itself gives away, weight over bias. That
is after Ma et al. 2023 ("Instance-wise Batch Label Restoration via Gradients in Federated Learning", ICLR), who restore one
input per class; several local steps blur those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fedveil.attacks.labels.counts import least_counts, nearest_counts, search_counts
from fedveil.attacks.labels.last_layer import LastGradient

RIDGE = 1e-6
"""Variance of a mean gradient entry, that no image accounts for."""
MADE_UP_ERROR = 0.02
"""Standard deviation of the mean softmax around that of one input for all classes."""


@dataclass(frozen=True, eq=False)
class StandIns:
    """Images in the place of the client's, as the last layer sees them.

    Attributes:
        inputs: per local step (n, d), float64.
        labels: (n,); None lets every image stand for every class.
        shares: (k,) of each class, as far as the attacker can guess; None without a guess.
    """

    inputs: Sequence[Tensor]
    labels: Tensor | None = None
    shares: Tensor | None = None


class LastLayerTraining:
    """SGD on the last layer alone, for many candidate counts at once.

    Args:
        stand_ins: n images.
        weight: (k, d) as sent.
        bias: (k,) as sent; None without one.
        learning_rate: of SGD.
        read_bias: read the gradient of the bias; otherwise that of the weight along the mean input.
    """

    def __init__(
        self, stand_ins: StandIns, weight: Tensor, bias: Tensor | None, learning_rate: float, *, read_bias: bool
    ) -> None:
        inputs = stand_ins.inputs
        classes, count = len(weight), len(inputs[0])
        spread = torch.full((count, classes), 1 / count, dtype=torch.float64)
        if stand_ins.labels is not None:
            own = F.one_hot(stand_ins.labels, classes).double()
            # A class of which there is no image is stood for by all.
            spread = torch.where(own.sum(dim=0) > 0, own / own.sum(dim=0).clamp(min=1), spread)
        self._spread = spread
        offset = 0.0 if bias is None else bias.double()
        self._logits = [x @ weight.double().T + offset for x in inputs]
        self._kernels = [
            [learning_rate * (x @ before.T + float(bias is not None)) for before in inputs[:step]]
            for step, x in enumerate(inputs)
        ]
        self.direction = torch.stack(list(inputs)).mean(dim=(0, 1))
        along = [x @ self.direction / self.direction.square().sum() for x in inputs]
        self._reading = [torch.ones_like(r) for r in along] if read_bias else along

    def single(self, labels: Tensor) -> Tensor:
        """Return what each image alone would leave at the weights as sent: (n, k), of its label (n,)."""
        errors = self._logits[0].softmax(dim=1) - F.one_hot(labels, self._logits[0].shape[1])
        return self._reading[0][:, None] * errors

    def gradient(self, shares: Tensor) -> Tensor:
        """Return the (m, k) mean gradient read over the steps, of (m, k) shares of the classes in the batch."""
        targets = shares[:, None, :] * self._spread
        weights = targets.sum(dim=2, keepdim=True)
        passed: list[Tensor] = []
        for logits, kernels in zip(self._logits, self._kernels, strict=True):
            moved = logits.expand_as(targets)
            for kernel, residual in zip(kernels, passed, strict=True):
                moved = moved - kernel @ residual
            passed.append(weights * moved.softmax(dim=2) - targets)
        read = [torch.einsum("n,mnk->mk", r, residual) for r, residual in zip(self._reading, passed, strict=True)]
        return torch.stack(read).mean(dim=0)


def simulated(
    gradient: LastGradient,
    stand_ins: StandIns,
    weight: Tensor,
    bias: Tensor | None,
    *,
    learning_rate: float,
    batch_size: int,
) -> tuple[Tensor, float]:
    """Return the (k,) counts that explain the gradient best, and their cost: -2 log of their probability, up to a constant.

    With labelled stand-ins the misfit is weighed by how much single images of a class differ, and shares far from
    ``stand_ins.shares`` are charged for, as a Dirichlet distribution of concentration k / 2 has them.

    Args:
        gradient: of the last layer, mean over the steps.
        stand_ins: images, as the last layer sees them.
        weight: (k, d) as sent.
        bias: (k,) as sent; None without one.
        learning_rate: the client's.
        batch_size: B.
    """
    head = LastLayerTraining(stand_ins, weight, bias, learning_rate, read_bias=gradient.bias is not None)
    if gradient.bias is not None:
        observed, least = gradient.bias, least_counts(gradient.bias, batch_size)
    else:
        assert gradient.weight is not None  # one of the two is there
        observed = gradient.weight @ head.direction / head.direction.square().sum()
        least = torch.zeros(len(observed), dtype=torch.int64)
    misfit, centre, charge = _precisions(head, stand_ins, len(observed), batch_size)

    def cost(counts: Tensor) -> Tensor:
        shares = counts.double() / batch_size
        error, off = head.gradient(shares) - observed, shares - centre
        return ((error @ misfit) * error).sum(dim=1) + ((off @ charge) * off).sum(dim=1)

    def surplus(counts: Tensor) -> Tensor:
        return observed - head.gradient(counts[None].double() / batch_size)[0]

    # From what explains the misfit of the expected shares, and from an even start.
    wanted = head.gradient(centre[None])[0] + centre - observed
    even = torch.full_like(wanted, 1 / len(wanted))
    starts = [nearest_counts(batch_size * shares, batch_size, least) for shares in (wanted, even)]
    found = [search_counts(cost, surplus, start, least) for start in starts]
    return min(found, key=lambda one: one[1])


def _precisions(
    head: LastLayerTraining, stand_ins: StandIns, classes: int, batch_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the inverse covariance of the misfit, the expected shares and their inverse covariance."""
    identity = torch.eye(classes, dtype=torch.float64)
    if stand_ins.labels is None or stand_ins.shares is None:
        even = torch.full((classes,), 1 / classes, dtype=torch.float64)
        return identity / MADE_UP_ERROR**2, even, torch.zeros_like(identity)
    own, labels, shares = head.single(stand_ins.labels), stand_ins.labels, stand_ins.shares.double()
    sums = torch.zeros((classes, classes), dtype=torch.float64).index_add(0, labels, own)
    means = sums / torch.bincount(labels, minlength=classes).clamp(min=1)[:, None]
    within = (own - means[labels]).T @ (own - means[labels]) / len(own)
    # Of the batch's own mean and of the means of the stand-ins.
    misfit = within * (1 / batch_size + classes / len(own)) + RIDGE * identity
    prior = (shares.diag() - shares.outer(shares)) / (classes / 2 + 1) + 1e-3 * identity
    return torch.linalg.inv(misfit), shares, torch.linalg.inv(prior)
