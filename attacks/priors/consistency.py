"""Group consistency: several searches for one victim's images should agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedveil.defense.checks import at_least


@dataclass(frozen=True, eq=False)
class GroupConsistency:
    """The mean squared distance from the mean of all restarts of a victim (See through Gradients, Yin et al. 2021).

    The paper registers the restarts to each other before it takes their mean; here the mean is of pixels. It is the one
    prior that ties victims together: those of one group.

    >>> import torch
    >>> x = torch.tensor([0.0, 1.0, 0.3]).view(3, 1, 1, 1, 1)
    >>> GroupConsistency(4, torch.tensor([0, 0, 7]))(x)
    tensor([1., 1., 0.])

    Attributes:
        weight: of the mean over all pixels and images of a victim, at least 0.
        groups: (V,) whose restart each victim is.
    """

    weight: float
    groups: Tensor

    def __post_init__(self) -> None:
        at_least("group_consistency", weight=(self.weight, 0))

    def __call__(self, x: Tensor) -> Tensor:
        """See `Prior`."""
        flat = x.flatten(1)
        together = (self.groups[:, None] == self.groups).to(x)
        mean = together @ flat / together.sum(dim=1, keepdim=True)
        return self.weight * (flat - mean).square().mean(dim=1)

    def take(self, at: Tensor) -> GroupConsistency:
        """See `Prior`."""
        return GroupConsistency(self.weight, self.groups[at])


def groups_of(keys: Sequence[object], device: torch.device) -> Tensor:
    """Return (V,) numbers, equal where the keys are the same object."""
    numbers: dict[int, int] = {}
    return torch.tensor([numbers.setdefault(id(key), len(numbers)) for key in keys], device=device)
