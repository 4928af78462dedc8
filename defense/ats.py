"""Transformations that are searched for: hard to invert, easy to learn from (Gao et al. 2021, arXiv 2011.12505)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedveil.defense.base import DEFENSES, Defense, DefenseContext, PreparedDefense, Surrogate, TrainedOn
from fedveil.defense.checks import whole
from fedveil.defense.transforms import TRANSFORMS, applied
from fedveil.fl.data.images import Images
from fedveil.fl.errors import SettingError
from fedveil.fl.models import build_model
from fedveil.fl.seeding import derive_seed, torch_stream

Policy = tuple[str, ...]
PLACES = 10
"""Images between a random one and the true one at which gradients are compared."""
_LEAST = 1e-5


@DEFENSES.register("ats")
@dataclass(frozen=True, kw_only=True)
class ATS(Defense[tuple[Policy, ...]]):
    """Train on images that passed a few transformations, of which a search on public images has found the best rows.

    Automatic transformation search. Of ``candidates`` random rows (policies) the ``accurate`` share is kept that scores
    best in what can be learnt from it, and of those the ``policies`` whose gradients lead an inversion worst. In training
    each image passes one of them, drawn anew each time; images that a finished model is asked about stay as they are.

    Both scores take a network with first weights. *Accuracy* (section 4.2, from search of architectures without training):
    minus the mean of log(s) + 1 / s over the eigenvalues s of the correlation of the logits' slopes by different images.
    *Privacy* (section 4.1): how alike the gradients of a transformed image and of images on the way to it from a random one
    are, mean over the way; where they are alike early, an inversion is led to it.

    The authors try 1,500 policies of 50 transformations, take a threshold for the accuracy that was set for one data set
    and batch, for which a share stands here, and score the privacy on a network that was trained for a while.

    Attributes:
        length: transformations in a row, at least 1.
        candidates: rows that are tried, at least 1.
        accurate: share of them that is kept for its accuracy, above 0 and at most 1.
        policies: rows in use, at least 1, of those that are kept; fewer where candidates are drawn twice.
        scored: public images on which a row is scored, at least 2.
    """

    dial: ClassVar[str] = "length"

    length: int = 3
    candidates: int = 40
    accurate: float = 0.5
    policies: int = 3
    scored: int = 8

    def __post_init__(self) -> None:
        whole(
            "ats",
            length=(self.length, 1),
            candidates=(self.candidates, 1),
            policies=(self.policies, 1),
            scored=(self.scored, 2),
        )
        if not 0 < self.accurate <= 1:
            raise SettingError("ats", "accurate", self.accurate, "it has to be above 0 and at most 1")
        if self.policies > self._kept(self.candidates):
            rule = f"of {self.candidates} candidates {self._kept(self.candidates)} are kept for their accuracy"
            raise SettingError("ats", "policies", self.policies, rule)

    def _kept(self, tried: int) -> int:
        return max(1, round(self.accurate * tried))

    @property
    def hooks(self) -> frozenset[str]:
        """See `Defense.hooks`."""
        return frozenset({"data"})

    @property
    def trained_on(self) -> TrainedOn:
        """Policies are searched on public images."""
        return TrainedOn.PUBLIC

    def pretrain(self, context: DefenseContext) -> tuple[Policy, ...]:
        """Search."""
        seed = derive_seed(context.seed, "ats")
        stream = torch_stream(seed, "candidates")
        names = list(TRANSFORMS)
        drawn = torch.randint(len(names), (self.candidates, self.length), generator=stream).tolist()
        tried = list(dict.fromkeys(tuple(names[at] for at in row) for row in drawn))
        x, y = context.public.batch(torch.randperm(len(context.public), generator=stream)[: self.scored])
        x, y = x.to(context.device), y.to(context.device)
        model = build_model(context.model, seed).to(context.device).eval()
        accuracies = [accuracy_score(model, applied(policy, x)) for policy in tried]
        order = sorted(range(len(tried)), key=lambda at: -accuracies[at])
        kept = order[: self._kept(len(tried))]
        start = torch.rand(x.shape, generator=stream).to(x)
        leaks = {at: privacy_score(model, applied(tried[at], x), y, start) for at in kept}
        return tuple(tried[at] for at in sorted(kept, key=lambda at: leaks[at])[: self.policies])

    def prepare(
        self, private: Images, context: DefenseContext, public: tuple[Policy, ...], *, client: int
    ) -> PreparedDefense:
        """Put the policies to work; the client's images teach it nothing."""
        return PreparedATS(public)


@dataclass(frozen=True)
class PreparedATS(PreparedDefense):
    """Transforms: the same for all clients.

    Attributes:
        policies: rows of names.
    """

    policies: tuple[Policy, ...]

    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        """See `fedveil.fl.hooks.ClientHooks.data`; at test time, without labels, nothing is transformed."""
        return x if y is None else self.training(x, y, stream)

    def training(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        """Return what is trained on instead of ``x``, whether or not the labels are known."""
        which = (torch.rand((len(x), 1), generator=stream)[:, 0] * len(self.policies)).long()
        found = torch.empty_like(x)
        for number, policy in enumerate(self.policies):
            own = (which == number).to(x.device)
            if own.any():
                found[own] = applied(policy, x[own])
        return found

    def surrogate(self) -> Surrogate:
        """The policies: an attacker draws from them, and learns to undo what several draws show of an image."""
        return Surrogate(data=self.training)


def accuracy_score(model: nn.Module, x: Tensor) -> float:
    """Return how differently a network answers to different images (n, C, H, W); higher is easier to learn."""
    x = x.clone().requires_grad_(True)
    with torch.enable_grad():
        (slopes,) = torch.autograd.grad(model(x).sum(), x)
    slopes = slopes.flatten(1).double()
    slopes = slopes - slopes.mean(1, keepdim=True)
    slopes = slopes / slopes.norm(dim=1, keepdim=True).clamp_min(1e-30)
    values = torch.linalg.eigvalsh(slopes @ slopes.T).clamp_min(0) + _LEAST
    return -float((values.log() + 1 / values).mean())


def privacy_score(model: nn.Module, x: Tensor, y: Tensor, start: Tensor) -> float:
    """Return how alike gradients are on the way to images, mean over way and images; lower leads an inversion less.

    Args:
        model: whose gradient.
        x: (n, C, H, W), the images that are trained on.
        y: (n,) their labels.
        start: (n, C, H, W), where an inversion begins.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]

    def direction(image: Tensor, label: Tensor) -> Tensor:
        with torch.enable_grad():
            loss = F.cross_entropy(model(image[None]), label[None])
            found = torch.autograd.grad(loss, weights, materialize_grads=True)
        return F.normalize(torch.cat([one.flatten() for one in found]), dim=0)

    alike = []
    for image, label, begin in zip(x, y, start, strict=True):
        sent = direction(image, label)
        for at in range(PLACES):
            share = (at + 0.5) / PLACES
            alike.append(float(sent @ direction((1 - share) * begin + share * image, label)))
    return sum(alike) / len(alike)
