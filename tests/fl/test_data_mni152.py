from itertools import pairwise

import pytest
import torch

from fedveil.fl.data import ImageData, Images, load_data, split_public
from fedveil.fl.data.mni152 import PLANES, blocks, sample_slice, template_volume
from fedveil.fl.errors import FedveilError


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data("mni152")


@pytest.fixture(scope="module")
def volume() -> torch.Tensor:
    return template_volume()


def nearest(images: Images, others: Images) -> torch.Tensor:
    """The smallest per-pixel MSE from each image to any of the others."""
    first, second = (part.floats().flatten(1) for part in (images, others))
    return (torch.cdist(first, second) ** 2 / first.shape[1]).min(dim=1).values


def test_how_many_images_there_are(data: ImageData) -> None:
    found = {split: torch.bincount(getattr(data, split).labels).tolist() for split in ("train", "val", "test")}
    assert found == {"train": [78, 174, 158], "val": [20, 40, 40], "test": [20, 60, 30]}
    assert data.classes == ("sagittal", "coronal", "axial")
    assert data.train.shape == (1, 32, 32)
    assert data.published
    assert data.notes == ()


def test_no_image_has_a_near_copy_in_another_split(data: ImageData) -> None:
    # Neighbours 1 mm apart differ by 0.0005 and 2 mm apart by 0.0016, on average.
    assert nearest(data.test, data.train).min() > 0.003
    assert nearest(data.val, data.train).min() > 0.003
    assert nearest(data.val, data.test).min() > 0.003


def test_no_private_image_has_a_near_copy_among_the_public(data: ImageData) -> None:
    public, private = split_public(data.train, 0.2, seed=0)
    assert nearest(private, public).min() > 0.003
    assert 0.15 < len(public) / len(data.train) < 0.3


def test_a_group_is_one_block_of_one_plane_in_one_split(data: ImageData) -> None:
    seen: set[int] = set()
    for images in (data.train, data.val, data.test):
        assert images.groups is not None
        numbers = set(images.groups.tolist())
        assert not seen & numbers
        seen |= numbers
        for number in numbers:
            members = images.labels[images.groups == number]
            assert len(set(members.tolist())) == 1
            assert len(members) <= 20
    assert len(seen) == 34


def test_blocks_are_separated() -> None:
    sagittal = list(blocks(PLANES[0]))
    assert sagittal[:2] == [(2.0, 4.0, 6.0, 8.0), (14.0, 16.0, 18.0, 20.0)]
    for plane in PLANES:
        cut = list(blocks(plane))
        assert all(after[0] - before[-1] == 6.0 for before, after in pairwise(cut))


def test_mirror_twins_are_the_same_picture_so_one_hemisphere_is_cut(volume: torch.Tensor) -> None:
    assert torch.equal(volume, volume.flip(0))
    left, right = (
        sample_slice(volume, PLANES[0], position=position, tilt=tilt, size=32)
        for position, tilt in ((-20.0, -10.0), (20.0, 10.0))
    )
    torch.testing.assert_close(left, right, atol=1e-4, rtol=0)
    assert min(position for block in blocks(PLANES[0]) for position in block) > 0


def test_an_upright_slice_is_that_slice_of_the_volume(volume: torch.Tensor) -> None:
    # 64 px of 3 mm. A pixel is a mean over interpolated voxels, so it lies within their range.
    image = sample_slice(volume, PLANES[1], position=0.0, tilt=0.0, size=64)
    voxels = volume[:, 117, :]
    # Row r covers z from 77 + 96 - 3 (r + 1) to 77 + 96 - 3 r; column c covers x from 2 + 3 c to 5 + 3 c.
    row, column = 30, 22
    patch = voxels[2 + 3 * column : 6 + 3 * column, 170 - 3 * row : 174 - 3 * row]
    assert patch.min() > 0.3
    assert patch.min() <= image[row, column] <= patch.max()
    assert image[0].max() == 0


@pytest.mark.parametrize("size", [28, 64])
def test_sizes(size: int) -> None:
    images = load_data("mni152", size=size, limit=9).train
    assert images.shape == (1, size, size)
    assert len(images) == 9


@pytest.mark.parametrize("size", [27, 65])
def test_a_size_out_of_range(size: int) -> None:
    with pytest.raises(FedveilError, match=f"mni152: size {size} is not available; allowed: 28 to 64"):
        load_data("mni152", size=size)


def test_it_is_the_same_every_time(data: ImageData) -> None:
    again = load_data("mni152", seed=7)
    assert torch.equal(again.train.pixels, data.train.pixels)
    assert torch.equal(again.test.labels, data.test.labels)


def test_slices_hold_enough_brain(data: ImageData) -> None:
    for images in (data.train, data.val, data.test):
        assert ((images.floats() > 0.1).float().mean(dim=(1, 2, 3)) > 0.09).all()
        assert images.pixels.max() > 200
