"""The truth about a victim batch: one object from the draw to the score. No attack ever sees it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedveil.fl.data.images import Images


@dataclass(frozen=True, eq=False)
class VictimBatch:
    """Images that one client trains on at an audit, and that an attacker tries to rebuild from the update.

    Attributes:
        number: of the batch.
        client: whose images they are.
        victims: the images' own numbers, the same for every defence; B of them.
        images: the originals with their labels, as they are in the data set, B of them.
        gallery: positions of the originals in the gallery; None without a gallery.
        trained: (B, C, H, W) in [0, 1], what the client trained on, in the originals' order; None until it was captured.
    """

    number: int
    client: int
    victims: tuple[int, ...]
    images: Images
    gallery: tuple[int, ...] | None = None
    trained: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def originals(self) -> Tensor:
        """(B, C, H, W) in [0, 1]."""
        return self.images.floats()

    @property
    def labels(self) -> Tensor:
        """(B,) int64, the true labels."""
        return self.images.labels

    @property
    def gallery_index(self) -> Tensor | None:
        """(B,) int64, or None without a gallery."""
        return None if self.gallery is None else torch.tensor(self.gallery)
