"""A control: what a public autoencoder alone leaves of an image, without noise."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fedveil.defense.base import DEFENSES, Defense, DefenseContext, PreparedDefense, TrainedOn
from fedveil.defense.checks import at_least
from fedveil.defense.devices import on_device
from fedveil.defense.modules import Autoencoder
from fedveil.defense.public_models import public_autoencoder
from fedveil.fl.data.images import Images


@dataclass(frozen=True)
class PreparedReconstruction(PreparedDefense):
    """A public autoencoder at work: the same for all clients.

    Attributes:
        autoencoder: frozen.
    """

    autoencoder: Autoencoder = field(repr=False)

    @torch.no_grad()
    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        """See `fedveil.fl.hooks.ClientHooks.data`."""
        found: Tensor = on_device(self.autoencoder, x.device)(x)
        return found.clamp(0, 1)


@DEFENSES.register("autoencoder")
@dataclass(frozen=True, kw_only=True)
class PublicReconstruction(Defense[Autoencoder]):
    """Each image is replaced by a public autoencoder's reconstruction: what the latent defences lose before they perturb.

    >>> from fedveil.defense import PublicReconstruction
    >>> PublicReconstruction(public_steps=200)
    PublicReconstruction(public_steps=200)

    Attributes:
        public_steps: Adam steps on public images for the autoencoder, at least 1.
    """

    dial: ClassVar[str] = "public_steps"

    public_steps: int = 500

    def __post_init__(self) -> None:
        at_least("autoencoder", public_steps=(self.public_steps, 1))

    @property
    def hooks(self) -> frozenset[str]:
        """See `Defense.hooks`."""
        return frozenset({"data"})

    @property
    def trained_on(self) -> TrainedOn:
        """The autoencoder is trained on public images."""
        return TrainedOn.PUBLIC

    def pretrain(self, context: DefenseContext) -> Autoencoder:
        """Train the autoencoder."""
        return public_autoencoder(context, steps=self.public_steps)

    def prepare(self, private: Images, context: DefenseContext, public: Autoencoder, *, client: int) -> PreparedDefense:
        """Put the autoencoder to work; the client's images teach it nothing."""
        return PreparedReconstruction(public)
