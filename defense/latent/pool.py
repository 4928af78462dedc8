"""The networks whose features a learnt image has to match."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedveil.defense.base import DefenseContext
from fedveil.defense.devices import on_device
from fedveil.defense.fitting import fit, frozen
from fedveil.defense.hidden import features_at, stages_of
from fedveil.fl.augmentation import augment
from fedveil.fl.cache import State, cached, fingerprint
from fedveil.fl.data.images import Images
from fedveil.fl.models import build_model
from fedveil.fl.progress import Pace
from fedveil.fl.seeding import derive_seed, torch_stream
from fedveil.fl.sent_once import SentOnce

DEEPEST = 2
"""So many stages are matched, the deepest ones."""
SHORTEST, LONGEST = 10, 600
"""Steps on public images of the networks that are trained, spread evenly on a logarithmic scale."""
CHUNK = 128
"""Images whose features are read together."""

Read = Callable[[Images], Tensor]
"""Reads features (n, D) of n images, in which likeness is Euclidean distance."""


class Reads(Protocol):
    """What is matched of images: one or several vectors each."""

    def of(self, images: Images) -> list[Tensor]:
        """Return (n, D) per vector, on the CPU, of n images; those of one depend in no bit on the others."""


class Features:
    """Reads a network's features at its deepest stages.

    Args:
        model: frozen, on the device to compute on.
        image_shape: (C, H, W).
        deepest: so many stages.
    """

    def __init__(self, model: nn.Module, image_shape: tuple[int, int, int], deepest: int = DEEPEST) -> None:
        self.model = model
        self.stages = stages_of(model, image_shape)[-deepest:]

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Return (n, D) per stage, of images (n, C, H, W) in [0, 1]."""
        return features_at(self.model, images, self.stages)

    @torch.no_grad()
    def of(self, images: Images) -> list[Tensor]:
        """Return (n, D) per stage, on the CPU, of all images; those of one depend in no bit on the others."""
        device = next(self.model.parameters()).device
        parts: list[list[Tensor]] = [[] for _ in self.stages]
        for at in torch.arange(len(images)).split(CHUNK):
            # Always as many: how a sum is rounded may depend on the batch.
            found = self(images.batch(filled(at, CHUNK))[0].to(device))
            for own, stage in zip(parts, found, strict=True):
                own.append(stage[: len(at)].cpu())
        return [torch.cat(own) for own in parts]


def filled(at: Tensor, count: int) -> Tensor:
    """Return ``count`` positions: those ``at`` (b,), b at most ``count``, and repeats of them. None stay none."""
    return at[torch.arange(count) % len(at)] if len(at) else at


@dataclass(frozen=True, eq=False)
class Pool(SentOnce):
    """Networks that know nothing of private images: random ones, and ones trained on public images for a while.

    Attributes:
        networks: frozen, on the CPU; the trained ones last, the longest-trained at the end.
        scales: of each network and stage, how much features of public images scatter about their mean, summed over D. By it
            mismatches are comparable, and no private image has a part in another one's loss.
    """

    networks: tuple[nn.Module, ...]
    scales: tuple[tuple[float, ...], ...]

    @property
    def judge(self) -> nn.Module:
        """The network that says which images are similar: the one trained longest."""
        return self.networks[-1]

    def readers(
        self, image_shape: tuple[int, int, int], device: torch.device, deepest: int = DEEPEST
    ) -> list[Features]:
        """Return all networks' features at so many of their deepest stages, on a device."""
        return [Features(on_device(network, device), image_shape, deepest) for network in self.networks]

    def reader(self, image_shape: tuple[int, int, int], device: torch.device) -> Features:
        """Return the judge's features, by whose distance images are similar, on a device."""
        return Features(on_device(self.judge, device), image_shape, deepest=1)

    def similar(self, device: torch.device) -> Read:
        """Return what reads the judge's features, (n, D) on the CPU, of n images, on a device."""
        return partial(_judged, self, device)


def _judged(pool: Pool, device: torch.device, images: Images) -> Tensor:
    return pool.reader(images.shape, device).of(images)[0]


def make_pool(context: DefenseContext, *, random: int, trained: int) -> Pool:
    """Make a pool of networks of the federated architecture, or take the trained ones from the context's cache.

    Args:
        context: its public images train them, its seed draws them.
        random: networks with first weights.
        trained: networks trained on public images, for `SHORTEST` to `LONGEST` steps.
    """
    spec, seed = context.model, derive_seed(context.seed, "pool")
    networks = [build_model(spec, derive_seed(seed, "random", at)) for at in range(random)]
    lengths = lengths_of(trained)
    # Numbered from the longest-trained one: the judge is the same in a pool of any size.
    training = _Training(lengths)
    networks += [
        _trained(context, derive_seed(seed, "trained", trained - 1 - at), steps, training.of(at))
        for at, steps in enumerate(lengths)
    ]
    frozen_networks = tuple(frozen(network) for network in networks)
    return Pool(frozen_networks, tuple(_scales(network, context.public) for network in frozen_networks))


def lengths_of(trained: int) -> list[int]:
    """Return for how many steps of 64 images each of the trained networks is trained, from `SHORTEST` to `LONGEST`."""
    if trained == 1:
        return [LONGEST]
    return [round(SHORTEST * (LONGEST / SHORTEST) ** (at / (trained - 1))) for at in range(trained)]


class _Training:
    """How far the training of a pool is.

    Args:
        lengths: steps of each network.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self._lengths = lengths
        self._pace = Pace()
        self._done = 0

    def of(self, at: int) -> Callable[[], None]:
        """Return what is to be called after each step of the network numbered ``at``, the next one.

        Steps before it that were not taken are in the cache, and take no time.
        """
        total, steps, before = self._done + sum(self._lengths[at:]), self._lengths[at], self._done

        def stepped() -> None:
            self._done += 1
            text = f"pool: network {at + 1} of {len(self._lengths)}, step {self._done - before} of {steps}"
            self._pace.say(self._done / total, text)

        return stepped


def _trained(context: DefenseContext, seed: int, steps: int, stepped: Callable[[], None]) -> nn.Module:
    spec = context.model

    def train() -> State:
        stream = torch_stream(seed, "images")

        def loss(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(module(augment(x.cpu(), context.augmentation, stream).to(x.device)), y)

        return fit(
            lambda: build_model(spec, seed),
            context.public,
            loss,
            steps=steps,
            device=context.device,
            stream=stream,
            after_step=stepped,
        ).state_dict()

    network = build_model(spec, seed)
    key = ("pool", spec, seed, steps, context.augmentation, fingerprint(context.public), context.device.type)
    network.load_state_dict(cached(context.cache, key, train))
    return network


def _scales(network: nn.Module, public: Images) -> tuple[float, ...]:
    features = Features(network, public.shape).of(public)
    return tuple(max(1e-12, float((one - one.mean(0)).square().sum(1).mean())) for one in features)
