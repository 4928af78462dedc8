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

from defense.base import DEFENSES, Defense, Preparation, Surrogate, TrainedOn, above_zero, at_least
from defense.foundation import Foundation, lay_foundation
from defense.minimax import Game, Players, class_mean_error, newcomers, perturbed, play
from defense.moving import on_device
from fl.data.images import Images
from fl.errors import FedveilError
from fl.messages import ThreatModel

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
        privacy_weight: see `defense.minimax.Game`.
        utility_weight: likewise.
        ceiling: likewise.
        adversary_steps: likewise.
        scope: ``client``: modules adapted by and kept with each client. ``public``: trained once on public images.
        steps: defender steps on public images.
        client_steps: defender steps on the client's own, with ``scope: client``.
        foundation_steps: Adam steps for the public autoencoder and reference classifier.
        foundation: filled by `pretrain`.
        players: filled by `pretrain` and `prepare`.
        outcome: likewise.
    """

    name: ClassVar[str] = "latent"

    strength: float = 1.0
    privacy_weight: float = 1.0
    utility_weight: float = 1.0
    ceiling: float = 1.0
    adversary_steps: int = 3
    scope: Literal["client", "public"] = "client"
    steps: int = 200
    client_steps: int = 60
    foundation_steps: int = 500
    foundation: Foundation | None = field(default=None, repr=False, compare=False)
    players: Players | None = field(default=None, repr=False, compare=False)
    outcome: Outcome | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        at_least(
            "latent",
            privacy_weight=(self.privacy_weight, 0),
            utility_weight=(self.utility_weight, 0),
            adversary_steps=(self.adversary_steps, 1),
            steps=(self.steps, 1),
            client_steps=(self.client_steps, 0),
            foundation_steps=(self.foundation_steps, 1),
        )
        above_zero("latent", strength=self.strength, ceiling=self.ceiling)
        if self.scope not in ("client", "public"):
            raise FedveilError(f"latent: scope is {self.scope!r}; allowed: client, public")

    @property
    def trained_on(self) -> TrainedOn:
        """See `scope`."""
        return TrainedOn.CLIENT if self.scope == "client" else TrainedOn.PUBLIC

    def pretrain(self, preparation: Preparation) -> LatentPerturbation:
        """Lay the foundation and play the game on public images."""
        foundation = lay_foundation(preparation, steps=self.foundation_steps)
        stream = preparation.stream("game")
        played, held = _split(preparation.public, stream)
        start = newcomers(foundation, self._game, stream)
        players = play(
            played,
            foundation,
            start,
            self._game,
            steps=self.steps,
            anchor=preparation.public,
            device=preparation.device,
            stream=stream,
        )
        outcome = judge(held, foundation, players, preparation.public, preparation.stream("judge"))
        return replace(self, foundation=foundation, players=players, outcome=outcome)

    def prepare(self, private: Images, preparation: Preparation, client: int) -> LatentPerturbation:
        """With ``scope: client``, play on with the client's own images."""
        if self.scope == "public":
            return self
        foundation, players = self._trained()
        stream = preparation.stream("game", "client", client)
        played, held = _split(private, stream)
        players = play(
            played,
            foundation,
            players,
            self._game,
            steps=self.client_steps,
            anchor=preparation.public,
            device=preparation.device,
            stream=stream,
        )
        outcome = judge(held, foundation, players, preparation.public, preparation.stream("judge", "client", client))
        return replace(self, players=players, outcome=outcome)

    @torch.no_grad()
    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        """See `fl.hooks.ClientHooks.data`: fresh noise at each call, at test time too."""
        foundation, players = self._trained()
        autoencoder = on_device(foundation.autoencoder, x.device)
        return perturbed(autoencoder, on_device(players.defender, x.device), autoencoder.encode(x), stream)

    def surrogate(self, threat_model: ThreatModel, preparation: Preparation) -> Surrogate:
        """The client's own modules, or ones that the attacker learns on his public images by the same code."""
        known = self
        if not threat_model.defense_weights:
            own = self.pretrain(preparation)
            known = own.prepare(preparation.public, preparation, client=-1)
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
    def _game(self) -> Game:
        return Game(
            strength=self.strength,
            privacy_weight=self.privacy_weight,
            utility_weight=self.utility_weight,
            ceiling=self.ceiling,
            adversary_steps=self.adversary_steps,
        )

    def _trained(self) -> tuple[Foundation, Players]:
        if self.foundation is None or self.players is None:
            raise RuntimeError("latent: pretrain() has not run")
        return self.foundation, self.players


def _split(images: Images, stream: torch.Generator) -> tuple[Images, Images]:
    """Hold a few images out of the game; with too few to spare, judge on those played on."""
    count = int(len(images) * HELD_OUT)
    if count == 0:
        return images, images
    order = torch.randperm(len(images), generator=stream)
    return images.take(order[count:]), images.take(order[:count])


@torch.no_grad()
def judge(images: Images, foundation: Foundation, players: Players, public: Images, stream: torch.Generator) -> Outcome:
    """Measure on ``images`` how a game ended, on the CPU. The class means come from ``public``."""
    x, y = images.floats(), images.labels
    defended = perturbed(foundation.autoencoder, players.defender, foundation.autoencoder.encode(x), stream)
    error = float(F.mse_loss(players.adversary(defended), x))
    return Outcome(
        clean_accuracy=float((foundation.reference(x).argmax(1) == y).float().mean()),
        accuracy=float((players.classifier(defended).argmax(1) == y).float().mean()),
        majority=float(y.bincount().max()) / len(y),
        images=len(y),
        adversary_error=error / max(class_mean_error(images, public), 1e-6),
    )
