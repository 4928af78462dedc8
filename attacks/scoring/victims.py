"""The truth about a victim batch: one object from the draw to the score. No attack ever sees it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass

import torch
from torch import Tensor

from fedveil.attacks.scoring.gallery import Gallery
from fedveil.attacks.scoring.metrics import check_images
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.seeding import torch_stream


@dataclass(frozen=True, eq=False)
class VictimBatch:
    """Images that one client trains on at an audit, and that an attacker tries to rebuild from the update.

    Attributes:
        number: of the batch.
        client: whose images they are.
        victims: the images' own numbers, the same for every defence; B of them.
        images: the originals with their labels, as they are in the data set, B of them.
        gallery: positions of the originals in the gallery; None without a gallery.
        draws: what the client trained on, in the originals' order, (B, C, H, W) in [0, 1] for each time that the batch was
            seen; none until it was captured.
    """

    number: int
    client: int
    victims: tuple[int, ...]
    images: Images
    gallery: tuple[int, ...] | None = None
    draws: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        for name in ("victims", "gallery"):
            numbers: tuple[int, ...] | None = getattr(self, name)
            if numbers is not None and len(numbers) != len(self.images):
                raise FedveilError(f"{name}: expected {len(self.images)} numbers, one per image, got {len(numbers)}")
        for draw in self.draws:
            check_images("images that the client trained on", draw)
            if draw.shape != self.images.pixels.shape:
                raise FedveilError(
                    f"images that the client trained on: expected {tuple(self.images.pixels.shape)} as the originals, "
                    f"got {tuple(draw.shape)}"
                )

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
    def trained(self) -> Tensor | None:
        """(B, C, H, W) in [0, 1], the mean of `draws`; None until they were captured.

        That is what a perfect inversion of all updates together would average: its error is the least that inverting
        alone can reach, however often the batch was seen.
        """
        return torch.stack(self.draws).mean(0) if self.draws else None

    @property
    def gallery_index(self) -> Tensor | None:
        """(B,) int64, or None without a gallery."""
        return None if self.gallery is None else torch.tensor(self.gallery)


def draw_victims(
    shards: Sequence[Images],
    *,
    victims: int,
    batch_size: int,
    clients: int,
    gallery: int,
    seed: int,
    balanced: bool = True,
) -> tuple[tuple[VictimBatch, ...], Gallery]:
    """Draw distinct victims from the first ``clients`` shards, and the gallery among which each has to be found.

    Every batch is of one client. Batch by batch the client is chosen with which the classes stay most even, and among
    equals the one that has been hit least, so that every client is hit before one is hit twice; it drops out when
    it has no whole batch left. Within a batch the class that has had the fewest victims comes next.

    Args:
        shards: of all clients, in order.
        victims: how many images, a multiple of ``batch_size``.
        batch_size: images behind one update.
        clients: victims come from so many clients.
        gallery: images in the gallery, at least the victims, which come first; the rest are other private images.
        seed: of the trial; together with the shards it alone decides, so every defence meets the same victims.
        balanced: as equal numbers of each class as the shards allow; otherwise classes are not looked at.

    Raises:
        FedveilError: the shards hold too few images for distinct victims.
    """
    batches = victims // batch_size
    audited = shards[:clients]
    held = sum(len(shard) // batch_size for shard in audited)
    if held < batches:
        raise FedveilError(
            f"audit.victims: {victims} in batches of {batch_size}; the {clients} audited client(s) have images for"
            f" {held * batch_size}"
        )
    stock = [_shuffled_by_class(shard, seed, client, balanced) for client, shard in enumerate(audited)]
    classes = sorted({label for own in stock for label in own})
    # Where the classes do not divide the victims, chance decides which ones are hit once more.
    order = torch.randperm(len(classes), generator=torch_stream(seed, "victims", "classes")).tolist()
    had = {classes[at]: 0 for at in order}
    hits = [0] * len(audited)
    drawn: list[VictimBatch] = []
    taken = [torch.zeros(len(shard), dtype=torch.bool) for shard in shards]
    for number in range(batches):
        plans = [
            (*_next_classes(own, had, batch_size), client)
            for client, own in enumerate(stock)
            if sum(map(len, own.values())) >= batch_size
        ]
        _, picked, client = min(plans, key=lambda plan: (plan[0], hits[plan[2]], plan[2]))
        hits[client] += 1
        for label in picked:
            had[label] += 1
        indices = torch.tensor([stock[client][label].popleft() for label in picked])
        taken[client][indices] = True
        ids = tuple(range(number * batch_size, (number + 1) * batch_size))
        drawn.append(VictimBatch(number, client, ids, shards[client].take(indices), ids))
    rest = torch.cat([shard.pixels[~mine] for shard, mine in zip(shards, taken, strict=True)])
    others = torch.randperm(len(rest), generator=torch_stream(seed, "gallery"))[: max(0, gallery - victims)]
    return tuple(drawn), Gallery(torch.cat([*(batch.images.pixels for batch in drawn), rest[others]]))


def _shuffled_by_class(shard: Images, seed: int, client: int, balanced: bool) -> dict[int, deque[int]]:
    """Return the shard's indices by class, or all as one class, each in random order."""
    found: dict[int, deque[int]] = {}
    for index in torch.randperm(len(shard), generator=torch_stream(seed, "victims", client)).tolist():
        found.setdefault(int(shard.labels[index]) if balanced else 0, deque()).append(index)
    return found


def _next_classes(stock: Mapping[int, Sized], had: Mapping[int, int], size: int) -> tuple[int, list[int]]:
    """Return how uneven the classes become if ``size`` images come from ``stock``, rarest first, and those classes.

    The first number is what they add to the sum of squares of the victims per class.
    """
    left = {label: len(own) for label, own in stock.items()}
    counts = dict(had)
    picked: list[int] = []
    added = 0
    for _ in range(size):
        label = min((label for label in counts if left.get(label)), key=counts.__getitem__)
        added += 2 * counts[label] + 1
        counts[label] += 1
        left[label] -= 1
        picked.append(label)
    return added, picked
