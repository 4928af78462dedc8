"""Groups that are formed without a look at who else is there: each image goes to its nearest public one."""

from __future__ import annotations

import torch
from torch import Tensor

from fedveil.defense.latent.grouping import Grouping


def group_by_anchor(features: Tensor, labels: Tensor, k: int, anchors: Tensor, classes: Tensor) -> Grouping:
    """Group images that have the same nearest public image of their class.

    An image's cell depends on it and public images alone. Cells with fewer than ``k`` images join, the smallest one first,
    the cell whose anchor is nearest, as a whole: which ones do depends on how many images each cell has, and on nothing
    else of them. A class with fewer than ``k`` images is in no group. Groups have ``k`` images or more, and may have many.

    Args:
        features: (n, D) in which likeness is Euclidean distance.
        labels: (n,) int64.
        k: least images of a group, at least 1.
        anchors: (m, D) of public images.
        classes: (m,) theirs. Of a class without any, all images are one group.
    """
    of = torch.full((len(labels),), -1)
    groups = 0
    for label in labels.unique().tolist():
        own, places = (labels == label).nonzero()[:, 0], anchors[classes == label]
        if len(own) < k:
            continue
        if len(places) == 0:
            places = features.new_zeros(1, features.shape[1])
        # Pair by pair: products of whole matrices would round each by what else is there.
        cell = torch.cdist(features[own], places, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
        _, of_label = _joined(cell.bincount(minlength=len(places)), places, k)[cell].unique(return_inverse=True)
        of[own] = of_label + groups
        groups += int(of_label.max()) + 1
    return Grouping(of, k)


def _joined(counts: Tensor, places: Tensor, k: int) -> Tensor:
    """(m,) which cell each of m cells is a part of in the end, so that all that are left hold k."""
    apart = torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    into, held, left = torch.arange(len(counts)), counts.double(), len(counts)
    while left > 1 and float(held.min()) < k:
        smallest = int(held.argmin())
        nearest = int(apart[smallest].argmin())
        held[nearest] += held[smallest]
        held[smallest] = torch.inf
        apart[:, smallest] = torch.inf
        into[into == smallest] = nearest
        left -= 1
    return into
