"""Concealed samples: further images in each step whose gradient covers that of the client's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedveil.defense.base import DEFENSES, Defense, DefenseContext, PreparedDefense, Surrogate, TrainedOn
from fedveil.defense.checks import above_zero, at_least, whole
from fedveil.defense.hidden import untouched
from fedveil.fl.data.images import Images
from fedveil.fl.errors import SettingError
from fedveil.fl.hooks import mean_gradients
from fedveil.fl.stepping import Adam
from fedveil.fl.training import as_shares


@DEFENSES.register("concealed_samples")
@dataclass(frozen=True, kw_only=True)
class ConcealedSamples(Defense[None]):
    """Train on concealed samples beside the client's images, which look otherwise and send much the same gradient.

    After DCS^2 (Wu et al. 2024, arXiv 2209.05724) and its published code. Each image x of class y gets ``count`` concealed
    ones c of the label ``share`` y_s + (1 - ``share``) y, that begin as the same mix of x and of a public image of another
    class y_s. In every step they are moved, so that the concealed ones' mean gradient g_c gets near that of the batch, g,
    while they get far from its images and keep to its logits f: Adam lowers

        1 - cos(g_c, g) + mean exp(-``distance`` |c - x|) + ``logits`` mean |f(c) - f(x)| / |f(x)|.

    The step goes along the mean gradient of all of them, unless that points away from g: then along what is left of it
    when its part along g is taken off (as A-GEM does, Chaudhry et al. 2019, arXiv 1812.00420; the authors solve the
    quadratic program of GEM with a margin). So a step never undoes, to first order, what the batch alone would do.

    It departs from the code in this: g_c is that of the label that is trained on, where the code takes y_s; pixels stay in
    [0, 1]; there are far fewer steps, since here every batch of every client is covered, and not a few images of one; the
    mean is over all images, which changes the step's length alone.

    Attributes:
        count: concealed images for each image, at least 1.
        share: of the other class, above 0 and below 1; 0.7 in the authors' scripts.
        steps: of Adam, at least 1; 1,000 in the scripts.
        learning_rate: of Adam, in pixels' units, above 0.
        distance: how fast the reward of being far ends, per unit of |c - x|, at least 0. It is 0.01 in the scripts, whose
            images are normalised and some four times as long.
        logits: weight of keeping to the logits, at least 0; 0.01 in the scripts.
    """

    dial: ClassVar[str] = "share"

    count: int = 1
    share: float = 0.7
    steps: int = 10
    learning_rate: float = 0.03
    distance: float = 0.04
    logits: float = 0.01

    def __post_init__(self) -> None:
        whole("concealed_samples", most=100, count=(self.count, 1))
        whole("concealed_samples", most=100_000, steps=(self.steps, 1))
        if not 0 < self.share < 1:
            raise SettingError("concealed_samples", "share", self.share, "it has to be above 0 and below 1")
        above_zero("concealed_samples", learning_rate=self.learning_rate)
        at_least("concealed_samples", distance=(self.distance, 0), logits=(self.logits, 0))

    @property
    def hooks(self) -> frozenset[str]:
        """See `Defense.hooks`."""
        return frozenset({"batch", "gradients"})

    @property
    def trained_on(self) -> TrainedOn:
        """Public images are all that it holds."""
        return TrainedOn.PUBLIC

    def prepare(self, private: Images, context: DefenseContext, public: None, *, client: int) -> PreparedDefense:
        """Put it to work with public images to begin at; the client's images teach it nothing beforehand."""
        return PreparedConcealment(self, context.public, context.model.classes)


@dataclass(frozen=True)
class PreparedConcealment(PreparedDefense):
    """Conceals: the same for all clients.

    Attributes:
        settings: say how.
        public: images to begin at.
        classes: k.
    """

    settings: ConcealedSamples
    public: Images = field(repr=False)
    classes: int

    def batch(self, model: nn.Module, x: Tensor, y: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """See `fedveil.fl.hooks.ClientHooks.batch`; behind the batch its concealed images in its order, ``count`` times."""
        settings, labels = self.settings, as_shares(y, self.classes)
        many, shares = x.repeat(settings.count, 1, 1, 1), labels.repeat(settings.count, 1)
        starts, theirs = self._starts(shares.argmax(1), stream)
        mixed = settings.share * starts.to(x) + (1 - settings.share) * many
        shares = settings.share * theirs.to(shares) + (1 - settings.share) * shares
        with untouched(model), torch.enable_grad():
            hidden = self._concealed(model, mixed, shares, many, covered(model, x, labels))
        return torch.cat([x, hidden]), torch.cat([labels, shares])

    def _starts(self, classes: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """Public images, each of another class than it is to conceal, and their labels as shares."""
        # Where all public images are of one class there is no other.
        others = (self.public.labels != classes.cpu()[:, None]).float()
        at = torch.multinomial(torch.where(others.any(1, keepdim=True), others, 1.0), 1, generator=stream)[:, 0]
        pixels, labels = self.public.batch(at)
        return pixels, as_shares(labels, self.classes)

    def _concealed(self, model: nn.Module, begin: Tensor, shares: Tensor, x: Tensor, cover: Tensor) -> Tensor:
        settings = self.settings
        with torch.no_grad():
            answers = model(x)
        moved = begin.clone().requires_grad_(True)
        optimizer = Adam([moved], learning_rate=settings.learning_rate)
        for _ in range(settings.steps):
            logits = model(moved)
            gradient = _flat(torch.autograd.grad(F.cross_entropy(logits, shares), _trained(model), create_graph=True))
            # One more than nothing in the root: where c is x, a norm has no slope.
            far = ((moved - x).flatten(1).square().sum(1) + 1e-12).sqrt()
            off = (logits - answers).norm(dim=1) / answers.norm(dim=1).clamp_min(1e-12)
            value = 1 - F.cosine_similarity(gradient, cover, dim=0) + (-settings.distance * far).exp().mean()
            moved.grad = torch.autograd.grad(value + settings.logits * off.mean(), moved)[0]
            optimizer.step()
            with torch.no_grad():
                moved.clamp_(0, 1)
        return moved.detach()

    def gradients(
        self, loss: Tensor, model: nn.Module, x: Tensor, y: Tensor, expected: int, stream: torch.Generator
    ) -> tuple[Tensor, ...]:
        """See `fedveil.fl.hooks.ClientHooks.gradients`: not against that of the images which are not concealed ones."""
        found = mean_gradients(loss, model)
        # Labels of concealed images alone are shared.
        own = y.amax(1) == 1 if y.is_floating_point() else torch.ones_like(y, dtype=torch.bool)
        if bool(own.all()) or not bool(own.any()):
            return found
        with untouched(model):
            reference = mean_gradients(F.cross_entropy(model(x[own]), y[own]), model)
        along, size = (
            sum((a * b).sum() for a, b in zip(reference, other, strict=True)) for other in (found, reference)
        )
        if along >= 0:
            return found
        return tuple(g - along / size * r for g, r in zip(found, reference, strict=True))

    def surrogate(self) -> Surrogate:
        """How they are made, from the public images that everybody holds.

        What a step does against a mean gradient that points away from the batch's is left out: the concealed ones' gradient
        is made to lie along it.
        """
        return Surrogate(batch=self.batch)


def covered(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient (P,) of the mean cross-entropy of images (n, C, H, W) with shares (n, k) by what is trained."""
    return _flat(torch.autograd.grad(F.cross_entropy(model(x), labels), _trained(model))).detach()


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _flat(gradients: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients])
