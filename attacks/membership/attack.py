"""Membership: did this very image take part in what a client trained on?

It is asked by an attacker that holds all x' of the client: the tier is `trained_images`, so inversion is taken to be
perfect, labels are known, and so is the defence. A candidate that took part lies nearer to some x' of its class than a
stranger does.

How much nearer, the attacker learns on shadow sets (Shokri et al. 2017, arXiv 1610.05820): it applies the defence to sets
of its own images, and compares those that are in a set with those that are not. Each statistic of a candidate counts as it
is, and less what it is on average in sets without the candidate, since some images lie near to everything (Watson et al.
2022, arXiv 2111.08440). A logistic regression joins them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fedveil.attacks.inverse.shared_law import SharedLaw
from fedveil.attacks.membership.score import MembershipScore, scored
from fedveil.defense.base import Rehearsal, Surrogate
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.seeding import derive_seed, torch_stream

SETS = ((0, 1), (2, 3), (0, 2), (1, 3))
"""Which quarters of the attacker's images are in each shadow set: each image is in at most two of them, and out of two."""
FEW = 20
"""A class with fewer shadow candidates is judged by what holds for all classes."""
DECAY = 1e-3
"""Of the logistic regression's weights, on standardised statistics."""
NEAREST = 1e-6
"""Mean squares of differences count as at least this: a quarter of a grey value of 256."""

Read = Callable[[Images], Tensor]
"""Images to features (n, D), on the CPU."""


def membership(
    trained: Images,
    members: Images,
    outsiders: Images,
    surrogate: Surrogate,
    auxiliary: Images,
    *,
    features: Read,
    law: SharedLaw | None = None,
    seed: int,
) -> MembershipScore:
    """Tell members from outsiders, and score how well.

    Args:
        trained: what one client trained on, with labels: each of its images once.
        members: images that took part.
        outsiders: images that did not, from the same source. Of each class as many are taken as of the members, and of
            these as many as of the outsiders.
        surrogate: the defence, as its owner hands it over.
        auxiliary: the attacker's images; neither members nor outsiders.
        features: of a network that knows no private image.
        law: see `fedveil.attacks.inverse.shared_law`; None does without.
        seed: of all draws.

    Raises:
        FedveilError: members and outsiders have no class in common, or the attacker's images are too few to try it out.
    """
    members, outsiders = _balanced(members, outsiders, torch_stream(seed, "membership", "balance"))
    candidates = Images(torch.cat([members.pixels, outsiders.pixels]), torch.cat([members.labels, outsiders.labels]))
    near = _Nearest(auxiliary, features, law)
    shadows = _shadows(trained, auxiliary, surrogate, torch_stream(seed, "membership", "shadows"))
    statistics = [near(became, auxiliary) for became, _ in shadows]
    rows, labels, inside = [], [], []
    for at, (_, within) in enumerate(shadows):
        # Where an image was in another set too, that set says nothing of what it is like to be out.
        out = [
            torch.where(other[:, None], torch.nan, found)
            for number, (found, (_, other)) in enumerate(zip(statistics, shadows, strict=True))
            if number != at
        ]
        rows.append(_with_reference(statistics[at], torch.stack(out)))
        labels.append(auxiliary.labels)
        inside.append(within)
    decide = _Decision.learnt(torch.cat(rows), torch.cat(labels), torch.cat(inside))
    references = torch.stack([near(became, candidates) for became, _ in shadows])
    scores = decide(_with_reference(near(trained, candidates), references), candidates.labels).numpy()
    return scored(scores[: len(members)], scores[len(members) :], seed=derive_seed(seed, "membership", "bootstrap"))


def _balanced(members: Images, outsiders: Images, stream: torch.Generator) -> tuple[Images, Images]:
    kept: tuple[list[Tensor], list[Tensor]] = ([], [])
    for label in members.labels.unique().tolist():
        own = [(images.labels == label).nonzero()[:, 0] for images in (members, outsiders)]
        count = min(map(len, own))
        for into, at in zip(kept, own, strict=True):
            into.append(at[torch.randperm(len(at), generator=stream)[:count]])
    chosen = [torch.cat(own) if own else torch.zeros(0, dtype=torch.int64) for own in kept]
    if not len(chosen[0]):
        raise FedveilError(
            "membership: members and outsiders have no class in common; allowed: others of the same classes"
        )
    return members.take(chosen[0]), outsiders.take(chosen[1])


def _shadows(
    trained: Images, auxiliary: Images, surrogate: Surrogate, stream: torch.Generator
) -> list[tuple[Images, Tensor]]:
    """What the defence makes of each shadow set, and which of the attacker's images, (n,) bool, are in it.

    A set holds at most as many images of a class as the client: the more there are, the nearer the nearest.
    """
    order = torch.randperm(len(auxiliary), generator=stream)
    quarter = torch.empty_like(order)
    quarter[order] = torch.arange(len(order)) % 4
    held = trained.labels.bincount(minlength=int(auxiliary.labels.max()) + 1 if len(auxiliary) else 1)
    found = []
    for quarters in SETS:
        at = order[torch.isin(quarter[order], torch.tensor(quarters))]
        at = torch.cat([at[auxiliary.labels[at] == label][:most] for label, most in enumerate(held.tolist())])
        rehearsed = _rehearsed(auxiliary.take(at), surrogate, stream)
        within = torch.zeros(len(auxiliary), dtype=torch.bool)
        within[at[rehearsed.kept]] = True
        if not bool(within.any()):
            raise FedveilError(
                f"membership: of {len(at)} images of the attacker the defence keeps none, so that it cannot try it out;"
                " allowed: a larger data.auxiliary_fraction"
            )
        found.append((rehearsed.trained, within))
    return found


def _rehearsed(images: Images, surrogate: Surrogate, stream: torch.Generator) -> Rehearsal:
    if surrogate.rehearse is not None:
        return surrogate.rehearse(images, stream)
    if surrogate.data is None:
        return Rehearsal(torch.arange(len(images)), images)
    parts = [surrogate.data(*images.batch(at), stream) for at in torch.arange(len(images)).split(256)]
    return Rehearsal(torch.arange(len(images)), as_images(torch.cat(parts), images.labels))


def as_images(x: Tensor, labels: Tensor) -> Images:
    """Return images (n, C, H, W) in [0, 1] rounded to grey values of 8 bits."""
    return Images((x.cpu().clamp(0, 1) * 255).round().to(torch.uint8), labels)


@dataclass(frozen=True, eq=False)
class _Nearest:
    """How near candidates lie to what was trained on, in several ways.

    Attributes:
        auxiliary: whose features set the scale below which they count as equal.
        features: see `membership`.
        law: see `membership`.
    """

    auxiliary: Images
    features: Read
    law: SharedLaw | None

    def __call__(self, trained: Images, candidates: Images) -> Tensor:
        """Return (c, s) statistics, larger for nearer ones; nan where nothing of the class was trained on."""
        pixels = trained.pixels.flatten(1)
        _, first = pixels.unique(dim=0, return_inverse=True)
        once = torch.full((int(first.max()) + 1,), 0).scatter_(0, first, torch.arange(len(first)))
        trained = trained.take(once)
        x, seen = candidates.floats(), trained.floats()
        least = NEAREST * x[0].numel()
        found = [_two_nearest(-torch.cdist(seen.flatten(1), x.flatten(1)).square(), trained, candidates, least)]
        one, other = self.features(trained), self.features(candidates)
        scale = NEAREST * float(other.var(0).sum().clamp_min(1e-12)) if len(other) > 1 else NEAREST
        found.append(_two_nearest(-torch.cdist(one, other).square(), trained, candidates, scale))
        if self.law is not None:
            own = self.law(seen, x)
            found.append(_two_nearest(own, trained, candidates, 1e-3))
        return torch.cat(found, dim=1)


def _two_nearest(nearness: Tensor, trained: Images, candidates: Images, least: float) -> Tensor:
    """Return (c, 2): minus the log distance to the nearest x' of the class, and how much farther the second one is.

    Args:
        nearness: (t, c), minus squared distances.
        trained: the t images.
        candidates: the c images.
        least: squared distances count as at least so large.
    """
    other = trained.labels[:, None] != candidates.labels[None]
    squares = (-nearness).clamp_min(least).log().masked_fill(other, torch.inf)
    nearest = squares.topk(min(2, len(squares)), dim=0, largest=False).values
    first = -nearest[0]
    second = nearest[1] - nearest[0] if len(nearest) > 1 else torch.full_like(first, torch.nan)
    found = torch.stack([first, second], dim=1)
    return torch.where(found.isfinite(), found, torch.nan)


def _with_reference(found: Tensor, without: Tensor) -> Tensor:
    """Return (c, 2s): statistics (c, s) as they are, and less their mean over sets without the candidate, (r, c, s)."""
    return torch.cat([found, found - without.nanmean(0)], dim=1)


@dataclass(frozen=True, eq=False)
class _Decision:
    """A logistic regression on statistics that are standardised class by class.

    Attributes:
        centre: (k, s) of each class.
        spread: (k, s).
        weights: (s,).
    """

    centre: Tensor
    spread: Tensor
    weights: Tensor

    @classmethod
    def learnt(cls, statistics: Tensor, labels: Tensor, inside: Tensor) -> _Decision:
        """Learn it from shadow candidates, members and others counting alike."""
        classes = [statistics[labels == label] for label in range(int(labels.max()) + 1)]
        fitted = [_standards(own if len(own) >= FEW else statistics) for own in classes]
        decision = cls(torch.stack([c for c, _ in fitted]), torch.stack([s for _, s in fitted]), torch.zeros(0))
        x, y = decision._standardised(statistics, labels), inside.double()
        parameters = torch.zeros(x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
        balance = torch.where(inside, 0.5 / y.mean(), 0.5 / (1 - y).mean().clamp_min(1e-12))
        search = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            search.zero_grad()
            logits = x @ parameters[:-1] + parameters[-1]
            value = F.binary_cross_entropy_with_logits(logits, y, balance) + DECAY * parameters[:-1].square().sum()
            value.backward()
            return value

        search.step(loss)
        return cls(decision.centre, decision.spread, parameters.detach()[:-1])

    def __call__(self, statistics: Tensor, labels: Tensor) -> Tensor:
        """Return (c,) scores, larger for likelier members; classes that no shadow candidate had count as the last one."""
        return self._standardised(statistics, labels) @ self.weights

    def _standardised(self, statistics: Tensor, labels: Tensor) -> Tensor:
        at = labels.clamp(max=len(self.centre) - 1)
        return torch.nan_to_num((statistics.double() - self.centre[at]) / self.spread[at])


def _standards(rows: Tensor) -> tuple[Tensor, Tensor]:
    rows = rows.double()
    centre = torch.nan_to_num(rows.nanmean(0))
    spread = (rows - centre).square().nanmean(0).sqrt()
    return centre, torch.nan_to_num(spread, 1.0).clamp_min(1e-6)
