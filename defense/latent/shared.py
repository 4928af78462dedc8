"""A client whose groups of k images train on one image each: the images that it holds, and what an attacker rehearses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from fedveil.defense.base import PreparedDefense, Rehearsal, Surrogate
from fedveil.defense.latent.grouping import Grouping, digests
from fedveil.defense.latent.pool import Read
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError

Share = Callable[[Images, torch.Generator], "Shared"]
"""Groups images and learns an image for each group: what a client does with its own, and an attacker with its own."""


@dataclass(frozen=True, eq=False)
class Shared:
    """Images that share.

    Attributes:
        grouping: of the n images.
        images: (G, C, H, W) uint8, the one of each group.
    """

    grouping: Grouping
    images: Tensor


@dataclass(frozen=True, eq=False)
class Rehearser(PreparedDefense):
    """What an attacker holds of a sharing defence: how images share, and none that do.

    Attributes:
        share: see `PreparedShared`.
        similar: see `PreparedShared`.
    """

    share: Share = field(repr=False)
    similar: Read = field(repr=False)

    def surrogate(self) -> Surrogate:
        """The algorithm and the networks."""
        return Surrogate(rehearse=self._rehearse, similar=self.similar)

    def _rehearse(self, images: Images, stream: torch.Generator) -> Rehearsal:
        firsts = _firsts(images)
        found = self.share(images.take(firsts), stream)
        kept, _ = _inside(found.grouping)
        trained = Images(found.images[found.grouping.of[kept]], images.labels[firsts[kept]])
        return Rehearsal(firsts[kept], trained)


@dataclass(frozen=True, eq=False)
class PreparedShared(PreparedDefense):
    """At work with one client. It knows each image that it was prepared with by its pixels and label.

    Attributes:
        name: of the defence.
        private: the n images that are in groups, all distinct.
        shared: what became of them.
        waiting: images of which there are too few of their class so far to make a group; nothing is trained on them.
        share: how more groups are formed, and how an attacker rehearses.
        similar: reads the features by which images are alike.
        numbers: more about the preparation that belongs beside the results.
    """

    name: str
    private: Images = field(repr=False)
    shared: Shared = field(repr=False)
    waiting: Images = field(repr=False)
    share: Share = field(repr=False)
    similar: Read = field(repr=False)
    numbers: Mapping[str, float] = field(default_factory=dict, repr=False)

    def images(self, shard: Images) -> Images:
        """Return for each image of ``shard`` that is in a group the image of its group, in their order.

        Images that are equal in pixels and label are one image, which shares one group's.

        Raises:
            FedveilError: an image is not among those that the defence was prepared with: training on it would show it.
        """
        rows = [self._rows.get(digest, -2) for digest in _digests(shard)]
        if -2 in rows:
            raise FedveilError(
                f"{self.name}: image {rows.index(-2)} of {len(rows)} is not among the"
                f" {len(self.private) + len(self.waiting)} that the client prepared with, and training on it would show"
                " it; allowed: those, and what was added by `joined_by`, where it waits until a group is full"
            )
        of = torch.tensor([int(self.shared.grouping.of[row]) if row >= 0 else -1 for row in rows], dtype=torch.int64)
        kept = (of >= 0).nonzero()[:, 0]
        return Images(self.shared.images[of[kept]], shard.labels[kept])

    def joined_by(self, late: Images, stream: torch.Generator) -> PreparedShared:
        """Return the same defence with images that came later: as soon as a class has k of them, they make groups.

        Groups that there are stay as they are, and so do their images. An image that is known already is in no second
        group: two groups that hold it would tell what they have in common.

        Args:
            late: images of the same client.
            stream: draws what is drawn for the new groups.
        """
        fresh = torch.tensor([digest not in self._rows for digest in _digests(late)], dtype=torch.bool)
        more = distinct(_together(self.waiting, late.take(fresh.nonzero()[:, 0])))
        found = self.share(more, stream)
        joined, left = _inside(found.grouping)
        grouping = self.shared.grouping.followed_by(Grouping(found.grouping.of[joined], found.grouping.k))
        return replace(
            self,
            private=_together(self.private, more.take(joined)),
            shared=Shared(grouping, torch.cat([self.shared.images, found.images])),
            waiting=more.take(left),
        )

    def surrogate(self) -> Surrogate:
        """What is known of it: the algorithm and the networks. The groups and their images are not given away."""
        return Rehearser(self.share, self.similar).surrogate()

    def indistinct_error(self, images: Images, shard: Images) -> Tensor:
        """The scatter of each image's group about its mean: see `PreparedDefense.indistinct_error`.

        Raises:
            FedveilError: an image is in no group.
        """
        rows = torch.tensor([self._rows.get(digest, -1) for digest in _digests(images)], dtype=torch.int64)
        if bool((rows < 0).any()):
            raise FedveilError(f"{self.name}: image {int((rows < 0).nonzero()[0])} of {len(rows)} is in no group")
        held = torch.tensor([self._rows.get(digest, -1) for digest in _digests(shard)], dtype=torch.int64)
        held = held[held >= 0]
        of, pixels = self.shared.grouping.of, self.private.floats().double().flatten(1)[held]
        repeated = Grouping(of[held], self.shared.grouping.k)
        errors = (pixels - repeated.means(pixels)[repeated.of]).square().mean(1, keepdim=True)
        return repeated.means(errors)[of[rows], 0]

    def diagnostics(self) -> dict[str, float]:
        """The size of the smallest group, which share of the client's images is in none, and `numbers`."""
        left_out = len(self.waiting) / (len(self.private) + len(self.waiting))
        return {"k": float(self.shared.grouping.sizes.min()), "left_out": left_out, **self.numbers}

    @cached_property
    def _rows(self) -> dict[bytes, int]:
        waiting = dict.fromkeys(_digests(self.waiting), -1)
        return waiting | {digest: row for row, digest in enumerate(_digests(self.private))}


def prepare_shared(
    name: str,
    private: Images,
    shared: Shared,
    share: Share,
    *,
    similar: Read,
    client: int,
    numbers: Mapping[str, float] | None = None,
) -> PreparedShared:
    """Return a sharing defence at work with one client.

    Args:
        name: of the defence.
        private: the client's images, `distinct`.
        shared: what became of them.
        share: how that was made.
        similar: reads the features by which images are alike.
        client: its number, for the error.
        numbers: see `PreparedShared`.

    Raises:
        FedveilError: no class has k images.
    """
    if len(shared.grouping) == 0:
        raise FedveilError(
            f"{name}: client {client} has no class with k = {shared.grouping.k} different images, so it would train on"
            " nothing; allowed: a smaller k, or fewer clients"
        )
    inside, outside = _inside(shared.grouping)
    kept = Shared(Grouping(shared.grouping.of[inside], shared.grouping.k), shared.images)
    return PreparedShared(name, private.take(inside), kept, private.take(outside), share, similar, numbers or {})


def distinct(images: Images) -> Images:
    """Return each image once: a group of k has k different ones, and repeats of one weigh no more than it does."""
    return images.take(_firsts(images))


def _firsts(images: Images) -> Tensor:
    """(d,) where each image, by pixels and label, is for the first time."""
    seen: dict[bytes, int] = {}
    for at, digest in enumerate(_digests(images)):
        seen.setdefault(digest, at)
    return torch.tensor(list(seen.values()), dtype=torch.int64)


def _inside(grouping: Grouping) -> tuple[Tensor, Tensor]:
    """The positions of the images that are in a group, and of the others."""
    inside = grouping.of >= 0
    return inside.nonzero()[:, 0], (~inside).nonzero()[:, 0]


def _together(one: Images, other: Images) -> Images:
    return Images(torch.cat([one.pixels, other.pixels]), torch.cat([one.labels, other.labels]))


def _digests(images: Images) -> list[bytes]:
    labels = images.labels.tolist()
    return [digest + str(label).encode() for digest, label in zip(digests(images.pixels), labels, strict=True)]
