"""Utility of a classifier on a test set: accuracy, and the macro AUC as MedMNIST defines it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """Return the share of rows whose highest score is at the true label.

    Args:
        scores: (n, k) logits or probabilities, n at least 1. A row with a NaN counts as wrong.
        labels: (n,) int64.
    """
    right = (scores.argmax(dim=1) == labels) & ~scores.isnan().any(dim=1)
    return right.double().mean().item()


def macro_auc(probabilities: Tensor, labels: Tensor) -> float:
    """Return the area under the ROC curve as MedMNIST defines it (Yang et al. 2023, ``medmnist.evaluator``).

    Two classes: the AUC of the second column. More: the mean over classes of one-versus-rest AUCs. A class
    that is absent from ``labels``, or the only one there, has no AUC and is left out. NaN if none has one.

    Args:
        probabilities: (n, k).
        labels: (n,) int64, 0 to k - 1.
    """
    scores = probabilities.detach().cpu().double().numpy()
    truth = labels.cpu().numpy()
    classes = range(scores.shape[1]) if scores.shape[1] > 2 else [1]
    areas = [_auc(scores[:, c], truth == c) for c in classes if 0 < np.count_nonzero(truth == c) < len(truth)]
    return sum(areas) / len(areas) if areas else math.nan


def _auc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """The Mann-Whitney statistic: how often a positive outranks a negative, where a tie counts one half."""
    if np.isnan(scores).any():
        return math.nan
    positives = int(positive.sum())
    negatives = len(positive) - positives
    _, place, ties = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (ties.cumsum() - (ties - 1) / 2)[place]
    wins = float(ranks[positive].sum()) - positives * (positives + 1) / 2
    return wins / (positives * negatives)
