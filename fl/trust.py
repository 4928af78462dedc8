"""Which updates a server takes in: those that cannot be trusted are turned away, and too few of the others end the run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedveil.fl.errors import FedveilError, SettingError
from fedveil.fl.messages import ClientUpdate, UpdateKind

NOT_FINITE = "is not finite"
OVERFLOWS = "sums of such updates overflow"
SHOWN = 3
"""Rejections that a sentence names."""
LARGEST = 1e18
"""Norm above which no update is taken, whatever the settings: sums and squares of float32 numbers overflow soon after."""


@dataclass(frozen=True)
class Rejection:
    """An update that was turned away; it changes nothing, neither weights nor what is reported of the round.

    Attributes:
        client: its number.
        reason: the rest of a sentence that begins with what is wrong.
    """

    client: int
    reason: str


@dataclass(frozen=True)
class Trust:
    """What a server asks of updates.

    >>> Trust(quorum=0.5).needed(5)
    3

    Attributes:
        quorum: share of a round's clients, above 0 and at most 1, whose updates have to be accepted; rounded up to whole
            clients, at least one.
        max_norm: the longest update that is accepted, as the Euclidean norm of all that is sent; None for any finite one.

    Raises:
        SettingError: a value is out of its range.
    """

    quorum: float = 0.5
    max_norm: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.quorum <= 1:
            raise SettingError("trust", "quorum", self.quorum, "it has to be above 0 and at most 1")
        if self.max_norm is not None and not 0 < self.max_norm < math.inf:
            raise SettingError("trust", "max_norm", self.max_norm, "it has to be above 0 and finite")

    def needed(self, clients: int) -> int:
        """Return how many updates of a round's ``clients`` have to be accepted."""
        # 0.07 * 100 is a hair above 7 in floating point; that must not ask for an eighth client.
        return max(1, math.ceil(self.quorum * clients - 1e-9))

    def check(self, round_number: int, clients: int, rejections: Sequence[Rejection]) -> None:
        """Let a round go on without the updates that were rejected, if enough are left.

        Raises:
            FedveilError: fewer than `needed` are left.
        """
        accepted = clients - len(rejections)
        if accepted >= self.needed(clients):
            return
        diverged = all(rejection.reason.endswith((NOT_FINITE, OVERFLOWS)) for rejection in rejections)
        raise FedveilError(
            f"round {round_number}: {accepted} of {clients} clients' updates can be trusted, and fl.quorum {self.quorum:g}"
            f" asks for {self.needed(clients)}; rejected: {listed(rejections)}"
            + ("; if it is the training that diverges, lower fl.learning_rate" if diverged else "")
        )


@dataclass(frozen=True)
class Due:
    """What an update of a round has to look like, whoever sends it.

    Attributes:
        kind: a gradient or a weight change.
        tensors: the parameters that are trained, by name.
        buffers: the buffers that are exchanged, by name.
        max_norm: see `Trust`.
    """

    kind: UpdateKind
    tensors: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    max_norm: float | None

    @classmethod
    def of(cls, model: nn.Module, weights: Mapping[str, Tensor], kind: UpdateKind, trust: Trust) -> Due:
        """Return what clients owe that train ``model`` from ``weights``, see `fedveil.fl.training.local_update`."""
        return cls(
            kind,
            {name: weights[name] for name, parameter in model.named_parameters() if parameter.requires_grad},
            {name: weights[name] for name, _ in model.named_buffers() if name in weights},
            trust.max_norm,
        )

    def fault(self, update: object, *, shard: int) -> str | None:
        """Return why an update cannot be trusted, None where it can. It depends on that update alone.

        Args:
            update: what the client sent.
            shard: images that the client holds, the most that it may count for.
        """
        if not isinstance(update, ClientUpdate):
            return f"a {type(update).__name__} was sent, not a ClientUpdate"
        if update.kind is not self.kind:
            return f"its kind is {update.kind!s:.40}, not {self.kind}"
        if not isinstance(update.examples, int) or not 1 <= update.examples <= shard:
            return f"it claims {update.examples!r:.40} examples of a shard of {shard}"
        norm = 0.0
        for sent, due in ((update.tensors, self.tensors), (update.buffers, self.buffers)):
            if not isinstance(sent, Mapping):
                return f"its tensors are a {type(sent).__name__}, not a mapping by name"
            if sent.keys() != due.keys():
                return _names(sent.keys() - due.keys(), due.keys() - sent.keys())
            for name, like in due.items():
                fault = _form(sent[name], like)
                if fault is not None:
                    return f"{name} {fault}"
                # In float64 the squares of float32 numbers cannot overflow: the norm is finite if the numbers are.
                part = float(torch.linalg.vector_norm(sent[name], dtype=torch.float64))
                if not math.isfinite(part):
                    return f"{name} {NOT_FINITE}"
                norm = math.hypot(norm, part)
        if self.max_norm is not None and norm > self.max_norm:
            return f"its norm is {norm:.4g}, above fl.max_update_norm {self.max_norm:g}"
        if norm > LARGEST:
            return f"its norm is {norm:.4g}, above {LARGEST:g}: {OVERFLOWS}"
        return None


def listed(rejections: Sequence[Rejection]) -> str:
    """Return the first few rejections as one line.

    >>> listed([Rejection(4, "head.bias is not finite")])
    'client 4 (head.bias is not finite)'
    """
    named = ", ".join(f"client {rejection.client} ({rejection.reason})" for rejection in rejections[:SHOWN])
    return named + (f" and {len(rejections) - SHOWN} more" if len(rejections) > SHOWN else "")


def _names(odd: set[str], missing: set[str]) -> str:
    first = min(odd or missing, key=repr)
    return f"it holds {first!r:.60}, which the model lacks" if odd else f"{first} is missing"


def _form(tensor: object, like: Tensor) -> str | None:
    if not isinstance(tensor, Tensor):
        return f"is a {type(tensor).__name__}, not a tensor"
    if tensor.dtype is not like.dtype:
        return f"is {tensor.dtype}, not {like.dtype}"
    if tensor.shape != like.shape:
        return f"has the shape {tuple(tensor.shape)}, not {tuple(like.shape)}"
    if tensor.layout is not torch.strided or tensor.device != like.device:
        return f"is {tensor.layout} on {tensor.device}, not {torch.strided} on {like.device}"
    return None
