"""Dual gradient pruning (Xue et al. 2024, arXiv 2401.16687): the largest and the smallest entries stay with the client."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fedveil.defense.base import (
    DEFENSES,
    Defense,
    DefenseContext,
    Gradients,
    PreparedDefense,
    Stateless,
    Surrogate,
    TrainedOn,
)
from fedveil.defense.checks import at_least, whole
from fedveil.fl.data.images import Images
from fedveil.fl.errors import SettingError
from fedveil.fl.hooks import Memory, Turn
from fedveil.fl.messages import ClientUpdate
from fedveil.fl.models import ModelSpec, build_model
from fedveil.fl.training import Weights, load_exchanged


def survivors(count: int, *, largest: float, smallest: float) -> tuple[int, int]:
    """Return which of ``count`` entries are sent, by rank of magnitude from the largest (0) on, as (first, end).

    The cut at the top is rounded up and that at the bottom down, for tensors of all sizes, so that a small bias loses the
    entry that gives its class away; one entry is left in any case, the only one of a scalar as it is. From 20 entries on
    that are multiples of 20 this is what the authors' published training code does with its shares; below 20 entries
    theirs drops nothing at the top.

    >>> survivors(1000, largest=0.05, smallest=0.75)
    (50, 250)
    >>> survivors(10, largest=0.05, smallest=0.75)
    (1, 3)
    """
    # 0.07 * 100 is a hair above 7 in floating point; that must not drop an eighth entry.
    first = min(math.ceil(largest * count - 1e-9), count - 1)
    return first, max(count - math.floor(smallest * count + 1e-9), first + 1)


def between(tensor: Tensor, ranks: Tensor, *, largest: float, smallest: float) -> Tensor:
    """Zero the entries of ``tensor`` where ``ranks``, of its shape, are largest or smallest in magnitude.

    Ties go to the lower index.
    """
    first, end = survivors(tensor.numel(), largest=largest, smallest=smallest)
    kept = ranks.flatten().abs().argsort(descending=True, stable=True)[first:end]
    sparse = torch.zeros_like(tensor).flatten()
    sparse[kept] = tensor.flatten()[kept]
    return sparse.view_as(tensor)


@DEFENSES.register("dgp")
@dataclass(frozen=True, kw_only=True)
class DualGradientPruning(Defense[Images | None]):
    """Send the entries of each tensor between its largest and its smallest ones, and remember the others.

    Error feedback: what was not sent is added, times ``feedback``, to the next update before that is pruned. The client
    keeps it in the size of a mean gradient (`ClientUpdate.gradient_scale`), so that it fits rounds of other learning rates
    and the single steps that an audit asks for; where all rounds have the same rate and steps that makes no difference.

    The paper's aligned variant (ADGP) has a trusted party tell all clients which entries to send; how it chooses them is not
    public. Here they are those between the largest and the smallest of the *public* images' gradient at the weights that
    the server sent: all clients find the same ones by themselves, a sum over clients is as sparse as each update, and which
    they are tells nothing of the clients' images.

    Attributes:
        largest: share of each tensor's entries that is dropped from the top, in [0, 1).
        smallest: likewise from the bottom; both together below 1.
        feedback: factor on what was not sent, at least 0 and at most 1; 0 forgets it.
        aligned: choose the entries by public images.
        public_images: of which at most so many are used for that, at least 1.
    """

    dial: ClassVar[str] = "smallest"

    largest: float = 0.05
    smallest: float = 0.75
    feedback: float = 1.0
    aligned: bool = False
    public_images: int = 256

    def __post_init__(self) -> None:
        at_least("dgp", largest=(self.largest, 0), smallest=(self.smallest, 0), feedback=(self.feedback, 0))
        whole("dgp", public_images=(self.public_images, 1))
        if self.largest + self.smallest >= 1:
            both = self.largest, self.smallest
            raise SettingError("dgp", "largest, smallest", both, "they have to be below 1 together")
        if self.feedback > 1:
            raise SettingError("dgp", "feedback", self.feedback, "it has to be at most 1")

    @property
    def hooks(self) -> frozenset[str]:
        """See `Defense.hooks`."""
        return frozenset({"update", "carry"})

    @property
    def trained_on(self) -> TrainedOn:
        """Nothing; where entries are aligned, the public images choose them."""
        return TrainedOn.PUBLIC if self.aligned else TrainedOn.NOTHING

    def pretrain(self, context: DefenseContext) -> Images | None:
        """Draw the public images that choose the entries."""
        if not self.aligned:
            return None
        drawn = torch.randperm(len(context.public), generator=context.stream("dgp"))
        return context.public.take(drawn[: self.public_images])

    def prepare(
        self, private: Images, context: DefenseContext, public: Images | None, *, client: int
    ) -> PreparedDefense:
        """See `Defense.prepare`."""
        return Stateless(self) if public is None else AlignedPruning(self, context.model, public)

    def update(self, update: ClientUpdate, stream: torch.Generator) -> ClientUpdate:
        """See `fedveil.fl.hooks.ClientHooks.update`."""
        return self.carry(update, Turn(), stream)[0]

    def carry(self, update: ClientUpdate, turn: Turn, stream: torch.Generator) -> tuple[ClientUpdate, Memory]:
        """See `fedveil.fl.hooks.ClientHooks.carry`."""
        return self.pruned(update, turn.memory, None)

    def pruned(
        self, update: ClientUpdate, memory: Memory, chosen_by: Gradients | None
    ) -> tuple[ClientUpdate, dict[str, Tensor]]:
        """Return what is sent, and what is not.

        Args:
            update: of the client.
            memory: what was not sent before, in the size of a mean gradient, by parameter name.
            chosen_by: whose largest and smallest entries are left out; None for those of the tensors themselves.
        """
        scale = update.gradient_scale
        sent, left = {}, {}
        for name, tensor in update.tensors.items():
            due = tensor + memory[name] * (self.feedback / scale) if name in memory else tensor
            ranks = due if chosen_by is None else chosen_by[name]
            # What is not finite ranks as largest, and would be kept back for good: the server has to see and refuse it.
            broken = not due.isfinite().all()
            sent[name] = due if broken else between(due, ranks, largest=self.largest, smallest=self.smallest)
            if self.feedback:
                left[name] = (due - sent[name]) * scale
        return replace(update, tensors=sent), left

    def surrogate(self) -> Surrogate:
        """The attacker matches what was sent, and ignores the zeros that were put in.

        It does not know what the client remembers, so that its own copy always acts as on a first turn.
        """
        return Surrogate(update=self.update, visible=_sent)


class AlignedPruning(PreparedDefense):
    """Dual gradient pruning of the entries that public images choose.

    Args:
        settings: how much.
        model: whose gradient.
        public: the images.
    """

    def __init__(self, settings: DualGradientPruning, model: ModelSpec, public: Images) -> None:
        self.settings = settings
        self.model = model
        self.public = public

    def update(self, update: ClientUpdate, stream: torch.Generator) -> ClientUpdate:
        """Prune by the update's own entries: without the server's weights there is no public gradient."""
        return self.settings.update(update, stream)

    def carry(self, update: ClientUpdate, turn: Turn, stream: torch.Generator) -> tuple[ClientUpdate, Memory]:
        """See `fedveil.fl.hooks.ClientHooks.carry`."""
        return self.settings.pruned(update, turn.memory, self._gradient(turn.weights))

    def surrogate(self) -> Surrogate:
        """As without alignment; the attacker's own copy chooses by its own entries, about as many."""
        return self.settings.surrogate()

    def _gradient(self, weights: Weights) -> dict[str, Tensor]:
        network = build_model(self.model).eval()
        load_exchanged(network, weights)
        x, y = self.public.batch(torch.arange(len(self.public)))
        parameters = {name: own for name, own in network.named_parameters() if own.requires_grad}
        gradients = torch.autograd.grad(F.cross_entropy(network(x), y), list(parameters.values()))
        return dict(zip(parameters, gradients, strict=True))


def _sent(observed: Gradients) -> dict[str, Tensor]:
    return {name: (tensor != 0).to(tensor.dtype) for name, tensor in observed.items()}
