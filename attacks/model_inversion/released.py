"""The released classifier, and the three views of it that an attacker may be granted.

What is not granted can't be used: an attack is handed a view that has no more than its grant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor, nn

CHUNK = 256

Answer = Callable[[Tensor], Tensor]
"""From images (n, C, H, W) in [0, 1] to what the release answers, on the CPU."""


class Access(IntEnum):
    """What is granted of a released classifier; each grant includes those before it.

    >>> import fedveil as fv
    >>> [grant.name for grant in fv.Access if grant <= fv.Access.CONFIDENCES]
    ['LABELS', 'CONFIDENCES']
    """

    LABELS = 0
    """It answers a query with a class, and nothing else."""
    CONFIDENCES = 1
    """It answers with a vector of confidences."""
    WEIGHTS = 2
    """It was handed over: the network itself, whose answers nothing stands in front of."""


class LabelTarget:
    """A classifier that answers with classes.

    Args:
        label: the only thing that it does.
        shape: (C, H, W) of an image.
        classes: k.

    Attributes:
        queries: images that were asked about so far.
    """

    def __init__(self, label: Answer, shape: tuple[int, int, int], classes: int) -> None:
        self._label = label
        self.shape, self.classes = shape, classes
        self.queries = 0

    def labels(self, images: Tensor) -> Tensor:
        """Return the (n,) int64 classes of (n, C, H, W) images in [0, 1]."""
        self.queries += len(images)
        return self._label(images)


class ConfidenceTarget(LabelTarget):
    """A classifier that answers with confidences too.

    Args:
        label: see `LabelTarget`.
        confidence: answers with confidences.
        shape: (C, H, W) of an image.
        classes: k.
    """

    def __init__(self, label: Answer, confidence: Answer, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__(label, shape, classes)
        self._confidence = confidence

    def confidences(self, images: Tensor) -> Tensor:
        """Return the (n, k) confidences, rows of the simplex, of (n, C, H, W) images in [0, 1]."""
        self.queries += len(images)
        return self._confidence(images)


class WeightsTarget(ConfidenceTarget):
    """A classifier in the attacker's hands.

    Args:
        label: see `LabelTarget`.
        confidence: see `ConfidenceTarget`.
        network: from (n, C, H, W) to logits (n, k); frozen.
        shape: (C, H, W) of an image.
        classes: k.
    """

    def __init__(
        self, label: Answer, confidence: Answer, network: nn.Module, shape: tuple[int, int, int], classes: int
    ) -> None:
        super().__init__(label, confidence, shape, classes)
        self.network = network


Target = LabelTarget | ConfidenceTarget | WeightsTarget


@dataclass(frozen=True, eq=False)
class ReleasedModel:
    """A finished classifier and what its answers pass on the way out. No attack sees this object.

    Attributes:
        network: from (n, C, H, W) in [0, 1] to logits (n, k), in evaluation mode and frozen.
        output: the defence's `output` hook; None where answers go out as they are.
        shape: (C, H, W) of an image.
        classes: k.
    """

    network: nn.Module
    output: Callable[[Tensor], Tensor] | None
    shape: tuple[int, int, int]
    classes: int

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @torch.no_grad()
    def confidences(self, images: Tensor) -> Tensor:
        """Return the (n, k) confidences that go out, on the CPU."""
        parts = []
        for some in images.split(CHUNK):
            logits = self.network(some.to(self.device))
            parts.append((logits if self.output is None else self.output(logits)).softmax(1).cpu())
        return torch.cat(parts)

    def labels(self, images: Tensor) -> Tensor:
        """Return the (n,) classes that go out, on the CPU."""
        return self.confidences(images).argmax(1)

    def granted(self, access: Access) -> Target:
        """Return the view that a grant gives."""
        if access is Access.LABELS:
            return LabelTarget(self.labels, self.shape, self.classes)
        if access is Access.CONFIDENCES:
            return ConfidenceTarget(self.labels, self.confidences, self.shape, self.classes)
        # Who holds the weights asks the network itself.
        bare = ReleasedModel(self.network, None, self.shape, self.classes)
        return WeightsTarget(bare.labels, bare.confidences, self.network, self.shape, self.classes)
