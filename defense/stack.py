"""Several defences in a row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedveil.defense.base import Defense, DefenseContext, Gradients, PreparedDefense, Surrogate, TrainedOn
from fedveil.fl.data.images import Images
from fedveil.fl.messages import ClientUpdate


@dataclass(frozen=True, kw_only=True)
class Stack(Defense[tuple[Any, ...]]):
    """Several defences, applied to data, loss, update and output in their order.

    Attributes:
        parts: the defences.
    """

    name: ClassVar[str] = "stack"
    parts: tuple[Defense[Any], ...] = field(default=())

    @property
    def trained_on(self) -> TrainedOn:
        """The most private of the parts' sources."""
        order = list(TrainedOn)
        return max((part.trained_on for part in self.parts), key=order.index, default=TrainedOn.NOTHING)

    def pretrain(self, context: DefenseContext) -> tuple[Any, ...]:
        """Pretrain each part."""
        return tuple(part.pretrain(context) for part in self.parts)

    def prepare(
        self, private: Images, context: DefenseContext, public: tuple[Any, ...], *, client: int
    ) -> PreparedDefense:
        """Prepare each part."""
        pairs = zip(self.parts, public, strict=True)
        return PreparedStack(tuple(part.prepare(private, context, own, client=client) for part, own in pairs))


class PreparedStack(PreparedDefense):
    """The prepared parts of a `Stack`.

    Args:
        parts: in their order.
    """

    def __init__(self, parts: tuple[PreparedDefense, ...]) -> None:
        self.parts = parts

    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        """Pass the images through each part."""
        for part in self.parts:
            x = part.data(x, y, stream)
        return x

    def loss(self, loss: Tensor, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        """Pass the loss through each part."""
        for part in self.parts:
            loss = part.loss(loss, model, x, y, logits)
        return loss

    def update(self, update: ClientUpdate, stream: torch.Generator) -> ClientUpdate:
        """Pass the update through each part."""
        for part in self.parts:
            update = part.update(update, stream)
        return update

    def output(self, logits: Tensor) -> Tensor:
        """Pass the logits through each part."""
        for part in self.parts:
            logits = part.output(logits)
        return logits

    def surrogate(self) -> Surrogate:
        """Compose the parts' surrogates."""
        surrogates = [part.surrogate() for part in self.parts]
        data = [s.data for s in surrogates if s.data is not None]
        visible = [s.visible for s in surrogates if s.visible is not None]
        updates = [s.update for s in surrogates if s.update is not None]

        def through(x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
            for step in data:
                x = step(x, y, stream)
            return x

        def sent(update: ClientUpdate, stream: torch.Generator) -> ClientUpdate:
            for step in updates:
                update = step(update, stream)
            return update

        def seen(observed: Gradients) -> dict[str, Tensor]:
            masks = {name: torch.ones_like(tensor) for name, tensor in observed.items()}
            for step in visible:
                masks = {name: masks[name] * mask for name, mask in step(observed).items()}
            return masks

        return Surrogate(
            data=through if data else None,
            update=sent if updates else None,
            visible=seen if visible else None,
            complete=all(s.complete for s in surrogates),
        )

    def diagnostics(self) -> dict[str, float]:
        """All parts' numbers; the largest where two parts share a name."""
        merged: dict[str, float] = {}
        for part in self.parts:
            for key, value in part.diagnostics().items():
                merged[key] = max(value, merged.get(key, value))
        return merged
