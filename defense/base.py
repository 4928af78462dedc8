"""The `Defense` interface: four hooks on the client, preparation before round 0, and one honesty hook."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from fl.data.images import Images
from fl.errors import SettingError
from fl.hooks import NoHooks
from fl.messages import ClientUpdate, ThreatModel
from fl.models import ModelSpec
from fl.registry import Registry
from fl.seeding import torch_stream

DEFENSES: Registry[type[Defense]] = Registry("defense")

Gradients = Mapping[str, Tensor]


class TrainedOn(StrEnum):
    """What a defence's modules were trained on, hence how many versions of them an attacker may hold."""

    NOTHING = "nothing"
    PUBLIC = "public"
    CLIENT = "client"


@dataclass(frozen=True)
class Preparation:
    """What a defence is given to prepare itself with.

    Attributes:
        public: images that belong to no client.
        model: the classifier that the federation trains.
        device: where to compute.
        seed: of the trial, or of the attacker who rebuilds the defence for himself.
        cache: folder where what was trained on public images alone is kept for the next trial; None for no cache.
    """

    public: Images
    model: ModelSpec
    device: torch.device
    seed: int
    cache: Path | None = None

    def stream(self, *path: str | int) -> torch.Generator:
        """Return the random stream ``path`` of this preparation."""
        return torch_stream(self.seed, "prepare", *path)


@dataclass(frozen=True)
class Surrogate:
    """What a defence hands to the adaptive attacker.

    Attributes:
        data: draws from the law of the trained-on images given originals, (n, C, H, W) to (n, C, H, W), with the
            attacker's own stream; None where the defence leaves images alone.
        update: does to an update what the defence does, with the attacker's own stream; None where it is left alone.
        visible: given what was observed, by parameter name, returns masks in {0, 1} of the entries that tell anything;
            None where all do.
    """

    data: Callable[[Tensor, torch.Generator], Tensor] | None = None
    update: Callable[[ClientUpdate, torch.Generator], ClientUpdate] | None = None
    visible: Callable[[Gradients], dict[str, Tensor]] | None = None


@dataclass(frozen=True, kw_only=True)
class Defense(NoHooks):
    """A defence with its hyperparameters. `repr` shows exactly these, as the configuration names them.

    Trained state (modules) lives in fields with ``repr=False, compare=False`` that `pretrain` and `prepare` fill on a
    copy; a defence is never changed in place, so it can be shared with many workers.
    """

    name: ClassVar[str]

    @property
    def trained_on(self) -> TrainedOn:
        """What this defence's modules are trained on."""
        return TrainedOn.NOTHING

    def pretrain(self, preparation: Preparation) -> Defense:
        """Do once what needs public data alone; every client starts from the result."""
        return self

    def prepare(self, private: Images, preparation: Preparation, client: int) -> Defense:
        """Do what needs the client's own images; the result stays with that client."""
        return self

    def surrogate(self, threat_model: ThreatModel, preparation: Preparation) -> Surrogate:
        """Hand the adaptive attacker what ``threat_model`` grants.

        Under ``defense_weights`` it is built from this prepared defence itself; under ``defense_algorithm`` alone, from
        one that the attacker prepares on his public images with ``preparation``.
        """
        return Surrogate()

    def diagnostics(self) -> dict[str, float]:
        """Numbers about the preparation that belong beside the results (``collapsed`` among them, 0 or 1)."""
        return {}


def at_least(defense: str, **settings: tuple[float, float]) -> None:
    """Check that each setting, given as (value, least), is finite and at least that.

    Raises:
        FedveilError: naming the first that is not.
    """
    for key, (value, least) in settings.items():
        if not least <= value < math.inf:
            raise SettingError(defense, key, value, f"it has to be at least {least:g} and finite")


def above_zero(defense: str, **settings: float) -> None:
    """Check that each setting is finite and above 0.

    Raises:
        FedveilError: naming the first that is not.
    """
    for key, value in settings.items():
        if not 0 < value < math.inf:
            raise SettingError(defense, key, value, "it has to be above 0 and finite")


@dataclass(frozen=True, kw_only=True)
class Stack(Defense):
    """Several defences, applied to data and loss in their order and to update and output in the same order.

    Attributes:
        parts: the defences.
    """

    name: ClassVar[str] = "stack"
    parts: tuple[Defense, ...] = field(default=())

    @property
    def trained_on(self) -> TrainedOn:
        """The most private of the parts' sources."""
        order = list(TrainedOn)
        return max((part.trained_on for part in self.parts), key=order.index, default=TrainedOn.NOTHING)

    def pretrain(self, preparation: Preparation) -> Defense:
        """Pretrain each part."""
        return Stack(parts=tuple(part.pretrain(preparation) for part in self.parts))

    def prepare(self, private: Images, preparation: Preparation, client: int) -> Defense:
        """Prepare each part."""
        return Stack(parts=tuple(part.prepare(private, preparation, client) for part in self.parts))

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

    def surrogate(self, threat_model: ThreatModel, preparation: Preparation) -> Surrogate:
        """Compose the parts' surrogates."""
        surrogates = [part.surrogate(threat_model, preparation) for part in self.parts]
        data = [s.data for s in surrogates if s.data is not None]
        visible = [s.visible for s in surrogates if s.visible is not None]
        updates = [s.update for s in surrogates if s.update is not None]

        def through(x: Tensor, stream: torch.Generator) -> Tensor:
            for step in data:
                x = step(x, stream)
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
        )

    def diagnostics(self) -> dict[str, float]:
        """All parts' numbers; the largest where two parts share a name."""
        merged: dict[str, float] = {}
        for part in self.parts:
            for key, value in part.diagnostics().items():
                merged[key] = max(value, merged.get(key, value))
        return merged
