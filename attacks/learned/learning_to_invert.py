"""Learning to Invert (Wu et al. 2023, arXiv 2210.10880): a network that is taught to read images off updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedveil.attacks.base import ATTACKS, Attack, Earlier, Knowledge, Observation
from fedveil.attacks.labels import labels_of
from fedveil.attacks.labels.pairing import paired
from fedveil.attacks.learned.own_updates import OwnClients
from fedveil.attacks.learned.update_features import UpdateFeatures, entries
from fedveil.attacks.matching.attack import target_gradient
from fedveil.attacks.matching.yardstick import misfit
from fedveil.defense.checks import MOST_STEPS, above_zero, whole
from fedveil.defense.inverse.variation import mirrors, varied
from fedveil.defense.seeded import seeded
from fedveil.fl.data.images import Images
from fedveil.fl.messages import Reconstruction, ThreatModel
from fedveil.fl.seeding import torch_stream
from fedveil.fl.stepping import Adam
from fedveil.fl.until_flat import hold_out, train_until_flat

TOGETHER = 64
"""Updates that are made at once; bounds memory."""
EVERY = 4
"""Steps after which so many updates of the pool are replaced by new ones."""
BATCH = 128
"""Updates of the pool that every step learns from."""
LEARNING_RATE = 1e-3


@ATTACKS.register("learning_to_invert")
@dataclass(frozen=True, kw_only=True)
class LearningToInvert(Attack):
    """Make updates of auxiliary images, through the defence as it is known, and learn which image is behind which update.

    As in the paper, images are the target and a multilayer perceptron learns them from compressed updates, anew for each
    weights that the server sent, and for B images the loss is that of the best one-to-one assignment. It departs in four
    details. Updates are compressed by a principal component analysis of those of auxiliary images, after hashing where they
    are large, with entries shrunk by their share of noise. A linear layer runs beside the perceptron. Auxiliary images are
    varied (turned, moved, lit), and training goes on until the curve of held-out ones is flat. Of repeated observations it
    reads the first. It is not told labels.

    >>> import fedveil as fv
    >>> fv.LearningToInvert(steps=500).needs.auxiliary_data
    True

    Attributes:
        steps: of training at most, at least 1; it stops earlier where the curve is flat.
        width: of the perceptron's two hidden layers, at least 1.
        features: numbers that an update is compressed to at most, at least 1.
        pool: updates of auxiliary images that are held at a time, at least 1; every fourth step replaces 64 of them.
        tolerance: flat is a curve whose last doubling of the steps brought less than this, relative.
    """

    name: ClassVar[str] = "learning_to_invert"
    needs: ClassVar[ThreatModel] = ThreatModel(labels=False, auxiliary_data=True, defense_algorithm=True)
    adaptive: ClassVar[bool] = True
    inverse: ClassVar[None] = None

    steps: int = 3000
    width: int = 512
    features: int = 512
    pool: int = 2048
    tolerance: float = 0.03

    def __post_init__(self) -> None:
        whole(self.name, most=MOST_STEPS, steps=(self.steps, 1))
        whole(self.name, most=8192, width=(self.width, 1), features=(self.features, 1))
        whole(self.name, most=1_000_000, pool=(self.pool, 1))
        above_zero(self.name, tolerance=self.tolerance)

    def run(self, observations: Sequence[Observation], knowledge: Knowledge, earlier: Earlier) -> list[Reconstruction]:
        """See `Attack.run`."""
        surrogates = [knowledge.preparation(observation.client).surrogate for observation in observations]
        groups: dict[tuple[object, ...], list[int]] = {}
        for at, (seen, surrogate) in enumerate(zip(observations, surrogates, strict=True)):
            # What one client's reader learns must not depend on who else is attacked.
            update = seen.update
            key = (id(seen.weights), id(surrogate), seen.batch_size, update.local_steps, update.learning_rate)
            groups.setdefault(key, []).append(at)
        images: dict[int, Tensor] = {}
        for group in groups.values():
            some = [observations[at] for at in group]
            clients = OwnClients(some[0], surrogates[group[0]], knowledge)
            images.update(zip(group, self._read(some, clients), strict=True))
        found = [
            Reconstruction(images[at], paired(images[at], labels_of(seen, knowledge), seen, knowledge), 0.0)
            for at, seen in enumerate(observations)
        ]
        losses = misfit(observations, found, knowledge)
        return [replace(one, loss=loss) for one, loss in zip(found, losses, strict=True)]

    def _read(self, observations: Sequence[Observation], clients: OwnClients) -> Tensor:
        """(V, B, C, H, W) what a reader that is trained for these weights makes of the updates."""
        knowledge = clients.knowledge
        stream = torch_stream(knowledge.seed, self.name)
        training, held_out = hold_out(knowledge.auxiliary_images(), stream)
        lesson = _Lesson(clients, training, mirrors(training), self.features, stream)
        pool = [lesson.draw(min(TOGETHER, self.pool - begin)) for begin in range(0, self.pool, TOGETHER)]
        features, originals = (torch.cat(part) for part in zip(*pool, strict=True))
        size = clients.like.batch_size
        seen, truth = lesson.make(*_batches(held_out, size, BATCH, stream))
        reader = seeded(lambda: Reader(features.shape[1], training, size, self.width), stream)
        reader = reader.to(knowledge.device)
        step = 0

        def loss(module: Reader) -> Tensor:
            nonlocal step
            step += 1
            if step % EVERY == 0:
                new = (step // EVERY * TOGETHER + torch.arange(min(TOGETHER, len(features)))) % len(features)
                features[new], originals[new] = lesson.draw(len(new))
            chosen = torch.randint(len(features), (BATCH,), generator=stream).to(features.device)
            return assigned_error(module(features[chosen]), originals[chosen])

        trained = train_until_flat(
            reader,
            loss,
            lambda module: float(assigned_error(module(seen).clamp(0, 1), truth)),
            steps=self.steps,
            tolerance=self.tolerance,
            learning_rate=LEARNING_RATE,
            optimizer=Adam,
        )
        observed = [target_gradient(observation.update) for observation in observations]
        stacked = {name: torch.stack([one[name] for one in observed]).to(knowledge.device) for name in observed[0]}
        with torch.no_grad():
            images: Tensor = trained.module(lesson.features(entries(stacked))).clamp(0, 1).cpu()
        return images


class _Lesson:
    """Where updates and the images behind them come from.

    Args:
        clients: that the attacker plays.
        images: to make updates of.
        mirrored: see `varied`.
        most: features.
        stream: of all that is drawn.
    """

    def __init__(
        self, clients: OwnClients, images: Images, mirrored: Sequence[int], most: int, stream: torch.Generator
    ) -> None:
        self._clients, self._images, self._mirrored, self._stream = clients, images, mirrored, stream
        pairs: list[tuple[Tensor, Tensor]] = []
        for _ in range(0, 2 * most, TOGETHER):
            x, y = self._varied(TOGETHER)
            pairs.append((entries(clients.send(x, y, stream)), entries(clients.send(x, y, stream))))
        first, second = (torch.cat(part) for part in zip(*pairs, strict=True))
        self.features = UpdateFeatures.fit(first, second, most)

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Return features (n, f) of new updates, and the images (n, B, C, H, W) behind them."""
        return self.make(*self._varied(count))

    def make(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of updates of x (n, B, C, H, W) with labels y (n, B), and x on the same device."""
        features = self.features(entries(self._clients.send(x, y, self._stream)))
        return features, x.to(features.device)

    def _varied(self, count: int) -> tuple[Tensor, Tensor]:
        x, y = _batches(self._images, self._clients.like.batch_size, count, self._stream)
        return varied(x.flatten(0, 1), self._stream, mirrored=self._mirrored).view(x.shape), y


class Reader(nn.Module):
    """From features of updates to images: a linear map and a perceptron side by side, which start at the mean image.

    Args:
        features: numbers that an update is compressed to.
        images: whose mean is the start.
        batch_size: B.
        width: of the hidden layers.
    """

    def __init__(self, features: int, images: Images, batch_size: int, width: int) -> None:
        super().__init__()
        self.shape = (batch_size, *images.shape)
        pixels = torch.Size(self.shape).numel()
        self.straight = nn.Linear(features, pixels)
        last = nn.Linear(width, pixels)
        self.bent = nn.Sequential(nn.Linear(features, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), last)
        for layer in (self.straight, last):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.straight.bias.copy_(images.floats().mean(dim=0).flatten().repeat(batch_size))
            if batch_size > 1:
                # Places that are all alike would learn all the same.
                nn.init.normal_(self.straight.weight, std=0.01 / features**0.5)

    def forward(self, features: Tensor) -> Tensor:
        """(n, f) to (n, B, C, H, W)."""
        images: Tensor = self.straight(features) + self.bent(features)
        return images.view(-1, *self.shape)


def assigned_error(found: Tensor, truth: Tensor) -> Tensor:
    """Return the mean squared error of (n, B, C, H, W) batches, each in the order that fits it best."""
    count, size = truth.shape[:2]
    if size > 1:
        from scipy.optimize import (
            linear_sum_assignment,
        )  # takes seconds to load, and most audits have one image per update

        costs = torch.cdist(truth.flatten(2), found.detach().flatten(2)).square().cpu().numpy()
        order = torch.stack([torch.as_tensor(linear_sum_assignment(cost)[1]) for cost in costs]).to(found.device)
        found = found[torch.arange(count, device=found.device)[:, None], order]
    return (found - truth).square().mean()


def _batches(images: Images, size: int, count: int, stream: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw (n, B, C, H, W) images with labels (n, B)."""
    x, y = images.batch(torch.randint(len(images), (count * size,), generator=stream))
    return x.view(count, size, *images.shape), y.view(count, size)
