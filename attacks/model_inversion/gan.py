"""A small generative adversarial network of the attacker's own images: what images of this kind look like at all.

The critic learns by the hinge loss under spectral normalisation (Miyato et al. 2018, arXiv 1802.05957): one step of it per
step of the generator is enough, where the Wasserstein critics of the published attacks take five with a gradient penalty.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import remove_parametrizations

from fedveil.defense.checks import MOST_STEPS, above_zero, whole
from fedveil.defense.modules import halvings
from fedveil.defense.seeded import seeded
from fedveil.fl.cache import State, cached, fingerprint
from fedveil.fl.data.images import Images
from fedveil.fl.progress import paced
from fedveil.fl.seeding import torch_stream
from fedveil.fl.stepping import Adam

SLOPE = 0.2
BETAS = (0.5, 0.999)


@dataclass(frozen=True, kw_only=True)
class GanTraining:
    """How a generator and its critic are trained, with Adam (betas 0.5 and 0.999, as in the published attacks).

    Attributes:
        steps: of the generator, and of the critic.
        batch_size: images per step, at least 2.
        learning_rate: of both.
        latent: numbers that the generator makes an image of.
        width: channels of the generator at full resolution; the critic's first layer has as many.
    """

    steps: int = 1500
    batch_size: int = 64
    learning_rate: float = 4e-4
    latent: int = 64
    width: int = 16

    def __post_init__(self) -> None:
        whole("gan", most=MOST_STEPS, steps=(self.steps, 1))
        whole("gan", most=65_536, batch_size=(self.batch_size, 2))
        whole("gan", most=4096, latent=(self.latent, 1))
        whole("gan", most=1024, width=(self.width, 1))
        above_zero("gan", learning_rate=self.learning_rate)


class Generator(nn.Module):
    """From latents to images: a linear layer, then transposed convolutions with BatchNorm and ReLU, and a sigmoid.

    Args:
        training: says latent and width.
        shape: (C, H, W).
    """

    def __init__(self, training: GanTraining, shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, side = shape
        self.size, self.latent = (height, side), training.latent
        times = halvings(max(height, side))
        wide = training.width * 2 ** min(times, 3)
        self.first = (wide, math.ceil(height / 2**times), math.ceil(side / 2**times))
        self.enter = nn.Sequential(nn.Linear(training.latent, math.prod(self.first)))
        layers: list[nn.Module] = [nn.BatchNorm2d(wide), nn.ReLU()]
        for _ in range(times):
            narrow = max(training.width, wide // 2)
            layers += [nn.ConvTranspose2d(wide, narrow, 4, 2, 1, bias=False), nn.BatchNorm2d(narrow), nn.ReLU()]
            wide = narrow
        self.body = nn.Sequential(*layers, nn.Conv2d(wide, channels, 3, padding=1))

    def forward(self, latents: Tensor) -> Tensor:
        """(n, latent) to (n, C, H, W) in [0, 1]."""
        image = self.body(self.enter(latents).unflatten(1, self.first))
        return torch.sigmoid(image[..., : self.size[0], : self.size[1]])


class Critic(nn.Module):
    """From images to scores: two strided convolutions and a linear layer.

    Args:
        shape: (C, H, W).
        width: channels of the first layer.
        outputs: numbers per image: 1, or a class's logits each.
    """

    def __init__(self, shape: tuple[int, int, int], width: int, outputs: int = 1) -> None:
        super().__init__()
        channels, height, side = shape
        self.body = nn.Sequential(
            nn.Conv2d(channels, 2 * width, 4, 2, 1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(2 * width, 4 * width, 4, 2, 1),
            nn.LeakyReLU(SLOPE),
            nn.Flatten(),
        )
        self.head = nn.Linear(4 * width * (height // 4) * (side // 4), outputs)

    def features(self, images: Tensor) -> Tensor:
        """(n, C, H, W) in [0, 1] to (n, d)."""
        found: Tensor = self.body(2 * images - 1)
        return found

    def forward(self, images: Tensor) -> Tensor:
        """(n, C, H, W) in [0, 1] to (n, outputs)."""
        scores: Tensor = self.head(self.features(images))
        return scores


def _normalised(critic: Critic) -> Critic:
    for layer in critic.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            spectral_norm(layer)
    return critic


def _plain(critic: Critic) -> Critic:
    """Write the normalised weights down; what is parametrised cannot be pickled."""
    for layer in critic.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            remove_parametrizations(layer, "weight")
    return critic


@dataclass(frozen=True, eq=False)
class Gan:
    """A generator with its critic, frozen and in evaluation mode.

    Attributes:
        generator: on the CPU.
        critic: on the CPU; larger outputs are more like the attacker's images.
    """

    generator: Generator
    critic: Critic


CriticLoss = Callable[[Critic, Tensor, Tensor], Tensor]
"""Of real images (n, C, H, W) and of generated ones; a scalar."""


def hinge(critic: Critic, real: Tensor, fake: Tensor) -> Tensor:
    """Return the critic's hinge loss."""
    loss: Tensor = F.relu(1 - critic(real)).mean() + F.relu(1 + critic(fake)).mean()
    return loss


def fooled(critic: Critic, real: Tensor, fake: Tensor) -> Tensor:
    """Return the generator's loss: minus what the critic makes of it."""
    loss: Tensor = -critic(fake).mean()
    return loss


def adversaries(
    images: Images,
    training: GanTraining,
    *,
    outputs: int,
    criticise: CriticLoss,
    generate: CriticLoss,
    device: torch.device,
    stream: torch.Generator,
) -> Gan:
    """Train a generator and a critic in turn.

    Args:
        images: at least one.
        training: see `GanTraining`.
        outputs: of the critic.
        criticise: what the critic minimises, of real and of generated images.
        generate: what the generator minimises.
        device: where to train.
        stream: the only source of randomness.
    """
    generator = seeded(lambda: Generator(training, images.shape), stream).to(device).train()
    critic = seeded(lambda: _normalised(Critic(images.shape, training.width, outputs)), stream).to(device).train()
    # The critic's steps are larger than the generator's (Heusel et al. 2017): it has to keep ahead with one step.
    ahead = Adam(critic.parameters(), learning_rate=2 * training.learning_rate, betas=BETAS)
    behind = Adam(generator.parameters(), learning_rate=training.learning_rate, betas=BETAS)

    def drawn() -> tuple[Tensor, Tensor]:
        real, _ = images.batch(torch.randint(len(images), (training.batch_size,), generator=stream))
        latents = torch.randn(training.batch_size, training.latent, generator=stream)
        return real.to(device), latents.to(device)

    for _ in paced(training.steps, "generator of images"):
        real, latents = drawn()
        fake = generator(latents)
        ahead.zero_grad()
        criticise(critic, real, fake.detach()).backward()
        ahead.step()
        behind.zero_grad()
        generate(critic, real, fake).backward()
        behind.step()
    done = _plain(critic.eval())
    return Gan(generator.cpu().eval().requires_grad_(False), done.cpu().requires_grad_(False))


def public_gan(
    images: Images, training: GanTraining, *, seed: int, device: torch.device, cache: Path | None = None
) -> Gan:
    """Train a generator and its critic on the attacker's images, or take them from the cache. No classifier has a part.

    Args:
        images: at least one.
        training: see `GanTraining`.
        seed: of all randomness.
        device: where to train.
        cache: folder where they are kept for the next call with the same arguments; None for no cache.
    """

    def build() -> State:
        made = adversaries(
            images,
            training,
            outputs=1,
            criticise=hinge,
            generate=fooled,
            device=device,
            stream=torch_stream(seed, "model inversion", "gan"),
        )
        parts = {"generator": made.generator, "critic": made.critic}
        return {f"{part}.{name}": value for part, own in parts.items() for name, value in own.state_dict().items()}

    whole = cached(cache, ("inversion gan", fingerprint(images), training, seed, device.type), build)
    generator, critic = Generator(training, images.shape), Critic(images.shape, training.width)
    for part, module in (("generator.", generator), ("critic.", critic)):
        own = {name.removeprefix(part): value for name, value in whole.items() if name.startswith(part)}
        module.load_state_dict(own)
    return Gan(generator.eval().requires_grad_(False), critic.eval().requires_grad_(False))
