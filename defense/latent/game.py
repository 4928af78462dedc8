"""The game of the shared image: it is to be like its group, and of little use to whoever rebuilds the group from it.

    delta_G = argmin  utility_weight * mismatch - privacy_weight * min(mean_{i in G} MSE(A(x'_G), x_i) / baseline, 1)

The adversary A is a learnt inverse of the audit's own family, told the label. It may know no private image, or x'_G would
depend on images outside of its group: it is trained on groups of public images, in turn with the images that these groups
get. Beside it stands the error of an attacker that starts afresh: the defender may have learnt to fool just this one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedveil.defense.base import DefenseContext
from fedveil.defense.devices import on_device
from fedveil.defense.fitting import frozen
from fedveil.defense.inverse.learnt import InverseTraining, LearntInverse, train_inverse
from fedveil.defense.inverse.lessons import RehearsedLessons
from fedveil.defense.inverse.network import UNTOLD, InverseNetwork
from fedveil.defense.inverse.variation import varied
from fedveil.defense.latent.grouping import Grouping
from fedveil.fl.augmentation import augment
from fedveil.fl.cache import State, cached, fingerprint
from fedveil.fl.data.images import Images
from fedveil.fl.progress import doing
from fedveil.fl.until_flat import held_out

ROUNDS = 3
"""Times that the adversary is trained, each time on what was learnt against the last one; the first time on what was learnt
against none."""
SETS = 4
"""Sets that the public images are grouped in, each round."""
SHARE = 0.6
"""The part of a class's public images that is in each set: who is with whom changes, and the others are to start from."""
MOST = 320
"""Images in a set, at most: it bounds what a round costs."""
TRAINING = InverseTraining()
"""How the adversary, and the attacker that starts afresh, are trained: as attackers are by default."""


@dataclass(frozen=True, eq=False)
class Adversary:
    """The adversary at the end of the game.

    Attributes:
        network: frozen, on the CPU.
        classes: (m,) that it has met; of others it is not told the label.
        baseline: MSE of guessing the class mean, on public images: what it is worth to rebuild nothing.
        error: its own MSE on held-out public images whose groups' images were learnt against it.
        fresh_error: that of an inverse trained from new weights on the same groups.
    """

    network: InverseNetwork
    classes: Tensor
    baseline: float
    error: float
    fresh_error: float

    def diagnostics(self) -> dict[str, float]:
        """How strong it is: its error in units of a fresh attacker's, and that one's in units of the baseline."""
        return {"adversary_gap": self.error / self.fresh_error, "adversary_error": self.fresh_error / self.baseline}


@dataclass(frozen=True, eq=False)
class Stake:
    """What the adversary's error on groups' originals is worth.

    The mean over a group of MSE(A(x'), x) is MSE(A(x'), mean of the group) plus the group's scatter about that mean: again
    of the originals no more than sums over the group are used.

    Attributes:
        adversary: in the game.
        means: (G, C, H, W) of the groups' originals.
        scatters: (G,) mean square of the originals about these, per pixel.
        labels: (G,) the groups' classes.
    """

    adversary: Adversary
    means: Tensor
    scatters: Tensor
    labels: Tensor

    @classmethod
    def of(cls, images: Images, grouping: Grouping, adversary: Adversary) -> Stake:
        """Return it for groups of images."""
        x = images.floats().double()
        means = grouping.means(x)
        scatters = (grouping.means(x.square()) - means.square()).mean((1, 2, 3))
        return cls(adversary, means.float(), scatters.float(), grouping.labels(images.labels))

    def __call__(self, shown: Tensor, at: Tensor) -> Tensor:
        """Return (b,) errors in units of the baseline, at most 1.

        Args:
            shown: (b, C, H, W) in [0, 1], images of groups.
            at: (b,) which groups.
        """
        labels = self.labels[at]
        told = torch.where(torch.isin(labels, self.adversary.classes), labels, UNTOLD).to(shown.device)
        rebuilt = on_device(self.adversary.network, shown.device)(shown[None], told)
        wrong = (rebuilt - self.means[at].to(shown.device)).square().mean((1, 2, 3))
        found: Tensor = (wrong + self.scatters[at].to(shown.device)) / self.adversary.baseline
        return found.clamp(max=1)


Learn = Callable[[Images, Grouping, Adversary | None, Tensor, torch.Generator], Tensor]
"""Learns the image of each group, (G, C, H, W) uint8, against an adversary or none, from those public images that a mask
(G, m) allows to start from."""


def play(
    context: DefenseContext, key: object, group: Callable[[Images], Grouping], learn: Learn, *, k: int
) -> Adversary:
    """Play the game on public images, or take its end from the context's cache.

    Args:
        context: its public images, device, seed and cache are used.
        key: whatever else decides; its ``repr`` is looked at.
        group: groups images.
        learn: learns the groups' images.
        k: least images of a group.
    """
    network = InverseNetwork(context.public.shape, classes=context.model.classes, width=TRAINING.width, several=False)

    def train() -> State:
        found = _played(context, group, learn, k)
        numbers = torch.tensor([found.baseline, found.error, found.fresh_error], dtype=torch.float64)
        return {"numbers": numbers, "classes": found.classes, **found.network.state_dict(prefix="network.")}

    whole = ("game", repr(key), TRAINING, context.seed, fingerprint(context.public), context.model)
    state = cached(context.cache, (*whole, context.augmentation, context.device.type), train)
    weights = {name.removeprefix("network."): value for name, value in state.items() if name.startswith("network.")}
    network.load_state_dict(weights)
    return Adversary(frozen(network), state["classes"], *state["numbers"].tolist())


def _played(context: DefenseContext, group: Callable[[Images], Grouping], learn: Learn, k: int) -> Adversary:
    public, device, stream = context.public, context.device, context.stream("game")
    baseline, held = guess_error(public), held_out(public, stream)

    def lessons(against: Adversary | None) -> RehearsedLessons:
        sets = [public_set(public, k, context.augmentation, stream) for _ in range(SETS)]
        rows = torch.cat([at for at, _ in sets])
        images = Images(torch.cat([one.pixels for _, one in sets]), public.labels[rows])
        grouping, allowed = Grouping(torch.zeros(0, dtype=torch.int64), k), []
        for at, one in sets:
            own = group(one)
            grouping = grouping.followed_by(own)
            # No group starts at one of its own images: a client's do not either.
            outside = ~torch.isin(torch.arange(len(public)), at)
            allowed.append(outside.expand(len(own), -1))
        became = learn(images, grouping, against, torch.cat(allowed), stream)[grouping.of]
        return RehearsedLessons(
            images,
            became,
            held[rows],
            held_out=public.take(held.nonzero()[:, 0]),
            artefacts=TRAINING.artefacts,
            device=device,
        )

    def trained(shown: RehearsedLessons, begin: InverseNetwork | None) -> LearntInverse:
        classes = context.model.classes
        return train_inverse(shown, TRAINING, classes=classes, device=device, stream=stream, begin=begin)

    against: Adversary | None = None
    for number in range(ROUNDS):
        with doing(f"game, round {number + 1} of {ROUNDS}"):
            inverse = trained(lessons(against), None if against is None else against.network)
        against = Adversary(inverse.network, inverse.classes, baseline, 0.0, 0.0)
    assert against is not None
    with doing("game, an attacker from new weights"):
        last = lessons(against)
        fresh = trained(last, None)
    errors = [_error(network, last) for network in (against.network, fresh.network)]
    return Adversary(against.network, against.classes, baseline, *errors)


@torch.no_grad()
def _error(network: InverseNetwork, lessons: RehearsedLessons) -> float:
    originals, labels, seen = lessons.measured
    there = on_device(network, originals.device)
    wrong = [
        float((there(some, told).clamp(0, 1) - x).square().sum())
        for some, told, x in zip(seen.split(256, dim=1), labels.split(256), originals.split(256), strict=True)
    ]
    return max(1e-12, sum(wrong) / originals.numel())


def public_set(public: Images, k: int, augmentation: tuple[str, ...], stream: torch.Generator) -> tuple[Tensor, Images]:
    """Return a set of public images in place of a client's: which ones, (m,), and the images.

    Where that is fewer than ``k`` of a class, they are in it again in further views until there are k: varied by the
    federation's augmentation, and turned, scaled and shifted a little. Groups of that class then hold several views of an
    image, so that of fewer different ones than a client's groups do, and are the easier to rebuild.

    Args:
        public: at least one image.
        k: least images of a group.
        augmentation: see `fedveil.fl.augmentation`.
        stream: draws who is in it, and the views.
    """
    classes = public.labels.unique()
    most = max(k, MOST // len(classes))
    chosen: list[Tensor] = []
    again: list[Tensor] = []
    for label in classes:
        own = (public.labels == label).nonzero()[:, 0]
        own = own[torch.randperm(len(own), generator=stream)][: min(most, max(1, round(SHARE * len(own))))]
        chosen.append(own)
        again.append(own[torch.arange(max(0, k - len(own))) % len(own)])
    first, more = torch.cat(chosen), torch.cat(again)
    rows = torch.cat([first, more])
    if not len(more):
        return rows, public.take(rows)
    views = varied(augment(public.take(more).floats(), augmentation, stream), stream)
    pixels = torch.cat([public.pixels[first], (views * 255).round().to(torch.uint8)])
    return rows, Images(pixels, public.labels[rows])


def guess_error(images: Images) -> float:
    """Return the MSE of guessing for each image the mean of its class without it (of all others, where it is alone)."""
    x = images.floats().double()
    wrong = torch.zeros(len(x), dtype=torch.float64)
    for label in images.labels.unique():
        own = images.labels == label
        count = int(own.sum())
        if count > 1:
            wrong[own] = (x[own] - x[own].mean(0)).square().mean((1, 2, 3)) * (count / (count - 1)) ** 2
        elif len(x) > 1:
            wrong[own] = (x[own] - x[~own].mean(0)).square().mean((1, 2, 3))
    return max(1e-6, float(wrong.mean()))
