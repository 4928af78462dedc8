"""How training images are dealt to clients: evenly, with Dirichlet label skew, or in shards of one label."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedveil.fl.errors import FedveilError, SettingError
from fedveil.fl.registry import Registry
from fedveil.fl.seeding import numpy_stream

Indices = NDArray[np.int64]
_DRAWS = 1000
"""Of proportions, before they are held for impossible."""


@dataclass(frozen=True)
class Partition(ABC):
    """A rule that deals labelled examples to clients."""

    def split(self, labels: Tensor, clients: int, seed: int) -> list[Tensor]:
        """Return one ascending int64 index tensor per client; disjoint, not empty, together all examples.

        Args:
            labels: (n,) int64.
            clients: how many, 1 to n.
            seed: of the stream "partition"; equal arguments give equal parts.

        Raises:
            FedveilError: there are fewer examples than clients, or the rule cannot be met with these labels.
        """
        if not 1 <= clients <= len(labels):
            raise FedveilError(f"partition: {clients} clients for {len(labels)} examples; allowed: 1 to {len(labels)}")
        parts = self._deal(labels.cpu().numpy(), clients, numpy_stream(seed, "partition"))
        return [torch.from_numpy(np.sort(part)) for part in parts]

    @abstractmethod
    def _deal(self, labels: Indices, clients: int, stream: np.random.Generator) -> list[Indices]:
        """Return the clients' indices in any order; 1 <= clients <= len(labels) holds."""


PARTITIONS: Registry[type[Partition]] = Registry("partition")


@PARTITIONS.register("iid")
@dataclass(frozen=True)
class Iid(Partition):
    """A shuffled deck cut into parts whose sizes differ by at most one."""

    def _deal(self, labels: Indices, clients: int, stream: np.random.Generator) -> list[Indices]:
        return np.array_split(stream.permutation(len(labels)), clients)


@PARTITIONS.register("dirichlet")
@dataclass(frozen=True)
class Dirichlet(Partition):
    """Label skew: each class is spread over clients in proportions from Dir(alpha, ..., alpha).

    The rule of Yurochkin et al. 2019 (arXiv 1905.12022). The proportions are drawn anew until every client
    has ``min_size`` examples.

    Attributes:
        alpha: above 0; small is skewed, large is nearly even.
        min_size: least number of examples per client, at least 1.
    """

    alpha: float = 0.5
    min_size: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.alpha < float("inf"):
            raise SettingError("partition dirichlet", "alpha", self.alpha, "it must be above 0 and finite")
        if self.min_size < 1:
            raise SettingError("partition dirichlet", "min_size", self.min_size, "it must be at least 1")

    def _deal(self, labels: Indices, clients: int, stream: np.random.Generator) -> list[Indices]:
        members = [stream.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
        if clients * self.min_size > len(labels):
            raise FedveilError(
                f"partition dirichlet: min_size is {self.min_size}; {clients} clients with {len(labels)} examples have"
                f" {len(labels) // clients} each at most"
            )
        for _ in range(_DRAWS):
            spread = [self._spread(m, clients, stream) for m in members]
            parts = [np.concatenate(own) for own in zip(*spread, strict=True)]
            if min(len(part) for part in parts) >= self.min_size:
                return parts
        raise FedveilError(
            f"partition dirichlet: {_DRAWS} draws with alpha {self.alpha} gave none in which each of "
            f"{clients} clients has {self.min_size} of {len(labels)} examples; "
            "raise alpha, or lower clients or min_size"
        )

    def _spread(self, members: Indices, clients: int, stream: np.random.Generator) -> list[Indices]:
        proportions = stream.dirichlet(np.full(clients, self.alpha))
        pieces = np.split(members, (np.cumsum(proportions)[:-1] * len(members)).astype(int))
        # Rounding down favours the last piece; who gets it is left to chance.
        return [pieces[i] for i in stream.permutation(clients)]


@PARTITIONS.register("shards")
@dataclass(frozen=True)
class Shards(Partition):
    """Few classes on each client: the pathological split of McMahan et al. 2017 (arXiv 1602.05629, sec. 3).

    There, the examples are sorted by label and cut into shards of equal size, and each client gets some
    shards at random. Here the cuts are moved to the borders between classes, so that no client has more than
    ``classes_per_client`` classes where classes differ in size; shards are as equal as that allows.

    Attributes:
        classes_per_client: shards on each client, at least 1; two of them may be of one class.
    """

    classes_per_client: int = 2

    def __post_init__(self) -> None:
        if self.classes_per_client < 1:
            raise SettingError(
                "partition shards", "classes_per_client", self.classes_per_client, "it must be at least 1"
            )

    def _deal(self, labels: Indices, clients: int, stream: np.random.Generator) -> list[Indices]:
        members = [stream.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
        wanted = clients * self.classes_per_client
        if not len(members) <= wanted <= len(labels):
            raise FedveilError(
                f"partition shards: {clients} clients with {self.classes_per_client} classes each make "
                f"{wanted} shards; allowed: {len(members)} (the classes) to {len(labels)} (the examples)"
            )
        counts = np.array([len(m) for m in members])
        cuts = np.ones_like(counts)
        for _ in range(wanted - len(members)):
            # Cut the class with the largest shards once more. With fewer shards than examples these hold more
            # than one example on average, so no shard becomes empty.
            cuts[np.argmax(counts / cuts)] += 1
        shards = [shard for m, cut in zip(members, cuts, strict=True) for shard in np.array_split(m, cut)]
        hands = stream.permutation(wanted).reshape(clients, self.classes_per_client)
        return [np.concatenate([shards[i] for i in hand]) for hand in hands]
