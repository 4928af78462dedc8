from collections import Counter

import pytest
import torch

from fedveil.fl.data import ImageData, Images, load_data, split_train
from fedveil.fl.data.mni152 import PLANES, blocks, sample_slice, template_volume
from fedveil.fl.errors import FedveilError
from fedveil.fl.executor import SerialExecutor
from fedveil.fl.hooks import NoHooks
from fedveil.fl.models import ModelSpec
from fedveil.fl.partition import Iid
from fedveil.fl.rounds import Client, Federation, Simulation
from fedveil.fl.strategies import FedAvg
from fedveil.fl.training import LocalTraining


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
    assert found == {"train": [126, 306, 257], "val": [42, 100, 83], "test": [42, 101, 82]}
    assert data.classes == ("sagittal", "coronal", "axial")
    assert data.train.shape == (1, 32, 32)
    assert data.published
    assert data.notes == ()


def test_no_image_has_a_near_copy_in_another_split(data: ImageData) -> None:
    # Neighbours 1 mm apart differ by 0.0005 and 2 mm apart by 0.0016, on average.
    assert nearest(data.test, data.train).min() > 0.003
    assert nearest(data.val, data.train).min() > 0.003
    assert nearest(data.val, data.test).min() > 0.003


def test_no_private_image_has_a_near_copy_among_those_of_others(data: ImageData) -> None:
    found = split_train(data.train, public_fraction=0.05, auxiliary_fraction=0.2, seed=0)
    for first, second in (
        (found.private, found.public),
        (found.private, found.auxiliary),
        (found.auxiliary, found.public),
    ):
        assert nearest(first, second).min() > 0.003
    assert 0.04 < len(found.public) / len(data.train) < 0.07
    assert 0.18 < len(found.auxiliary) / len(data.train) < 0.22
    assert torch.bincount(found.public.labels).min() > 3


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
            assert len(members) <= 3


def test_blocks_worked_by_hand() -> None:
    sagittal = [block for block in blocks() if block.plane == 0]
    assert [block.positions for block in sagittal[::10]] == [(x, x + 2, x + 4) for x in range(2, 63, 10)]
    straight = {(block.positions[0], block.tilt): block.split for block in sagittal if not block.turn}
    assert [straight[2, tilt] for tilt in (-24, -12, 0, 12, 24)] == ["train", "val", "train", "test", "train"]
    assert [straight[12, tilt] for tilt in (-24, -12, 0, 12, 24)] == ["train", "test", "train", "train", "val"]


def test_validation_and_test_see_each_position_and_each_tilt_equally_often() -> None:
    swapped = {"val": "test", "test": "val", "train": "train"}
    found = {(block.plane, block.positions, block.tilt, block.turn): block.split for block in blocks()}
    for (plane, positions, tilt, turn), split in found.items():
        assert found[plane, positions, tilt, 15.0 - turn] == swapped[split]
    for plane in range(3):
        places = Counter((key[1], split) for key, split in found.items() if key[0] == plane)
        assert {count for (_, split), count in places.items() if split != "train"} == {2}
        for tilt in (-24, -12, 0, 12, 24):
            tilted = Counter(split for key, split in found.items() if key[0] == plane and key[2] == tilt)
            assert tilted["val"] == tilted["test"] > 0


@pytest.mark.parametrize("seed", range(3))
def test_validation_and_test_accuracy_agree(data: ImageData, seed: int) -> None:
    executor = SerialExecutor()
    parts = [data.train.take(part) for part in Iid().split(data.train.labels, 4, seed)]
    federation = Federation(
        model=ModelSpec("convnet", data.train.shape, classes=3, width=16),
        clients=tuple(
            Client(k, len(part), executor.broadcast(part), executor.broadcast(NoHooks()))
            for k, part in enumerate(parts)
        ),
        strategy=FedAvg(),
        training=LocalTraining(FedAvg.local_kind, epochs=1, batch_size=16, learning_rate=0.1),
        cohort=4,
        client_chunks=1,
        seed=seed,
    )
    simulation = Simulation(federation, executor)
    for _ in range(6):
        simulation.round()
    val, test = (simulation.evaluate_clean(executor.broadcast(part)).accuracy for part in (data.val, data.test))
    assert test > 0.65
    assert abs(val - test) < 0.03


def test_mirror_twins_are_the_same_picture_so_one_hemisphere_is_cut(volume: torch.Tensor) -> None:
    assert torch.equal(volume, volume.flip(0))
    left, right = (
        sample_slice(volume, PLANES[0], position=sign * 20.0, tilt=sign * 10.0, turn=sign * 15.0, size=32)
        for sign in (-1, 1)
    )
    torch.testing.assert_close(left, right, atol=1e-4, rtol=0)
    assert min(position for block in blocks() if block.plane == 0 for position in block.positions) > 0


def test_an_upright_slice_is_that_slice_of_the_volume(volume: torch.Tensor) -> None:
    # 64 px of 3 mm. A pixel is a mean over interpolated voxels, so it lies within their range.
    image = sample_slice(volume, PLANES[1], position=0.0, tilt=0.0, turn=0.0, size=64)
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
    with pytest.raises(FedveilError, match=f"mni152: size is {size}; allowed: 28 to 64"):
        load_data("mni152", size=size)


def test_it_is_the_same_every_time(data: ImageData) -> None:
    again = load_data("mni152", seed=7)
    assert torch.equal(again.train.pixels, data.train.pixels)
    assert torch.equal(again.test.labels, data.test.labels)


def test_slices_hold_enough_brain(data: ImageData) -> None:
    for images in (data.train, data.val, data.test):
        assert ((images.floats() > 0.1).float().mean(dim=(1, 2, 3)) > 0.09).all()
        assert images.pixels.max() > 200
