"""The minimax training that learns the perturbation (arXiv 2503.16542; our reading of it).

The defender P minimises

    utility_weight * CE(f(x'), y) - privacy_weight * min(MSE(A(x'), x), cap) / cap

over x' = Dec(P(Enc(x))), while the adversary A minimises MSE(A(x'), x), several steps to each of the defender's, and the
local copy f of the classifier minimises its loss on x'. Whatever a server computes from an update that was trained on x'
alone is a function of x', so the best A bounds every gradient attack.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedveil.defense.fitting import frozen
from fedveil.defense.modules import Autoencoder, Inverse, Perturbation
from fedveil.defense.public_models import PublicModels
from fedveil.defense.seeded import seeded
from fedveil.fl.data.images import Images
from fedveil.fl.progress import paced
from fedveil.fl.stepping import Adam, half_cosine

ADVERSARY_WIDTH = 16


@dataclass(frozen=True)
class MinimaxConfig:
    """The weights and the schedule of a minimax training.

    Attributes:
        strength: rho, size of the perturbation relative to the latent's root mean square.
        privacy_weight: weight of the adversary's error, which is measured in units of the cap.
        utility_weight: weight of the classification loss.
        error_cap: the adversary's error beyond which nothing more is gained, as a multiple of the error of guessing the
            class mean. It stops the maximisation from running away.
        adversary_steps: adversary steps per defender step.
        batch_size: images per step.
    """

    strength: float
    privacy_weight: float
    utility_weight: float
    error_cap: float
    adversary_steps: int
    batch_size: int = 32


def class_mean_error(images: Images, known: Images | None = None) -> float:
    """MSE of guessing each image's class mean: what an attacker reaches who sees nothing but the label.

    Args:
        images: the images to guess.
        known: whose class means are guessed (the mean of all for a class that it lacks); None for ``images`` itself,
            which understates the error where a class has few images, down to 0 where it has one.
    """
    x = images.floats()
    guesses, labels = (x, images.labels) if known is None else (known.floats(), known.labels)
    error = 0.0
    for label in images.labels.unique():
        alike = guesses[labels == label]
        guess = (alike if len(alike) else guesses).mean(dim=0)
        error += float((x[images.labels == label] - guess).square().mean(dim=(1, 2, 3)).sum())
    return error / len(x)


def perturbed(autoencoder: Autoencoder, perturbation: Perturbation, z: Tensor, stream: torch.Generator) -> Tensor:
    """Return x' = clip(Dec(P(z)), 0, 1), (n, C, H, W), with fresh noise from ``stream`` (drawn on the CPU).

    Args:
        autoencoder: its decoder is used.
        perturbation: P.
        z: Enc(x), (n, 32, h, w).
        stream: of the noise.
    """
    noise = torch.randn(z.shape, generator=stream).to(z.device)
    return autoencoder.decode(perturbation(z, noise)).clamp(0, 1)


@dataclass(frozen=True, eq=False)
class MinimaxModules:
    """The three that learn: their weights are what a minimax training starts from and ends with.

    Attributes:
        defender: the perturbation P.
        adversary: A, as far as it was trained; an attacker always trains its own.
        classifier: the local copy f.
    """

    defender: Perturbation
    adversary: Inverse
    classifier: nn.Module


def init_modules(models: PublicModels, config: MinimaxConfig, stream: torch.Generator) -> MinimaxModules:
    """Return an untrained defender and adversary, and a classifier that starts from the public reference."""
    shape = models.autoencoder.shape
    return MinimaxModules(
        defender=seeded(lambda: Perturbation(config.strength), stream),
        adversary=seeded(lambda: Inverse(shape, width=ADVERSARY_WIDTH), stream),
        classifier=models.reference,
    )


def train_minimax(
    images: Images,
    models: PublicModels,
    modules: MinimaxModules,
    config: MinimaxConfig,
    *,
    steps: int,
    replay: Images,
    device: torch.device,
    stream: torch.Generator,
) -> MinimaxModules:
    """Train on ``images`` and return the modules on the CPU, frozen. The arguments stay as they are.

    The classifier keeps learning from untouched public images (``replay``) beside x'. Without that replay each client's P
    and f agree on a private code of their own for the classes, and a federated model has to learn as many codes as there
    are clients.

    Args:
        images: the client's own, or public ones.
        models: the autoencoder stays frozen.
        modules: to go on from.
        config: weights and schedule.
        steps: defender steps.
        replay: public images; their class means also set the cap, as a client may hold too few images for that.
        device: where to train.
        stream: the only source of randomness.
    """
    autoencoder = copy.deepcopy(models.autoencoder).to(device)
    defender = copy.deepcopy(modules.defender).to(device).requires_grad_(True)
    adversary = copy.deepcopy(modules.adversary).to(device).requires_grad_(True)
    classifier = copy.deepcopy(modules.classifier).to(device).requires_grad_(True)
    cap = max(config.error_cap * class_mean_error(images, replay), 1e-6)
    # A little momentum only: the opponent moves, so old gradients mislead.
    betas = (0.5, 0.99)
    defend = Adam(defender.parameters(), learning_rate=1e-3, betas=betas)
    attack = Adam(adversary.parameters(), learning_rate=2e-3, betas=betas)
    learn = Adam(classifier.parameters(), learning_rate=5e-4, betas=betas)
    latents = _encode(autoencoder, images, device)

    def draw() -> tuple[Tensor, Tensor, Tensor]:
        indices = torch.randint(len(images), (config.batch_size,), generator=stream)
        x, y = images.batch(indices)
        return x.to(device), y.to(device), latents[indices.to(device)]

    for step in paced(steps, "minimax training"):
        for _ in range(config.adversary_steps):
            x, _, z = draw()
            with torch.no_grad():
                defended = perturbed(autoencoder, defender, z, stream)
            attack.zero_grad()
            F.mse_loss(adversary(defended), x).backward()
            attack.step()

        x, y, z = draw()
        defended = perturbed(autoencoder, defender, z, stream)
        error = (adversary(defended) - x).square().mean(dim=(1, 2, 3))
        privacy = (error / cap).clamp(max=1).mean()
        utility = F.cross_entropy(classifier(defended), y)
        defend.zero_grad()
        (config.utility_weight * utility - config.privacy_weight * privacy).backward()
        defend.step(half_cosine(step, steps))

        public_x, public_y = replay.batch(torch.randint(len(replay), (config.batch_size,), generator=stream))
        on_public = F.cross_entropy(classifier(public_x.to(device)), public_y.to(device))
        learn.zero_grad()
        (F.cross_entropy(classifier(defended.detach()), y) + on_public).backward()
        learn.step()
    for module in (defender, adversary, classifier):
        frozen(module.cpu())
    return MinimaxModules(defender, adversary, classifier)


@torch.no_grad()
def _encode(autoencoder: Autoencoder, images: Images, device: torch.device) -> Tensor:
    chunks = torch.arange(len(images)).split(256)
    return torch.cat([autoencoder.encode(images.batch(chunk)[0].to(device)) for chunk in chunks])
