"""The published rules that read labels off the last layer's gradient. Each returns (k,) counts that sum to B.

Cross-entropy leaves mean(softmax - onehot) at the last bias, so counts / B = mean(softmax) - gradient. The rules differ in
what they put for the mean softmax, which the server does not see.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fedveil.attacks.labels.counts import least_counts, nearest_counts
from fedveil.attacks.labels.last_layer import LastGradient
from fedveil.fl.errors import FedveilError


def idlg(gradient: LastGradient) -> Tensor:
    """One image: the class whose logit the client pushes up (Zhao et al. 2020, arXiv 2001.02610).

    The paper compares the signs of inner products of the weight's rows; the bias has the sign itself.
    """
    return F.one_hot(gradient.rows.argmin(), len(gradient.rows))


def yin(weight: Tensor, batch_size: int) -> Tensor:
    """Distinct labels: the classes with the lowest entries of the weight's gradient (Yin et al. 2021).

    See through Gradients, arXiv 2104.07586.

    Args:
        weight: (k, d) gradient; the layer's inputs have to be positive.
        batch_size: B.

    Raises:
        FedveilError: there are more images than classes, so a label repeats.
    """
    classes = len(weight)
    if batch_size > classes:
        raise FedveilError(
            f"labels: {batch_size} images of {classes} classes repeat a label, and Yin's rule is for distinct ones"
        )
    return torch.zeros(classes, dtype=torch.int64).index_fill(0, weight.amin(dim=1).argsort()[:batch_size], 1)


def llg(rows: Tensor, batch_size: int) -> Tensor:
    """Repeated labels from the update alone (Wainakh et al. 2021, LLG, arXiv 2105.09369).

    A class with a negative sum is there. One label is taken to have the impact m = sum of the negative sums *
    (1 + 1 / k) / B; each label found takes its impact away, and the lowest sum gives the next label. The offset, which
    needs the model and other images, is left at 0: at the bias the impact is -1 / B and the offset the mean softmax, so
    with them LLG becomes `geng`. (breaching 0.1.2 takes each further impact from a stale index, and repeats one label.)

    Args:
        rows: (k,) gradient of the bias, or row sums of the weight's.
        batch_size: B.
    """
    rows = rows.clone()
    impact = rows.clamp(max=0).sum() * (1 + 1 / len(rows)) / batch_size
    counts = torch.zeros(len(rows), dtype=torch.int64)
    for found in rows.argsort()[: min(batch_size, int((rows < 0).sum()))].tolist():
        counts[found] += 1
        rows[found] -= impact
    for _ in range(batch_size - int(counts.sum())):
        lowest = int(rows.argmin())
        counts[lowest] += 1
        rows[lowest] -= impact
    return counts


def geng(bias: Tensor, probabilities: Tensor, batch_size: int) -> Tensor:
    """Repeated labels with an estimated mean softmax (Geng et al. 2021, arXiv 2110.09074).

    Counts are rounded to the nearest whole ones of the right sum, and not below `least_counts`; the paper rounds each by
    itself.

    Args:
        bias: (k,) gradient.
        probabilities: (n, k) softmax of other images.
        batch_size: B.
    """
    wanted = batch_size * (probabilities.mean(dim=0) - bias)
    return nearest_counts(wanted, batch_size, least_counts(bias, batch_size))
