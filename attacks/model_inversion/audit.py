"""The audit of a released classifier: a function of the model, images, victims, judge, attacks and seed alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from fedveil.attacks.base import numbered
from fedveil.attacks.model_inversion.base import InversionKnowledge, ModelInversion
from fedveil.attacks.model_inversion.gan import Gan, GanTraining, public_gan
from fedveil.attacks.model_inversion.released import Access, ReleasedModel
from fedveil.attacks.model_inversion.scoring import InversionScorer, InversionVictims, label_alone, worst
from fedveil.attacks.scoring.metrics import mse
from fedveil.fl.data.images import Images
from fedveil.fl.seeding import derive_seed

PICTURES = 8
"""Members whose pictures are kept."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one attack came to.

    Attributes:
        scores: by name; see `InversionScorer.score`.
        images: (v, C, H, W) in [0, 1], for each of the first members: the image behind its answer, or one of its class.
        errors: (m,) mean squared error of each member's rebuilt image; None where images are of classes.
    """

    scores: Mapping[str, float]
    images: Tensor
    errors: Tensor | None


@dataclass(frozen=True, eq=False)
class InversionReport:
    """What attacks made of a released classifier.

    Attributes:
        outcomes: by the attack's label.
        shown: the first members, whose pictures are kept.
        known: what holds for all attacks alike: ``baseline_mse``, ``judge_accuracy``, ``chance_accuracy``, ``complete``.
    """

    outcomes: Mapping[str, Outcome]
    shown: Images
    known: Mapping[str, float] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """Return the scalars of a trial: ``inversion/<score>``, the worst case, and ``inversion/<attack>/<score>``."""
        scores = {label: outcome.scores for label, outcome in self.outcomes.items()}
        per_attack = {f"{label}/{name}": value for label, own in scores.items() for name, value in own.items()}
        return {f"inversion/{name}": value for name, value in {**worst(scores), **self.known, **per_attack}.items()}


def labels_of(attacks: Sequence[ModelInversion]) -> list[str]:
    """Return what attacks are called in the results: their names, numbered where there are several of one."""
    return numbered([attack.name for attack in attacks])


def priors_of(attacks: Sequence[ModelInversion]) -> list[GanTraining]:
    """Return the generators that attacks start from, each once."""
    return list(dict.fromkeys(attack.prior for attack in attacks if attack.prior is not None))


def attack_released(
    attack: ModelInversion,
    label: str,
    target: ReleasedModel,
    attacker: Images,
    victims: InversionVictims,
    scorer: InversionScorer,
    gans: Mapping[GanTraining, Gan],
    *,
    seed: int,
    device: torch.device,
) -> Outcome:
    """Run one attack, and score it.

    Args:
        attack: with its settings.
        label: what it is called.
        target: the released classifier, of which the attack is shown what it is granted.
        attacker: the attacker's images.
        victims: the truth.
        scorer: knows the judge.
        gans: see `InversionKnowledge`.
        seed: of the attacker.
        device: where to compute.
    """
    observed = target.confidences(victims.images) if attack.rebuilds else None
    knowledge = InversionKnowledge(attacker, device, derive_seed(seed, label), observed, gans)
    found = attack(target.granted(attack.access), knowledge)
    scores = scorer.score(found, victims, target)
    classes = victims.members.labels[:PICTURES]
    if found.classes is None:
        errors = mse(found.images[: len(victims.members)], victims.members.floats())
        return Outcome(scores, found.images[: len(classes)], errors)
    at = [int((found.classes == own).nonzero()[0]) for own in classes.tolist()]
    return Outcome(scores, found.images[at], None)


def report_on(
    attacks: Sequence[ModelInversion],
    outcomes: Sequence[Outcome],
    target: ReleasedModel,
    attacker: Images,
    victims: InversionVictims,
    scorer: InversionScorer,
) -> InversionReport:
    """Put the results of attacks together.

    ``complete`` is 1 if an attacker with the weights ran and, where something stands in front of the answers, one that reads
    them in another way than they come.

    Args:
        attacks: all that ran.
        outcomes: of `attack_released`, in their order.
        target: the released classifier.
        attacker: the attacker's images.
        victims: the truth.
        scorer: knows the judge.
    """
    reading = [attack for attack in attacks if attack.rebuilds and attack.reckons]
    holding = [attack for attack in attacks if attack.access is Access.WEIGHTS]
    known = {
        **label_alone(attacker, target, victims),
        "judge_accuracy": scorer.quality.accuracy,
        "chance_accuracy": scorer.quality.chance,
        "complete": float(bool(holding) and (target.output is None or bool(reading))),
    }
    return InversionReport(
        dict(zip(labels_of(attacks), outcomes, strict=True)),
        victims.members.take(torch.arange(min(PICTURES, len(victims.members)))),
        known,
    )


def audit_released(
    attacks: Sequence[ModelInversion],
    target: ReleasedModel,
    attacker: Images,
    victims: InversionVictims,
    scorer: InversionScorer,
    *,
    seed: int,
    device: torch.device,
    cache: Path | None = None,
) -> InversionReport:
    """Run attacks one after another.

    Args:
        attacks: with their settings.
        target: the released classifier.
        attacker: the attacker's images.
        victims: the truth.
        scorer: knows the judge.
        seed: of the attacker.
        device: where to compute.
        cache: folder for generators, which do not depend on the classifier.
    """
    gans = {one: public_gan(attacker, one, seed=seed, device=device, cache=cache) for one in priors_of(attacks)}
    outcomes = [
        attack_released(attack, label, target, attacker, victims, scorer, gans, seed=seed, device=device)
        for attack, label in zip(attacks, labels_of(attacks), strict=True)
    ]
    return report_on(attacks, outcomes, target, attacker, victims, scorer)
