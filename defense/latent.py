"""The learnable latent perturbation (arXiv 2503.16542): the centre piece.

Faithful to what the abstract says (latent, learnable, minimax, trained on the perturbed data only); the rest is our reading,
set out in `defense.minimax` and in docs/method.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fedveil.defense.base import DEFENSES, Defense, DefenseContext, Surrogate, TrainedOn, above_zero, at_least
from fedveil.defense.devices import on_device
from fedveil.defense.minimax import (
    MinimaxConfig,
    MinimaxModules,
    class_mean_error,
    init_modules,
    perturbed,
    train_minimax,
)
from fedveil.defense.public_models import PublicModels, train_public_models
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import ThreatModel

HELD_OUT = 0.15


@dataclass(frozen=True)
class Outcome:
    """How the game ended, on images that it was not played on.

    Attributes:
        clean_accuracy: of the public reference on untouched images.
        accuracy: of the local classifier on perturbed images.
        majority: share of the commonest class.
        images: how many were judged.
        adversary_error: MSE of the co-trained adversary as a multiple of the class-mean guess's.
    """

    clean_accuracy: float
    accuracy: float
    majority: float
    images: int
    adversary_error: float

    @property
    def collapsed(self) -> bool:
        """The perturbed images carry hardly any class: under a quarter of what untouched ones carry beyond a guess.

        Few images prove little: the upper end of the accuracy's 95 % interval (Wilson 1927) has to be under that quarter.
        """
        carried = self.clean_accuracy - self.majority
        z2 = 1.96**2 / self.images
        spread = math.sqrt(z2 * self.accuracy * (1 - self.accuracy) + z2**2 / 4)
        most = (self.accuracy + z2 / 2 + spread) / (1 + z2)
        return carried > 0 and most - self.majority < 0.25 * carried


@DEFENSES.register("latent")
@dataclass(frozen=True, kw_only=True)
class LatentPerturbation(Defense):
    """Perturb the latent of an autoencoder in a learnt direction with learnt noise, and train only on the decoded image.

    The game is first played once on public images, so that all clients start from one perturbation; with ``scope:
    client`` each client then plays on with its own images and keeps the result.

    Attributes:
        strength: rho, size of the perturbation relative to the latent's root mean square.
        privacy_weight: see `defense.minimax.MinimaxConfig`.
        utility_weight: likewise.
        ceiling: likewise.
        adversary_steps: likewise.
        scope: ``client``: modules adapted by and kept with each client. ``public``: trained once on public images.
        steps: defender steps on public images.
        client_steps: defender steps on the client's own, with ``scope: client``.
        public_steps: Adam steps for the public autoencoder and reference classifier.
        public_models: filled by `pretrain`.
        modules: filled by `pretrain` and `prepare`.
        outcome: likewise.
    """

    name: ClassVar[str] = "latent"

    strength: float = 1.0
    privacy_weight: float = 1.0
    utility_weight: float = 1.0
    error_cap: float = 1.0
    adversary_steps: int = 3
    scope: Literal["client", "public"] = "client"
    steps: int = 200
    client_steps: int = 60
    public_steps: int = 500
    public_models: PublicModels | None = field(default=None, repr=False, compare=False)
    modules: MinimaxModules | None = field(default=None, repr=False, compare=False)
    outcome: Outcome | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        at_least(
            "latent",
            privacy_weight=(self.privacy_weight, 0),
            utility_weight=(self.utility_weight, 0),
            adversary_steps=(self.adversary_steps, 1),
            steps=(self.steps, 1),
            client_steps=(self.client_steps, 0),
            public_steps=(self.public_steps, 1),
        )
        above_zero("latent", strength=self.strength, error_cap=self.error_cap)
        if self.scope not in ("client", "public"):
            raise FedveilError(f"latent: scope is {self.scope!r}; allowed: client, public")

    @property
    def trained_on(self) -> TrainedOn:
        """See `scope`."""
        return TrainedOn.CLIENT if self.scope == "client" else TrainedOn.PUBLIC

    def pretrain(self, context: DefenseContext) -> LatentPerturbation:
        """Lay the public_models and play the game on public images."""
        public_models = train_public_models(context, steps=self.public_steps)
        stream = context.stream("game")
        played, held = _split(context.public, stream)
        start = init_modules(public_models, self._game, stream)
        modules = train_minimax(
            played,
            public_models,
            start,
            self._game,
            steps=self.steps,
            replay=context.public,
            device=context.device,
            stream=stream,
        )
        outcome = judge(held, public_models, modules, context.public, context.stream("judge"))
        return replace(self, public_models=public_models, modules=modules, outcome=outcome)

    def prepare(self, private: Images, context: DefenseContext, client: int) -> LatentPerturbation:
        """With ``scope: client``, play on with the client's own images."""
        if self.scope == "public":
            return self
        public_models, modules = self._trained()
        stream = context.stream("game", "client", client)
        played, held = _split(private, stream)
        modules = train_minimax(
            played,
            public_models,
            modules,
            self._game,
            steps=self.client_steps,
            replay=context.public,
            device=context.device,
            stream=stream,
        )
        outcome = judge(held, public_models, modules, context.public, context.stream("judge", "client", client))
        return replace(self, modules=modules, outcome=outcome)

    @torch.no_grad()
    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        """See `fl.hooks.ClientHooks.data`: fresh noise at each call, at test time too."""
        public_models, modules = self._trained()
        autoencoder = on_device(public_models.autoencoder, x.device)
        return perturbed(autoencoder, on_device(modules.defender, x.device), autoencoder.encode(x), stream)

    def surrogate(self, threat_model: ThreatModel, context: DefenseContext) -> Surrogate:
        """The client's own modules, or ones that the attacker learns on his public images by the same code."""
        known = self
        if not threat_model.defense_modules:
            own = self.pretrain(context)
            known = own.prepare(context.public, context, client=-1)
        return Surrogate(data=lambda x, stream: known.data(x, None, stream))

    def diagnostics(self) -> dict[str, float]:
        """How the game ended (see `Outcome`)."""
        if self.outcome is None:
            return {}
        return {
            "collapsed": float(self.outcome.collapsed),
            "local_accuracy": self.outcome.accuracy,
            "adversary_error": self.outcome.adversary_error,
        }

    @property
    def _game(self) -> MinimaxConfig:
        return MinimaxConfig(
            strength=self.strength,
            privacy_weight=self.privacy_weight,
            utility_weight=self.utility_weight,
            error_cap=self.error_cap,
            adversary_steps=self.adversary_steps,
        )

    def _trained(self) -> tuple[PublicModels, MinimaxModules]:
        if self.public_models is None or self.modules is None:
            raise RuntimeError("latent: pretrain() has not run")
        return self.public_models, self.modules


def _split(images: Images, stream: torch.Generator) -> tuple[Images, Images]:
    """Hold a few images out of the game; with too few to spare, judge on those played on."""
    count = int(len(images) * HELD_OUT)
    if count == 0:
        return images, images
    order = torch.randperm(len(images), generator=stream)
    return images.take(order[count:]), images.take(order[:count])


@torch.no_grad()
def judge(
    images: Images, public_models: PublicModels, modules: MinimaxModules, public: Images, stream: torch.Generator
) -> Outcome:
    """Measure on ``images`` how a game ended, on the CPU. The class means come from ``public``."""
    x, y = images.floats(), images.labels
    defended = perturbed(public_models.autoencoder, modules.defender, public_models.autoencoder.encode(x), stream)
    error = float(F.mse_loss(modules.adversary(defended), x))
    return Outcome(
        clean_accuracy=float((public_models.reference(x).argmax(1) == y).float().mean()),
        accuracy=float((modules.classifier(defended).argmax(1) == y).float().mean()),
        majority=float(y.bincount().max()) / len(y),
        images=len(y),
        adversary_error=error / max(class_mean_error(images, public), 1e-6),
    )
