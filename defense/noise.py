"""The unlearned controls: white noise of a set size on pixels, and on the latent of a public autoencoder."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedveil.defense.base import DEFENSES, Defense, DefenseContext, PreparedDefense, Surrogate, TrainedOn
from fedveil.defense.checks import at_least
from fedveil.defense.devices import on_device
from fedveil.defense.modules import Autoencoder, rms
from fedveil.defense.public_models import public_autoencoder
from fedveil.fl.data.images import Images


@DEFENSES.register("none")
@dataclass(frozen=True, kw_only=True)
class NoDefense(Defense[None]):
    """The undefended client."""


@DEFENSES.register("pixel_noise")
@dataclass(frozen=True, kw_only=True)
class PixelNoise(Defense[None]):
    """White noise on the pixels, fresh for every batch: x' = clip(x + strength * n, 0, 1), n ~ N(0, I).

    Attributes:
        strength: standard deviation in pixel units, at least 0.
    """

    strength: float = 0.2

    def __post_init__(self) -> None:
        at_least("pixel_noise", strength=(self.strength, 0))

    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        """See `fedveil.fl.hooks.ClientHooks.data`."""
        return (x + self.strength * torch.randn(x.shape, generator=stream).to(x.device)).clamp(0, 1)


@dataclass(frozen=True)
class PreparedLatentNoise(PreparedDefense):
    """White noise on the latent of a public autoencoder: the same for all clients.

    Attributes:
        strength: see `LatentNoise`.
        autoencoder: frozen.
    """

    strength: float
    autoencoder: Autoencoder = field(repr=False)

    @torch.no_grad()
    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        """See `fedveil.fl.hooks.ClientHooks.data`."""
        autoencoder = on_device(self.autoencoder, x.device)
        z = autoencoder.encode(x)
        noise = torch.randn(z.shape, generator=stream).to(z.device)
        return autoencoder.decode(z + self.strength * rms(z) * noise).clamp(0, 1)

    def surrogate(self) -> Surrogate:
        """The autoencoder and the noise law."""
        return Surrogate(data=self.data)


@DEFENSES.register("latent_noise")
@dataclass(frozen=True, kw_only=True)
class LatentNoise(Defense[Autoencoder]):
    """White noise on the latent of a public autoencoder: the learnt defence with nothing learnt.

    x' = clip(Dec(z + strength * rms(z) * n), 0, 1), z = Enc(x), n ~ N(0, I), fresh for every batch.

    Attributes:
        strength: rho, at least 0, relative to the latent's root mean square, as in
            `fedveil.defense.latent_autoencoder.LatentAutoencoder`.
        public_steps: Adam steps on public images for the autoencoder, at least 1.
    """

    strength: float = 1.0
    public_steps: int = 500

    def __post_init__(self) -> None:
        at_least("latent_noise", strength=(self.strength, 0), public_steps=(self.public_steps, 1))

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
        return PreparedLatentNoise(self.strength, public)
