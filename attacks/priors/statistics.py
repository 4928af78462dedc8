"""BatchNorm statistics: the features of the right images have the means and variances that were seen.

Two sources tell them. The running statistics in the weights that the server sent are those of all clients' images (See
through Gradients, Yin et al. 2021). What the client sends back of its own buffers tells more: after a step with momentum m

    running' = (1 - m) running + m batch,

so the change gives the statistics of the victim's own batch, exactly after one step, and their mean over the steps, the
later ones weighing more, after several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.modules.batchnorm import _BatchNorm

from fedveil.attacks.base import Observation
from fedveil.attacks.target.model import TargetModel
from fedveil.attacks.target.problem import Problem, Tensors
from fedveil.defense.checks import at_least

_LEAST = 1e-5
"""Added to variances, as BatchNorm does by default."""


@dataclass(frozen=True, eq=False)
class BatchNormStatistics:
    """How far the features' batch statistics are from those that were seen.

    Mean over layers and channels of (mean - seen mean)^2 / seen variance, plus the same of standard deviations.

    Attributes:
        weight: of that mean, at least 0.
        model: the classifier.
        weights: its weights, (V, ...) each if ``own_weights``, otherwise shared by all victims.
        own_weights: each victim has weights of its own.
        means: seen means (V, channels) by layer.
        variances: seen variances likewise, unbiased as PyTorch tracks them.
    """

    weight: float
    model: TargetModel
    weights: Tensors
    own_weights: bool
    means: Tensors
    variances: Tensors

    def __post_init__(self) -> None:
        at_least("batch_norm_statistics", weight=(self.weight, 0))

    def __call__(self, x: Tensor) -> Tensor:
        """See `Prior`."""
        of_one = vmap(
            lambda x, weights: batch_statistics(self.model, weights, x), in_dims=(0, 0 if self.own_weights else None)
        )
        seen_by_layer = of_one(x, self.weights)
        terms = []
        for name, (mean, variance) in seen_by_layer.items():
            if name not in self.means:
                continue
            scale = self.variances[name].clamp_min(0) + _LEAST
            gap = (variance + _LEAST).sqrt() - scale.sqrt()
            terms.append((((mean - self.means[name]).square() + gap.square()) / scale).mean(dim=1))
        return self.weight * torch.stack(terms).mean(dim=0)

    def take(self, at: Tensor) -> BatchNormStatistics:
        """See `Prior`."""
        weights = {n: w[at] for n, w in self.weights.items()} if self.own_weights else self.weights
        means, variances = ({n: t[at] for n, t in one.items()} for one in (self.means, self.variances))
        return BatchNormStatistics(self.weight, self.model, weights, self.own_weights, means, variances)


def batch_statistics(model: TargetModel, weights: Mapping[str, Tensor], x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the mean and unbiased variance (channels,) of what enters each BatchNorm layer, by the layer's name.

    Args:
        model: the classifier.
        weights: by name.
        x: (B, C, H, W).
    """
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            features = args[0].transpose(0, 1).flatten(1)
            mean = features.mean(dim=1)
            count = max(1, features.shape[1] - 1)
            found[name] = (mean, (features - mean[:, None]).square().sum(dim=1) / count)

        return hook

    with _watched(model.module, note):
        model.logits(weights, x)
    return found


def seen_statistics(problem: Problem, observations: Sequence[Observation], weight: float) -> BatchNormStatistics | None:
    """Return the prior on what observations tell of their batches' statistics; None where they tell nothing.

    The victims' own statistics are used where every client sent its buffers and ran in train mode, and otherwise the
    running ones.

    Args:
        problem: of these observations.
        observations: of the V victims.
        weight: of the prior.
    """
    layers = {name: part for name, part in problem.model.module.named_modules() if isinstance(part, _BatchNorm)}
    means, variances = {}, {}
    for name, layer in layers.items():
        stems = [f"{name}.running_{what}" for what in ("mean", "var")]
        if not all(stem in one.weights for stem in stems for one in observations):
            continue
        momentum = layer.momentum if problem.model.mode == "train" else None
        own = momentum is not None and all(stem in one.update.buffers for stem in stems for one in observations)
        pair = []
        for stem in stems:
            seen = torch.stack([one.weights[stem] for one in observations])
            if momentum is not None and own:
                shares = torch.tensor([1 - (1 - momentum) ** one.update.local_steps for one in observations])
                seen = seen + torch.stack([one.update.buffers[stem] for one in observations]) / shares[:, None]
            pair.append(seen.to(problem.labels.device))
        means[name], variances[name] = pair
    if not means or weight == 0:
        return None
    return BatchNormStatistics(weight, problem.model, problem.weights, problem.own_weights, means, variances)


@contextmanager
def _watched(module: nn.Module, note: Callable[[str], Callable[..., None]]) -> Iterator[None]:
    """Hooks before the BatchNorm layers, for as long as this lasts."""
    handles = [
        part.register_forward_pre_hook(note(name))
        for name, part in module.named_modules()
        if isinstance(part, _BatchNorm)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
