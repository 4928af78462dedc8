"""Who holds which images: clients, everybody, the attacker; and a data set whose own splits are drawn anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b

import torch
from torch import Tensor

from fedveil.fl.data.images import ImageData, Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.seeding import torch_stream


@dataclass(frozen=True)
class TrainSplit:
    """The training images by who holds them. No picture is in two parts, and every class is in each.

    Attributes:
        public: of server and clients, who may train on them.
        auxiliary: of the attacker and the judge of its reconstructions alone.
        private: to be partitioned among clients.
    """

    public: Images
    auxiliary: Images
    private: Images


def split_train(train: Images, *, public_fraction: float, auxiliary_fraction: float, seed: int) -> TrainSplit:
    """Cut public and auxiliary images off the training split.

    Copies of a picture and images of one group stay together: whole groups are moved, in random order, as near to the
    fractions as they allow, and at least one of each class into each part. A picture that is in several groups stays in
    the first only. How many auxiliary images are asked for does not change which ones are public.

    Args:
        train: the training split.
        public_fraction: of each class of ``train``, between 0 and 1, both excluded; 0.05 are 5 of 100 images.
        auxiliary_fraction: likewise, of the same 100.
        seed: decides which images.

    Returns:
        The parts, each in the order of ``train``; together all images but copies in later groups.

    Raises:
        FedveilError: a fraction is out of range, or some class has too few groups of images for all three parts.
    """
    fractions = {"data.public_fraction": public_fraction, "data.auxiliary_fraction": auxiliary_fraction}
    for key, fraction in fractions.items():
        if not 0.0 < fraction < 1.0:
            raise FedveilError(f"{key} is {fraction}; allowed: above 0 and below 1")
    if public_fraction + auxiliary_fraction >= 1.0:
        raise FedveilError(
            f"data.public_fraction {public_fraction} and data.auxiliary_fraction {auxiliary_fraction} leave clients"
            " nothing; allowed: together below 1"
        )
    return TrainSplit(*_dealt(train, fractions, seed))


def halved(images: Images, key: str, seed: int) -> tuple[Images, Images]:
    """Cut images in two, for two who must not have seen the same ones: no picture and no group is in both halves.

    Args:
        images: of each class at least two groups or distinct pictures.
        key: what to call the first half, in an error.
        seed: decides which images.

    Raises:
        FedveilError: some class has too few.
    """
    half, rest = _dealt(images, {key: 0.5}, seed)
    return half, rest


def pooled(data: ImageData, seed: int) -> ImageData:
    """Put all images of a data set together and draw its splits anew, for a set whose own test split is shifted.

    Each class keeps the proportions that train, val and test had, as near as whole groups allow. Of copies of a picture
    one is kept. An empty val stays empty.

    Args:
        data: splits as they are. An equal group number in two splits means one group.
        seed: decides the new splits.

    Raises:
        FedveilError: some class has too few images for all splits, or only some splits have groups.
    """
    splits = [images for images in (data.train, data.val, data.test) if len(images)]
    groups = [images.groups for images in splits if images.groups is not None]
    if len(groups) not in (0, len(splits)):
        raise FedveilError(f"data.pool: some splits of {data.name} have groups and some have not; allowed: all or none")
    whole = Images(
        torch.cat([images.pixels for images in splits]),
        torch.cat([images.labels for images in splits]),
        torch.cat(groups) if groups else None,
    )
    first = _first_copies(whole)
    distinct = whole.take((first == torch.arange(len(whole))).nonzero()[:, 0])
    parts = {"data.pool (test)": len(data.test) / len(whole), "data.pool (val)": len(data.val) / len(whole)}
    test, *val, train = _dealt(distinct, {key: fraction for key, fraction in parts.items() if fraction}, seed)
    note = (
        f"{data.name}: the splits are drawn anew (data.pool, seed {seed}), so accuracies do not compare with published"
        f" ones; {len(whole) - len(distinct)} copies of pictures were left out"
    )
    return replace(data, train=train, val=val[0] if val else data.val, test=test, notes=(*data.notes, note))


def _dealt(images: Images, fractions: Mapping[str, float], seed: int) -> list[Images]:
    """Cut a part for each key off ``images``; return the parts and then the rest."""
    first = _first_copies(images)
    units = first if images.groups is None else images.groups
    kept = units[first] == units
    contents: dict[int, Counter[int]] = {}
    for unit, label in zip(units[kept].tolist(), images.labels[kept].tolist(), strict=True):
        contents.setdefault(unit, Counter())[label] += 1
    classes = Counter(dict.fromkeys(sorted(set(images.labels.tolist())), 0))
    for content in contents.values():
        classes.update(content)
    part_of = torch.full((len(images),), -1)
    for number, (key, fraction) in enumerate(fractions.items()):
        chosen = _chosen_units(contents, classes, key, fraction, seed, others=len(fractions) - number)
        part_of[torch.isin(units, torch.tensor(sorted(chosen)))] = number
        contents = {unit: content for unit, content in contents.items() if unit not in chosen}
    parts = [*range(len(fractions)), -1]
    return [images.take(((part_of == part) & kept).nonzero()[:, 0]) for part in parts]


def _chosen_units(
    contents: Mapping[int, Counter[int]], classes: Counter[int], key: str, fraction: float, seed: int, *, others: int
) -> set[int]:
    """Choose units greedily, in random order, while that nears the wanted numbers; then one of each class still missing.

    Args:
        contents: of each unit that is left, how many images of which class.
        classes: how many images there were of each class.
        key: what to call the part.
        fraction: of ``classes``.
        seed: of the order.
        others: how many other parts must still get a unit of each class.
    """
    left = Counter(label for content in contents.values() for label in content)
    wanted = {label: fraction * count for label, count in classes.items()}
    have: Counter[int] = Counter()
    chosen: set[int] = set()

    def fits(unit: int) -> bool:
        return unit not in chosen and all(left[label] > others for label in contents[unit])

    def nears(unit: int) -> bool:
        off = {label: have[label] - wanted[label] for label in contents[unit]}
        return sum(abs(off[label] + count) - abs(off[label]) for label, count in contents[unit].items()) < 0

    def take(unit: int) -> None:
        chosen.add(unit)
        have.update(contents[unit])
        left.subtract(contents[unit].keys())

    numbers = torch.tensor(sorted(contents))
    order = numbers[torch.randperm(len(numbers), generator=torch_stream(seed, "data", key))].tolist()
    for unit in order:
        if nears(unit) and fits(unit):
            take(unit)
    # Where the groups are larger than what is wanted of a class, the class is still missing.
    for label in classes:
        fitting = [unit for unit in order if label in contents[unit] and fits(unit)] if not have[label] else []
        if fitting:
            take(min(fitting, key=lambda unit: contents[unit].total()))
        elif not have[label]:
            raise FedveilError(
                f"{key}: class {label} has {left[label]} groups (or distinct pictures) among {classes[label]} images,"
                f" too few to put one into this part and leave one to {others} more; allowed: at least {others + 1}"
            )
    return chosen


def _first_copies(images: Images) -> Tensor:
    """Return for each image the index of the first one with the same pixels."""
    rows = images.pixels.flatten(1).contiguous().numpy()
    seen: dict[bytes, int] = {}
    return torch.tensor(
        [seen.setdefault(blake2b(row, digest_size=16).digest(), i) for i, row in enumerate(rows)], dtype=torch.int64
    )
