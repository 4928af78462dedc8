"""How much of the classes, and of single images, an attack on a released classifier has brought to light."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from fedveil.attacks.model_inversion.base import Inverted
from fedveil.attacks.model_inversion.released import ReleasedModel
from fedveil.attacks.scoring.judge import Judge, cached_judge
from fedveil.attacks.scoring.metrics import mse, psnr, ssim
from fedveil.attacks.scoring.quality import JudgeQuality
from fedveil.attacks.scoring.statistics import mean_ci
from fedveil.fl.data.images import Images

TOP = 5
"""The judge's so many likeliest classes count too, where there are twice as many."""


@dataclass(frozen=True, eq=False)
class InversionVictims:
    """The truth about whom an attack is measured on. No attack sees it.

    Attributes:
        members: private images that the classifier was trained on.
        outsiders: images of the same classes that it never saw; none at all leaves their scores out.
    """

    members: Images
    outsiders: Images

    @property
    def images(self) -> Tensor:
        """(v, C, H, W) in [0, 1], members first."""
        return torch.cat([self.members.floats(), self.outsiders.floats()])


@dataclass(frozen=True, eq=False)
class InversionScorer:
    """Scores what attacks return.

    Attributes:
        judge: trained on images that neither the classifier nor the attacker ever saw.
        quality: how well it reads untouched private images.
        classes: k.
    """

    judge: Judge
    quality: JudgeQuality
    classes: int

    def score(self, found: Inverted, victims: InversionVictims, target: ReleasedModel) -> dict[str, float]:
        """Return an attack's scores by name; what does not apply has none.

        ``attacker_accuracy`` is how often the judge reads the class that an image is to show (of rebuilt images: the true
        class of the member behind it), with its 95 % interval over the images; ``attacker_accuracy_top5`` how often it is
        among the judge's five likeliest, where there are ten classes and more. A judge that is not fit reads nothing.
        ``target_accuracy`` is how often the classifier itself reads it, behind no defence: did the attack work by its own
        measure? ``mse``, ``psnr`` and ``ssim`` are of rebuilt members against the originals, ``heldout_mse`` and
        ``heldout_ssim`` of rebuilt outsiders.

        Args:
            found: what the attack returned.
            victims: the truth.
            target: the released classifier.
        """
        count = len(victims.members)
        classes = victims.members.labels if found.classes is None else found.classes
        images = found.images[: len(classes)]
        scores = dict(found.told)
        bare = ReleasedModel(target.network, None, target.shape, target.classes)
        scores["target_accuracy"] = (bare.labels(images) == classes).double().mean().item()
        if self.quality.fit:
            scores |= self._read(images, classes)
        if found.classes is None:
            errors = mse(images, victims.members.floats())
            scores |= _with_ends("mse", errors)
            scores["psnr"] = psnr(errors).mean().item()
            scores |= _with_ends("ssim", ssim(images, victims.members.floats()))
            if len(victims.outsiders):
                rebuilt, originals = found.images[count:], victims.outsiders.floats()
                scores["heldout_mse"] = mse(rebuilt, originals).mean().item()
                scores["heldout_ssim"] = ssim(rebuilt, originals).mean().item()
        return scores

    def _read(self, images: Tensor, classes: Tensor) -> dict[str, float]:
        logits = self.judge.logits(images)
        scores = _with_ends("attacker_accuracy", (logits.argmax(1) == classes).double())
        if self.classes >= 2 * TOP:
            likeliest = logits.topk(TOP, dim=1).indices
            scores["attacker_accuracy_top5"] = (likeliest == classes[:, None]).any(1).double().mean().item()
        return scores


def label_alone(attacker: Images, target: ReleasedModel, victims: InversionVictims) -> dict[str, float]:
    """Return ``baseline_mse`` and ``heldout_baseline_mse``: of an attacker that is told a victim's label and nothing more.

    It answers with the mean of those of its own images to which the release gives that label, or of all where it gives it
    to none. What confidences tell beyond the label is what lies below this.

    Args:
        attacker: the attacker's images.
        target: the released classifier.
        victims: the truth.
    """
    own, labels = attacker.floats(), target.labels(attacker.floats())
    guesses = torch.stack(
        [own[labels == c].mean(0) if bool((labels == c).any()) else own.mean(0) for c in range(target.classes)]
    )
    guesses = guesses.clamp(0, 1)
    found = {}
    for name, images in (("baseline_mse", victims.members), ("heldout_baseline_mse", victims.outsiders)):
        if len(images):
            originals = images.floats()
            found[name] = mse(guesses[target.labels(originals)], originals).mean().item()
    return found


def build_inversion_scorer(
    judged: Images,
    untouched: Images,
    *,
    classes: int,
    seed: int,
    device: torch.device,
    cache: Path | None = None,
) -> InversionScorer:
    """Train the judge, or take it from the cache.

    Args:
        judged: images of the private classes that neither the classifier nor the attacker ever sees.
        untouched: private images to measure the judge on.
        classes: k.
        seed: of the judge.
        device: where to train.
        cache: folder for trained judges.
    """
    judge = cached_judge(judged, classes=classes, seed=seed, device=device, cache=cache)
    read = judge.labels(untouched.floats())
    return InversionScorer(judge, JudgeQuality.of(untouched.labels.tolist(), read.tolist(), classes=classes), classes)


def worst(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the worst case over attacks: of each score that of the attack that found most, with that attack's interval.

    >>> worst({"a": {"mse": 0.2, "mse_low": 0.1}, "b": {"mse": 0.1}, "c": {"attacker_accuracy": 0.5}})
    {'attacker_accuracy': 0.5, 'mse': 0.1}
    """
    found: dict[str, float] = {}
    for name, leakiest in (
        ("attacker_accuracy", max),
        ("attacker_accuracy_top5", max),
        ("mse", min),
        ("psnr", max),
        ("ssim", max),
        ("heldout_mse", min),
        ("heldout_ssim", max),
    ):
        own = {attack: values[name] for attack, values in scores.items() if name in values}
        if own:
            most = leakiest(own, key=lambda attack: own[attack])
            ends = (f"{name}_low", f"{name}_high")
            found[name] = own[most]
            found |= {end: scores[most][end] for end in ends if end in scores[most]}
    return found


def _with_ends(name: str, values: Tensor) -> dict[str, float]:
    interval = mean_ci(values.tolist())
    scores = {name: fmean(values.tolist())}
    if interval.low is not None and interval.high is not None:
        scores |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
    return scores
