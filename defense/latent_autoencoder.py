"""The learnable latent perturbation (arXiv 2503.16542): the centre piece.

Faithful to what the abstract says (latent, learnable, minimax, trained on the perturbed data only); the rest is our reading,
set out in `fedveil.defense.minimax` and in docs/method.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fedveil.defense.base import DEFENSES, Defense, DefenseContext, PreparedDefense, Surrogate, TrainedOn
from fedveil.defense.checks import above_zero, at_least
from fedveil.defense.devices import on_device
from fedveil.defense.minimax import MinimaxConfig, MinimaxModules, init_modules, perturbed, train_minimax
from fedveil.defense.modules import Autoencoder, Perturbation
from fedveil.defense.outcome import Outcome, hold_out, measure
from fedveil.defense.public_models import PublicModels, train_public_models
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError


@dataclass(frozen=True)
class MinimaxPublic:
    """What the latent perturbation learns once, from public images alone.

    Attributes:
        models: the autoencoder and the reference classifier.
        modules: of the minimax training, where every client's own begins.
        outcome: how that training ended.
    """

    models: PublicModels
    modules: MinimaxModules
    outcome: Outcome


@dataclass(frozen=True)
class PreparedMinimax(PreparedDefense):
    """The latent perturbation at work with one client.

    Attributes:
        autoencoder: frozen, the same for all clients.
        defender: the perturbation P; the client's own with ``scope: client``.
        outcome: how the minimax training that learnt it ended.
    """

    autoencoder: Autoencoder = field(repr=False)
    defender: Perturbation = field(repr=False)
    outcome: Outcome

    @torch.no_grad()
    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        """See `fedveil.fl.hooks.ClientHooks.data`: fresh noise at each call, at test time too."""
        autoencoder = on_device(self.autoencoder, x.device)
        return perturbed(autoencoder, on_device(self.defender, x.device), autoencoder.encode(x), stream)

    def surrogate(self) -> Surrogate:
        """The modules at work."""
        return Surrogate(data=self.data)

    def diagnostics(self) -> dict[str, float]:
        """How the minimax training ended."""
        return self.outcome.diagnostics()


@DEFENSES.register("latent_autoencoder")
@dataclass(frozen=True, kw_only=True)
class LatentAutoencoder(Defense[MinimaxPublic]):
    """Perturb the latent of an autoencoder in a learnt direction with learnt noise, and train only on the decoded image.

    Our reading of Jiang, Firouzi and Chakrabarty 2025 (arXiv 2503.16542); see docs/method.md.

    The minimax training first runs once on public images, so that all clients start from one perturbation; with ``scope:
    client`` each client then goes on with its own images and keeps the result.

    Attributes:
        strength: rho, size of the perturbation relative to the latent's root mean square, above 0.
        privacy_weight: weight of the adversary's error in units of the cap, at least 0.
        utility_weight: weight of the classification loss, at least 0.
        error_cap: the adversary's error beyond which nothing more is gained, as a multiple of the error of guessing the
            class mean; above 0.
        adversary_steps: adversary steps to each of the defender's, at least 1.
        scope: ``client``: modules adapted by and kept with each client. ``public``: trained once on public images.
        steps: defender steps on public images, at least 1.
        client_steps: defender steps on the client's own, at least 0, with ``scope: client``.
        public_steps: Adam steps for the public autoencoder and reference classifier.
    """

    strength: float = 1.0
    privacy_weight: float = 1.0
    utility_weight: float = 1.0
    error_cap: float = 1.0
    adversary_steps: int = 3
    scope: Literal["client", "public"] = "client"
    steps: int = 200
    client_steps: int = 60
    public_steps: int = 500

    def __post_init__(self) -> None:
        at_least(
            "latent_autoencoder",
            privacy_weight=(self.privacy_weight, 0),
            utility_weight=(self.utility_weight, 0),
            adversary_steps=(self.adversary_steps, 1),
            steps=(self.steps, 1),
            client_steps=(self.client_steps, 0),
            public_steps=(self.public_steps, 1),
        )
        above_zero("latent_autoencoder", strength=self.strength, error_cap=self.error_cap)
        if self.scope not in ("client", "public"):
            raise FedveilError(f"latent_autoencoder: scope is {self.scope!r}; allowed: client, public")

    @property
    def hooks(self) -> frozenset[str]:
        """See `Defense.hooks`."""
        return frozenset({"data"})

    @property
    def trained_on(self) -> TrainedOn:
        """See `scope`."""
        return TrainedOn.CLIENT if self.scope == "client" else TrainedOn.PUBLIC

    @property
    def minimax(self) -> MinimaxConfig:
        """The settings that the minimax training needs."""
        return MinimaxConfig(
            strength=self.strength,
            privacy_weight=self.privacy_weight,
            utility_weight=self.utility_weight,
            error_cap=self.error_cap,
            adversary_steps=self.adversary_steps,
        )

    def pretrain(self, context: DefenseContext) -> MinimaxPublic:
        """Train the public models, and the minimax modules on public images."""
        models = train_public_models(context, steps=self.public_steps)
        start = init_modules(models, self.minimax, context.stream("modules"))
        modules, outcome = self._train(context.public, models, start, self.steps, context, "public")
        return MinimaxPublic(models, modules, outcome)

    def prepare(
        self, private: Images, context: DefenseContext, public: MinimaxPublic, *, client: int
    ) -> PreparedDefense:
        """With ``scope: client``, go on with the client's own images; otherwise the public modules do."""
        modules, outcome = public.modules, public.outcome
        if self.scope == "client":
            modules, outcome = self._train(private, public.models, modules, self.client_steps, context, client)
        return PreparedMinimax(public.models.autoencoder, modules.defender, outcome)

    def _train(
        self,
        images: Images,
        models: PublicModels,
        start: MinimaxModules,
        steps: int,
        context: DefenseContext,
        whose: str | int,
    ) -> tuple[MinimaxModules, Outcome]:
        stream = context.stream("minimax", whose)
        seen, held = hold_out(images, stream)
        modules = train_minimax(
            seen,
            models,
            start,
            self.minimax,
            steps=steps,
            replay=context.public,
            device=context.device,
            stream=stream,
        )
        return modules, measure(held, models, modules, context.public, context.stream("outcome", whose))
