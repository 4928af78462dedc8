"""Learning the image that stands for a group: its features equal the group's mean features, in many networks.

Distribution matching (Zhao and Bilen 2023, arXiv 2110.04181, eq. 5) for one group and one image: random networks alone say
how images are told apart in general, networks trained on public images what matters for this task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from fedveil.defense.latent.game import Stake
from fedveil.defense.latent.pool import Features, filled
from fedveil.defense.latent.space import Space
from fedveil.defense.latent.targets import Means
from fedveil.fl.data.images import Images
from fedveil.fl.progress import Pace
from fedveil.fl.stepping import Adam, half_cosine

TOGETHER = 32
"""Groups whose images are learnt together: their features fit the caches, and few places are filled with repeats."""


@dataclass(frozen=True)
class Matching:
    """How an image is learnt.

    Attributes:
        steps: of Adam, each against one network of the pool, at least 0.
        learning_rate: at the start, in units of the space (`fedveil.defense.latent.space.Space.unit`); falls to 0 along
            half a cosine.
        strength: how far it may go from its start in that space, root mean square, in units of that of the start.
        start: where it begins: at a ``public`` image or the group's ``mean``.
        utility_weight: weight of the mismatch.
        privacy_weight: weight of the adversary's error (`fedveil.defense.latent.game`), where there is one.
        spread: how far what is matched lies from its class's mean on public images, as a multiple of how far the group's
            mean features lie. Means of groups scatter less than images do, and a classifier that is trained on them never
            meets what lies between the classes; above 1 makes up for that. Of private images it takes no more than the mean.
    """

    steps: int
    learning_rate: float
    strength: float
    start: Literal["public", "mean"] = "public"
    spread: float = 1.0
    utility_weight: float = 1.0
    privacy_weight: float = 0.0


def public_starts(
    features: Tensor, labels: Tensor, public: Images, judge: Features, allowed: Tensor | None = None
) -> Images:
    """Return for each of G groups the public image of its class that is most like it.

    Begun there, the image shows of its group what is matched, and nothing else.

    Args:
        features: (G, D) the groups' mean features in the judge's deepest stage.
        labels: (G,) their classes.
        public: at least one image; of a class that it lacks, the image may be of any.
        judge: reads features.
        allowed: (G, m) bool, which of the public images may start which group; None for all.
    """
    own = judge.of(public)[-1]
    # Pair by pair: products of whole matrices would round each by what else is there.
    distances = torch.cdist(features, own, compute_mode="donot_use_mm_for_euclid_dist")
    alike = labels[:, None] == public.labels[None]
    if allowed is not None:
        alike = torch.where((alike & allowed).any(1, keepdim=True), alike & allowed, allowed)
    alike |= ~alike.any(1, keepdim=True)
    return public.take(distances.masked_fill(~alike, torch.inf).argmin(1))


def condense(
    targets: Means,
    starts: Tensor,
    readers: Sequence[Features],
    scales: Sequence[Sequence[float]],
    how: Matching,
    *,
    space: Space,
    stake: Stake | None,
    device: torch.device,
    stream: torch.Generator,
) -> Tensor:
    """Return the image of each group, (G, C, H, W) uint8.

    Each is a function of its start, its target, its stake and the networks alone, to the last bit.

    Args:
        targets: what each network should see, at each of its stages that is matched.
        starts: (G, ...) places in the space.
        readers: of each network.
        scales: of each network and stage, the unit of the mismatch.
        how: how long, how far.
        space: where images are learnt.
        stake: the groups' part in the game; None for no game.
        device: where.
        stream: draws the order of the networks, the same for all groups.
    """
    count = len(starts)
    if count == 0:
        return to_bytes(space.shown(starts))
    order = torch.cat([torch.randperm(len(readers), generator=stream) for _ in range(1 + how.steps)])
    learnt: list[Tensor] = []
    pace = Pace()

    def stepped(step: int) -> None:
        done = TOGETHER * len(learnt)
        share = (done + step / how.steps * min(TOGETHER, count - done)) / count
        pace.say(share, f"learnt {done} of {count} group images")

    for at in torch.arange(count).split(TOGETHER):
        # Always as many: how a sum is rounded may depend on the batch, and Adam makes much of a last bit.
        full = filled(at, TOGETHER)
        own = [[stage[full].to(device) for stage in stages] for stages in targets]
        loss = partial(_loss, own, readers, scales, how, None if stake is None else partial(stake, at=full))
        found = _match(starts[full].to(device), loss, how, space, order[: how.steps].tolist(), stepped)
        learnt.append(found[: len(at)].cpu())
    return to_bytes(torch.cat(learnt))


def _loss(
    targets: Means,
    readers: Sequence[Features],
    scales: Sequence[Sequence[float]],
    how: Matching,
    wrong: Callable[[Tensor], Tensor] | None,
    shown: Tensor,
    at: int,
) -> Tensor:
    """The sum over images (b, C, H, W) in the network number ``at``: no image has a part in another's term."""
    terms = zip(readers[at](shown), targets[at], scales[at], strict=True)
    mismatch = torch.stack([(one - wanted).square().sum() / scale for one, wanted, scale in terms]).sum()
    if wrong is None:
        return how.utility_weight * mismatch
    return how.utility_weight * mismatch - how.privacy_weight * wrong(shown).sum()


def _match(
    starts: Tensor,
    loss: Callable[[Tensor, int], Tensor],
    how: Matching,
    space: Space,
    order: list[int],
    stepped: Callable[[int], None],
) -> Tensor:
    unit = space.unit(starts)
    delta = torch.zeros_like(starts, requires_grad=True)
    reach = how.strength * _size(starts) / unit
    adam = Adam([delta], learning_rate=how.learning_rate)
    for step, at in enumerate(order):
        (delta.grad,) = torch.autograd.grad(loss(space.shown(starts + unit * delta), at), [delta])
        adam.step(half_cosine(step, how.steps))
        with torch.no_grad():
            delta *= (reach / _size(delta).clamp_min(1e-12)).clamp(max=1)
            delta.copy_((space.kept(starts + unit * delta) - starts) / unit)
        stepped(step + 1)
    return space.shown(starts + unit * delta).detach()


def _size(places: Tensor) -> Tensor:
    return places.square().mean(tuple(range(1, places.ndim)), keepdim=True).sqrt()


def to_bytes(images: Tensor) -> Tensor:
    """(n, C, H, W) in [0, 1] to the nearest of 256 grey values, uint8."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)
