"""``mni152``: slices of the MNI152 brain template that nilearn ships; no download, no patient.

The template is the ICBM 152 nonlinear symmetric 2009 average (V. Fonov et al., NeuroImage 54, 2011),
skull-stripped, T1, 1 mm voxels. A slice's class is its plane.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedveil.fl.data.checks import checked_data
from fedveil.fl.data.images import ImageData, Images
from fedveil.fl.data.source import DataEntry, Source, chosen_size, register_data
from fedveil.fl.errors import FedveilError

_FILE = Path("datasets", "data", "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz")
_CENTRE = (98.0, 117.0, 77.0)
"""Voxel in the middle of the brain; 98 is the plane of symmetry."""
_FIELD = 192.0
"""Side of a slice in mm; the brain's longest extent is 181."""
_SPACING = 2.3
"""The volume is sampled at least every so many mm, before the area average down to the size asked for."""
_TILTS = (-24.0, -12.0, 0.0, 12.0, 24.0)
"""Degrees by which a plane is tilted about its first hinge, as scans are in practice: more images that are no copies."""
_TURNS = (0.0, 15.0)
"""Degrees about its second hinge. They all have one sign: slices turned to and fro would be mirror twins."""
_STEP = 2.0
"""mm from one slice to the next within a block."""
_POSITIONS = 3
"""Slices in a block."""
_GAP = 6.0
"""mm from the last slice of a block to the first of the next."""
_SPLITS = (("train", "val", "train", "test", "train"), ("train", "test", "train", "val", "train"))
"""Splits of the tilts at one position, without and with a turn. They move on by two tilts from position to position, a
Latin square, and the turn swaps validation and test: both see all parts of the brain at all tilts, equally often."""
_BRAIN_SHARE = 0.1
"""A slice with a smaller share of brain pixels is dropped."""


@dataclass(frozen=True)
class Plane:
    """A family of parallel slices.

    Attributes:
        name: the class.
        normal: the axis that the slices stand across: 0 left to right, 1 back to front, 2 bottom to top.
        hinges: the axes in the plane about which it is tilted and turned.
        first: mm from the centre to the first slice.
        last: mm from the centre beyond which no slice lies.
    """

    name: str
    normal: int
    hinges: tuple[int, int]
    first: float
    last: float


# The template is its own mirror image: the sagittal slices at +d and -d are the same picture, so only one
# hemisphere is cut. It begins 2 mm off the middle, where slices tilted to and fro would be mirror twins.
# The other two planes are tilted about the left-right axis only, for the same reason.
PLANES = (
    Plane("sagittal", normal=0, hinges=(2, 1), first=2.0, last=72.0),
    Plane("coronal", normal=1, hinges=(0, 2), first=-90.0, last=90.0),
    Plane("axial", normal=2, hinges=(0, 1), first=-77.0, last=77.0),
)


def template_path() -> Path:
    """Return the template's file inside the installed nilearn, found without importing nilearn (seconds).

    Raises:
        FedveilError: nilearn is not installed, or its file has moved.
    """
    spec = find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise FedveilError("mni152: the package nilearn is not installed; it ships the template")
    path = Path(spec.origin).parent / _FILE
    if not path.is_file():
        raise FedveilError(f"mni152: nilearn's template is not at {path}; reinstall nilearn")
    return path


def template_volume() -> Tensor:
    """Return the template as (197, 233, 189) float32 in [0, 1], the 99.9th percentile of the brain at 1.

    One scale for the whole volume: a scale per slice would make dim slices bright.
    """
    import nibabel  # seconds, of which only this source has need

    volume = np.asarray(nibabel.Nifti1Image.from_filename(template_path()).dataobj, dtype=np.float32)
    top = float(np.percentile(volume[volume > 0], 99.9))
    return torch.from_numpy(volume / top).clamp(0.0, 1.0)


def sample_slice(volume: Tensor, plane: Plane, *, position: float, tilt: float, turn: float, size: int) -> Tensor:
    """Cut one slice, the whole field of view, trilinear and then averaged over areas.

    Args:
        volume: (X, Y, Z) as of `template_volume`.
        plane: which family.
        position: mm from the centre along the normal.
        tilt: degrees about the first hinge.
        turn: degrees about the second hinge.
        size: pixels a side.

    Returns:
        (size, size) float32 in [0, 1]; back or left at the left, top or front at the top.
    """
    along, up = (axis for axis in range(3) if axis != plane.normal)
    # A multiple of the size, so that all areas hold equally many samples.
    fine = size * math.ceil(_FIELD / _SPACING / size)
    ruler = ((torch.arange(fine) + 0.5) / fine - 0.5) * _FIELD
    points = torch.zeros(fine, fine, 3)
    points[..., along] = ruler[None, :]
    points[..., up] = -ruler[:, None]
    rotation = _rotation(plane.hinges[0], tilt) @ _rotation(plane.hinges[1], turn)
    points = points @ rotation.T + torch.tensor(_CENTRE)
    points[..., plane.normal] += position
    last_voxel = torch.tensor(volume.shape) - 1
    grid = (points / last_voxel * 2 - 1).flip(-1)
    samples = F.grid_sample(volume[None, None], grid[None, None], align_corners=True)[0]
    return F.interpolate(samples, size=(size, size), mode="area")[0, 0]


def _rotation(axis: int, degrees: float) -> Tensor:
    first, second = (other for other in range(3) if other != axis)
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = torch.eye(3)
    matrix[first, first] = matrix[second, second] = cosine
    matrix[first, second], matrix[second, first] = -sine, sine
    return matrix


@dataclass(frozen=True)
class Block:
    """A few neighbouring slices, tilted and turned alike.

    Attributes:
        plane: number of the plane in `PLANES`.
        tilt: degrees about the first hinge.
        turn: degrees about the second.
        positions: mm along the plane's normal.
        split: ``train``, ``val`` or ``test``.
    """

    plane: int
    tilt: float
    turn: float
    positions: tuple[float, ...]
    split: str


def blocks() -> Iterator[Block]:
    """Yield all blocks of all planes."""
    extent = (_POSITIONS - 1) * _STEP
    for label, plane in enumerate(PLANES):
        for row, start in enumerate(np.arange(plane.first, plane.last - extent + 1e-6, extent + _GAP).tolist()):
            positions = tuple(start + index * _STEP for index in range(_POSITIONS))
            for (column, tilt), (turn, splits) in product(enumerate(_TILTS), zip(_TURNS, _SPLITS, strict=True)):
                yield Block(label, tilt, turn, positions, splits[(column + 2 * row) % len(splits)])


def _split(volume: Tensor, split: str, size: int) -> Images:
    """Cut the images of one split. A block has one group number, whatever the split."""
    slices: list[Tensor] = []
    labels: list[int] = []
    groups: list[int] = []
    for group, block in enumerate(blocks()):
        if block.split != split:
            continue
        for position in block.positions:
            image = sample_slice(
                volume, PLANES[block.plane], position=position, tilt=block.tilt, turn=block.turn, size=size
            )
            if float((image > 0.1).float().mean()) >= _BRAIN_SHARE:
                slices.append(image)
                labels.append(block.plane)
                groups.append(group)
    pixels = (torch.stack(slices)[:, None] * 255).round().to(torch.uint8)
    return Images(pixels, torch.tensor(labels), torch.tensor(groups))


@register_data("mni152")
class Mni152(Source):
    """Slices of the template, plane as class: sagittal, coronal, axial.

    A block is three slices, 2 mm apart, at one tilt and turn; blocks lie 6 mm or 12 degrees apart, those of one split
    too. Of five blocks three are for training, one for validation, one for test. A block is a group, so that a split
    of the training images makes no near-copies either.
    """

    seeded: ClassVar[bool] = False

    def entry(self) -> DataEntry:
        """See `Source.entry`."""
        return DataEntry(
            name="mni152",
            origin="MNI152 brain template, shipped with nilearn",
            sizes=tuple(range(28, 65)),
            default_size=32,
            channels=1,
            classes=len(PLANES),
            found=(template_path(),),
        )

    def load(self, *, size: int | None, seed: int) -> ImageData:
        """See `Source.load`. Takes a second or two; nothing is kept on disk."""
        chosen = chosen_size(self.entry(), size)
        volume = template_volume()
        return checked_data(
            name="mni152",
            where="mni152",
            train=_split(volume, "train", chosen),
            val=_split(volume, "val", chosen),
            test=_split(volume, "test", chosen),
            classes=tuple(plane.name for plane in PLANES),
            published=True,
        )

    def fetch(self, *, size: int | None) -> Path:
        """Return the packaged file; there is nothing to download."""
        chosen_size(self.entry(), size)
        return template_path()
