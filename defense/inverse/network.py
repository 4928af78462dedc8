"""The network behind a learnt inverse: a small U-Net that is shown defended draws of an image, and its label."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedveil.defense.modules import groups_of, pad_to

UNTOLD = -1
"""The label of an image whose class the attacker does not know."""

FEATURES = 32


class _Block(nn.Module):
    """A residual block of two convolutions, shifted between them by what is known of the whole image."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(groups_of(inputs), inputs), nn.SiLU(), _conv(inputs, outputs))
        self.known = nn.Linear(FEATURES, outputs)
        last = _conv(outputs, outputs)
        self.second = nn.Sequential(nn.GroupNorm(groups_of(outputs), outputs), nn.SiLU(), last)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        nn.init.zeros_(last.weight)

    def forward(self, x: Tensor, known: Tensor) -> Tensor:
        """(n, inputs, h, w) and (n, FEATURES) to (n, outputs, h, w)."""
        inner = self.first(x) + self.known(known)[:, :, None, None]
        changed: Tensor = self.skip(x) + self.second(inner)
        return changed


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)


class InverseNetwork(nn.Module):
    """From what was seen of an image to an estimate of it.

    Draws enter as their mean and, from two on, their standard deviation.

    Args:
        shape: (C, H, W).
        classes: k.
        width: channels at half resolution, at least 1; the quarter-resolution level has twice as many.
        several: it is shown more than one draw.
    """

    def __init__(self, shape: tuple[int, int, int], *, classes: int, width: int, several: bool) -> None:
        super().__init__()
        channels, height, width_px = shape
        self.size = (height, width_px)
        self.several = several
        wide = 2 * width
        self.label = nn.Embedding(1 + classes, FEATURES)  # the first row is that of an untold label
        self.enter = nn.Sequential(nn.PixelUnshuffle(2), _conv(4 * channels * (2 if several else 1), width))
        self.fine = _Block(width, width)
        self.down = _conv(width, wide, stride=2)
        self.coarse = _Block(wide, wide)
        self.context = nn.Sequential(nn.Linear(2 * wide, wide), nn.SiLU(), nn.Linear(wide, FEATURES))
        self.bottom = _Block(wide, wide)
        self.up = nn.Sequential(nn.Conv2d(wide, 4 * width, 1), nn.PixelShuffle(2))
        self.joined = _Block(2 * width, width)
        self.leave = nn.Sequential(
            nn.GroupNorm(groups_of(width), width), nn.SiLU(), _conv(width, 4 * channels), nn.PixelShuffle(2)
        )

    def forward(self, draws: Tensor, labels: Tensor) -> Tensor:
        """Return estimates of the originals, (n, C, H, W) in [0, 1].

        Args:
            draws: (R, n, C, H, W) in [0, 1].
            labels: (n,) int64; `UNTOLD` where they are not known.
        """
        x = 2 * draws.mean(dim=0) - 1
        if self.several:
            x = torch.cat([x, 2 * draws.std(dim=0)], dim=1)
        known = self.label(labels + 1)
        fine = self.fine(self.enter(pad_to(x, 4)), known)
        coarse = self.coarse(self.down(fine), known)
        known = known + self.context(torch.cat([coarse.mean(dim=(2, 3)), coarse.amax(dim=(2, 3))], dim=1))
        joined = self.joined(torch.cat([fine, self.up(self.bottom(coarse, known))], dim=1), known)
        image = self.leave(joined)[..., : self.size[0], : self.size[1]]
        return torch.sigmoid(2 * image)
