"""The networks whose features a learnt image has to match, and where in a network features are read.

Any classifier will do: its stages are found by watching one image pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedveil.defense.base import DefenseContext
from fedveil.defense.devices import on_device
from fedveil.defense.fitting import fit, frozen
from fedveil.fl.augmentation import augment
from fedveil.fl.cache import State, cached, fingerprint
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
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

_Hook = Callable[[nn.Module, Any, Any], None]
Read = Callable[[Images], Tensor]
"""Reads features (n, D) of n images, in which likeness is Euclidean distance."""


@dataclass(frozen=True)
class Stage:
    """Where features are read: at the last result of this size that a module gives.

    Attributes:
        module: its name in the network. One module may end several stages, such as a pooling that is used again.
        size: (h, w) of its result, or (D,).
    """

    module: str
    size: tuple[int, ...]


def stages_of(model: nn.Module, image_shape: tuple[int, int, int]) -> tuple[Stage, ...]:
    """Return where a network's stages end, from the image to the logits.

    A stage ends where the image is halved, or for a network without images inside, at each hidden layer: of the modules
    whose results have the same size in the end, the last one is taken.

    Args:
        model: a classifier.
        image_shape: (C, H, W).

    Raises:
        FedveilError: nothing inside the model gives features.
    """
    sizes: dict[tuple[int, ...], str] = {}

    def note(name: str) -> _Hook:
        def hook(module: nn.Module, args: Any, result: Any) -> None:
            if isinstance(result, Tensor) and result.ndim in (2, 4):
                sizes.pop(_size(result), None)
                sizes[_size(result)] = name

        return hook

    device = next(model.parameters()).device
    with ExitStack() as hooks, torch.no_grad():
        for name, module in model.named_modules():
            if name:
                hooks.callback(module.register_forward_hook(note(name)).remove)
        logits = model(torch.full((1, *image_shape), 0.5, device=device))
    no_features = {(logits.shape[1],), (math.prod(image_shape),)}  # the logits, and the image laid flat
    spatial = [Stage(name, size) for size, name in sizes.items() if len(size) == 2]
    flat = [Stage(name, size) for size, name in sizes.items() if len(size) == 1 and size not in no_features]
    if not (spatial or flat):
        raise FedveilError(
            f"model {type(model).__name__}: none of its modules gives features of images, so that similar images cannot be"
            " told; allowed: one with a hidden layer that is a module of its own, its result (n, C, h, w) or (n, D)"
        )
    return tuple(spatial or flat)


def _size(result: Tensor) -> tuple[int, ...]:
    return tuple(result.shape[2:]) if result.ndim == 4 else tuple(result.shape[1:])


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
        found: dict[Stage, Tensor] = {}
        modules = dict(self.model.named_modules())

        def note(stage: Stage) -> _Hook:
            def hook(module: nn.Module, args: Any, result: Any) -> None:
                if _size(result) == stage.size:
                    found[stage] = result.flatten(1)

            return hook

        with ExitStack() as hooks:
            for stage in self.stages:
                hooks.callback(modules[stage.module].register_forward_hook(note(stage)).remove)
            self.model(images)
        return [found[stage] for stage in self.stages]

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

    def readers(self, image_shape: tuple[int, int, int], device: torch.device) -> list[Features]:
        """Return all networks' features, on a device."""
        return [Features(on_device(network, device), image_shape) for network in self.networks]

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
    lengths = [round(SHORTEST * (LONGEST / SHORTEST) ** (at / max(1, trained - 1))) for at in range(trained)]
    if trained == 1:
        lengths = [LONGEST]
    # Numbered from the longest-trained one: the judge is the same in a pool of any size.
    training = _Training(lengths)
    networks += [
        _trained(context, derive_seed(seed, "trained", trained - 1 - at), steps, training.of(at))
        for at, steps in enumerate(lengths)
    ]
    frozen_networks = tuple(frozen(network) for network in networks)
    return Pool(frozen_networks, tuple(_scales(network, context.public) for network in frozen_networks))


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
