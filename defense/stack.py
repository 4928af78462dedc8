"""Several defences in a row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedveil.defense.base import (
    Defense,
    DefenseContext,
    Gradients,
    PreparedDefense,
    Rehearsal,
    Stateless,
    Surrogate,
    TrainedOn,
)
from fedveil.defense.guard import Guard
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.hooks import HOOKS, Memory, Turn
from fedveil.fl.messages import FLOAT_BITS, ClientUpdate
from fedveil.fl.models import ModelSpec
from fedveil.fl.rounds import Exposure


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

    @property
    def summed(self) -> int:
        """The most of the parts'."""
        return max((part.summed for part in self.parts), default=1)

    @property
    def mixes(self) -> bool:
        """Whether a part does."""
        return any(part.mixes for part in self.parts)

    @property
    def hooks(self) -> frozenset[str] | None:
        """All parts', where those of each are known."""
        known = [part.hooks for part in self.parts]
        return frozenset().union(*(own for own in known if own is not None)) if None not in known else None

    def conflicts(self) -> list[str]:
        """Return why the parts do not go together, as far as that is known before they are prepared (`Defense.hooks`)."""
        return list(_conflicts(self.parts, [part.hooks or frozenset() for part in self.parts]))

    def classifier(self, spec: ModelSpec) -> ModelSpec:
        """Let each part change the model."""
        for part in self.parts:
            spec = part.classifier(spec)
        return spec

    def prepares_in(self, sizes: Sequence[int]) -> int | None:
        """See `Defense.prepares_in`."""
        counted = [part.prepares_in(sizes) for part in self.parts]
        known = [steps for steps in counted if steps is not None]
        return sum(known) if len(known) == len(counted) else None

    def pretrain(self, context: DefenseContext) -> tuple[Any, ...]:
        """Pretrain each part."""
        return tuple(part.pretrain(context) for part in self.parts)

    def prepare(
        self, private: Images, context: DefenseContext, public: tuple[Any, ...], *, client: int
    ) -> PreparedDefense:
        """Prepare each part.

        Raises:
            FedveilError: several parts make one image of many, and the second would meet images that it was not prepared
                with; one takes gradients apart, and beside it the loss is changed or images depend on each other; or one
                mixes in images of the client's that another one is to hide.
        """
        pairs = zip(self.parts, public, strict=True)
        prepared = tuple(part.prepare(private, context, own, client=client) for part, own in pairs)
        hooks = [frozenset(hook for hook in HOOKS if own.changes(hook)) for own in prepared]
        for line in _conflicts(self.parts, hooks):
            raise FedveilError(f"defense: {line}")
        return PreparedStack(prepared, summed=self.summed)

    def guarantee(self, exposures: Sequence[Exposure]) -> dict[str, float]:
        """That of the part that proves something; `prepare` refuses what would undo it."""
        return {key: value for part in self.parts for key, value in part.guarantee(exposures).items()}

    def shadow(self, auxiliary: Images, context: DefenseContext, public: tuple[Any, ...]) -> PreparedDefense:
        """Copy each part."""
        pairs = zip(self.parts, public, strict=True)
        copies = tuple(part.shadow(auxiliary, context, own) for part, own in pairs)
        return PreparedStack(copies, summed=self.summed)

    def guard(self, model: nn.Module, context: DefenseContext, public: tuple[Any, ...]) -> Guard | None:
        """Let each part make its guard; answers pass hooks and guards part by part."""
        guards = tuple(part.guard(model, context, own) for part, own in zip(self.parts, public, strict=True))
        return None if all(guard is None for guard in guards) else _Guards(guards)


def _conflicts(parts: Sequence[Defense[Any]], hooks: Sequence[frozenset[str]]) -> Iterator[str]:
    """Yield why parts with these hooks do not go together."""
    named = [getattr(part, "name", type(part).__name__) for part in parts]
    sharing = [name for name, own in zip(named, hooks, strict=True) if "images" in own]
    if len(sharing) > 1:
        yield f"{', '.join(sharing)} each make one image of many; allowed: one such in a list"
    taker = next((at for at, own in enumerate(hooks) if "gradients" in own), None)
    if taker is not None:
        others = [
            named[at]
            for at, own in enumerate(hooks)
            if at != taker
            and (own & {"images", "batch", "loss", "gradients"} or parts[at].trained_on is TrainedOn.CLIENT)
        ]
        if others:
            yield (
                f"{named[taker]} takes the gradient of the plain loss apart by images; allowed beside it: what changes"
                f" neither loss nor gradients and lets no image depend on others, not {', '.join(others)}"
            )
    for at, part in enumerate(parts):
        changing = [named[i] for i, own in enumerate(hooks) if part.mixes and i != at and own & {"images", "data"}]
        if changing:
            yield (
                f"{named[at]} mixes in images of the client's as they are; allowed beside it: what leaves images alone,"
                f" not {', '.join(changing)}"
            )


class PreparedStack(PreparedDefense):
    """The prepared parts of a `Stack`.

    Args:
        parts: in their order.
        summed: see `Defense.summed`.
    """

    def __init__(self, parts: tuple[PreparedDefense, ...], *, summed: int = 1) -> None:
        self.parts = parts
        self.summed = summed

    def changes(self, hook: str) -> bool:
        """Whether a part overrides a hook."""
        return any(part.changes(hook) for part in self.parts)

    def images(self, shard: Images) -> Images:
        """Pass the set of images through each part."""
        for part in self.parts:
            shard = part.images(shard)
        return shard

    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        """Pass the images through each part."""
        for part in self.parts:
            x = part.data(x, y, stream)
        return x

    def batch(self, model: nn.Module, x: Tensor, y: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """Pass the batch through each part."""
        for part in self.parts:
            x, y = part.batch(model, x, y, stream)
        return x, y

    def loss(self, loss: Tensor, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        """Pass the loss through each part."""
        for part in self.parts:
            loss = part.loss(loss, model, x, y, logits)
        return loss

    def gradients(
        self, loss: Tensor, model: nn.Module, x: Tensor, y: Tensor, expected: int, stream: torch.Generator
    ) -> tuple[Tensor, ...]:
        """Those of the one part that takes them apart, if any does."""
        for part in self.parts:
            if part.changes("gradients"):
                return part.gradients(loss, model, x, y, expected, stream)
        return super().gradients(loss, model, x, y, expected, stream)

    def update(self, update: ClientUpdate, stream: torch.Generator) -> ClientUpdate:
        """Pass the update through each part."""
        for part in self.parts:
            update = _on_the_wire(part.update(update, stream), update)
        return update

    def carry(self, update: ClientUpdate, turn: Turn, stream: torch.Generator) -> tuple[ClientUpdate, Memory]:
        """Pass the update through each part, which finds what it kept itself."""
        kept: dict[str, Tensor] = {}
        for number, part in enumerate(self.parts):
            own = f"{number}/"
            memory = {name.removeprefix(own): value for name, value in turn.memory.items() if name.startswith(own)}
            given = update
            update, new = part.carry(given, Turn(memory, turn.weights), stream)
            update = _on_the_wire(update, given)
            kept |= {own + name: value for name, value in new.items()}
        return update, kept

    def output(self, logits: Tensor) -> Tensor:
        """Pass the logits through each part."""
        for part in self.parts:
            logits = part.output(logits)
        return logits

    def surrogate(self) -> Surrogate:
        """Compose the parts' surrogates.

        As on a client, images are shared first and pass the parts' ``data`` then; what that makes of shared images is
        rounded to grey values of 8 bits, as images are held.

        A sum of clients is attacked as one batch. Each of them has pruned its own update or changed its own batch's loss,
        though, and no attack reckons with that: beside such a part sums are not complete.
        """
        # As on a client, batches pass all ``data`` hooks before any ``batch`` hook.
        surrogates = sorted((part.surrogate() for part in self.parts), key=lambda own: own.batch is not None)
        data = [s.data for s in surrogates if s.data is not None]
        visible = [s.visible for s in surrogates if s.visible is not None]
        losses = [s.loss for s in surrogates if s.loss is not None]
        updates = [s.update for s in surrogates if s.update is not None]
        rehearsals = [s.rehearse for s in surrogates if s.rehearse is not None]

        def through(x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
            for step in data:
                x = step(x, y, stream)
            return x

        def stepped(model: nn.Module, x: Tensor, y: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
            for own in surrogates:
                if own.batch is not None:
                    x, y = own.batch(model, x, y, stream)
                elif own.data is not None:
                    x = own.data(x, y, stream)
            return x, y

        def minimised(loss: Tensor, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
            for step in losses:
                loss = step(loss, model, x, y, logits)
            return loss

        def sent(update: ClientUpdate, stream: torch.Generator) -> ClientUpdate:
            for step in updates:
                update = step(update, stream)
            return update

        def seen(observed: Gradients) -> dict[str, Tensor]:
            masks = {name: torch.ones_like(tensor) for name, tensor in observed.items()}
            for step in visible:
                masks = {name: masks[name] * mask for name, mask in step(observed).items()}
            return masks

        def rehearsed(images: Images, stream: torch.Generator) -> Rehearsal:
            kept = torch.arange(len(images))
            for step in rehearsals:
                found = step(images, stream)
                kept, images = kept[found.kept], found.trained
            x, y = through(images.floats(), images.labels, stream), images.labels
            return Rehearsal(kept, Images((x.clamp(0, 1) * 255).round().to(torch.uint8), y))

        return Surrogate(
            data=through if data and not rehearsals else None,
            update=sent if updates else None,
            visible=seen if visible else None,
            rehearse=rehearsed if rehearsals else None,
            similar=next((s.similar for s in surrogates if s.similar is not None), None),
            loss=minimised if losses else None,
            revealed=next((own.revealed for own in surrogates if own.revealed is not None), None),
            batch=stepped if any(own.batch is not None for own in surrogates) else None,
            complete=all(s.complete and (self.summed == 1 or _carries_over(s)) for s in surrogates),
        )

    def indistinct_error(self, images: Images, shard: Images) -> Tensor | None:
        """That of the part that makes one image of many, where no other part has learnt anything: it may tell them apart."""
        found = [part for part in self.parts if type(part).indistinct_error is not PreparedDefense.indistinct_error]
        others = [part for part in self.parts if part not in found]
        if len(found) != 1 or not all(isinstance(part, Stateless) for part in others):
            return None
        return found[0].indistinct_error(images, shard)

    def diagnostics(self) -> dict[str, float]:
        """All parts' numbers; the largest where two parts share a name."""
        return _merged(part.diagnostics() for part in self.parts)


def makes_guard(defense: Defense[Any]) -> bool:
    """Whether a defence, or a part of it, does something to a finished model's answers after the last round."""
    parts = defense.parts if isinstance(defense, Stack) else (defense,)
    return any(type(part).guard is not Defense.guard for part in parts)


class _Guards(Guard):
    """The guards of a `Stack`'s parts.

    Args:
        parts: in their order; None where a part has none.
    """

    def __init__(self, parts: tuple[Guard | None, ...]) -> None:
        self.parts = parts

    def __call__(self, logits: Tensor) -> Tensor:
        """Pass the logits through each guard, as behind parts without an ``output`` hook."""
        for part in self.parts:
            logits = logits if part is None else part(logits)
        return logits

    def behind(self, prepared: PreparedDefense) -> PreparedDefense:
        """Put each guard behind its own part."""
        assert isinstance(prepared, PreparedStack)  # `Stack.prepare` has made it
        pairs = zip(prepared.parts, self.parts, strict=True)
        behind = tuple(part if guard is None else guard.behind(part) for part, guard in pairs)
        return PreparedStack(behind, summed=prepared.summed)

    def diagnostics(self) -> dict[str, float]:
        """All guards' numbers; the largest where two share a name."""
        return _merged(part.diagnostics() for part in self.parts if part is not None)


def _carries_over(surrogate: Surrogate) -> bool:
    """Whether a surrogate made for one client's batch tells of a sum over clients what it tells of each."""
    return surrogate.loss is None and (surrogate.update is None or surrogate.visible is None)


def _on_the_wire(update: ClientUpdate, given: ClientUpdate) -> ClientUpdate:
    """Return what a part made of ``given``, with whole values where it kept their few bits and made others of them."""
    if update.value_bits == FLOAT_BITS or update.value_bits != given.value_bits:
        return update
    others = any(((sent != given.tensors[name]) & (sent != 0)).any() for name, sent in update.tensors.items())
    return replace(update, value_bits=FLOAT_BITS) if others else update


def _merged(parts: Iterable[dict[str, float]]) -> dict[str, float]:
    merged: dict[str, float] = {}
    for own in parts:
        for key, value in own.items():
            merged[key] = max(value, merged.get(key, value))
    return merged
