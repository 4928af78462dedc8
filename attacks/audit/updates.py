"""An audit: attack updates, score what comes back. A pure function of what the attacker holds and sees, and the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from torch import Tensor

from fedveil.attacks.adaptive.preparation import PreparationKey, preparation_key
from fedveil.attacks.audit.report import AuditReport
from fedveil.attacks.base import Attack, AttackerPreparation, Knowledge, Observation, attack_labels
from fedveil.attacks.matching.exposure import usual_brightness
from fedveil.attacks.matching.yardstick import misfit
from fedveil.attacks.scoring import Scorer, in_order
from fedveil.attacks.scoring.victims import VictimBatch
from fedveil.attacks.target.model import TargetModel
from fedveil.defense.base import TrainedOn
from fedveil.fl.data.images import Images
from fedveil.fl.messages import PrivacyRecord, Reconstruction, ThreatModel
from fedveil.fl.progress import doing

_LEAST = 1e-12
"""A grey image that explains an update exactly, to rounding, is as good as any."""


@dataclass(frozen=True, eq=False)
class Attacker:
    """All that is ready before an update arrives.

    Attributes:
        target: the classifier.
        attacks: in the order in which they run.
        auxiliary: the attacker's images; None if it has none.
        preparations: against the defence, for each key that `preparation_key` gives for these attacks.
        trained_on: what the defence's modules are trained on.
        labels_known: labels are granted.
        seed: of the attacker's randomness.
        observations: R, how often each batch was observed.
        local_steps: the clients' steps behind an update.
    """

    target: TargetModel
    attacks: tuple[Attack, ...]
    auxiliary: Images | None
    preparations: Mapping[PreparationKey, AttackerPreparation]
    trained_on: TrainedOn
    labels_known: bool
    seed: int
    observations: int = 1
    local_steps: int = 1

    def preparation_key(self, attack: Attack, client: int) -> PreparationKey | None:
        """See `fedveil.attacks.adaptive.preparation.preparation_key`."""
        return preparation_key(
            attack, self.trained_on, client, observations=self.observations, local_steps=self.local_steps
        )

    @property
    def adaptive(self) -> frozenset[str]:
        """The labels of the attacks that reckon with the defence, with all of it."""
        complete = all(preparation.surrogate.complete for preparation in self.preparations.values())
        labelled = zip(attack_labels(self.attacks), self.attacks, strict=True)
        return frozenset(label for label, attack in labelled if attack.adaptive and complete)

    @property
    def training(self) -> dict[str, float]:
        """How the attacker's training ended, as ``attack/<label>/<metric>``: means over its preparations for an attack.

        ``inverse_error`` and ``reader_accuracy`` are those on held-out auxiliary images, where there is an inverse or a
        classifier; ``inverse_flat`` is 1 where every one of them was trained until it got no better.
        """
        scalars: dict[str, float] = {}
        for label, attack in zip(attack_labels(self.attacks), self.attacks, strict=True):
            held = [
                own for key, own in self.preparations.items() if key == self.preparation_key(attack, key.client or 0)
            ]
            inverses = [own.inverse for own in held if own.inverse is not None]
            if inverses:
                scalars[f"attack/{label}/inverse_error"] = fmean(inverse.error for inverse in inverses)
                scalars[f"attack/{label}/inverse_steps"] = fmean(inverse.curve.steps[-1] for inverse in inverses)
                scalars[f"attack/{label}/inverse_flat"] = float(all(inverse.curve.flat for inverse in inverses))
            accuracies = [own.reader.accuracy for own in held if own.reader is not None]
            if accuracies:
                scalars[f"attack/{label}/reader_accuracy"] = fmean(accuracies)
        return scalars

    def misfits(
        self,
        attack: Attack,
        observations: Sequence[Observation],
        found: Sequence[Reconstruction],
        device: torch.device,
    ) -> Sequence[float | None]:
        """How much of each update an attack leaves unexplained, as a share; None where that says nothing about it.

        All of it is what a grey image with the same labels leaves: with another network the same image leaves a thousandth
        of that.
        """
        changed = not all(own.surrogate.inverted_plainly for own in self.preparations.values())
        if changed or not attack.explains_update:
            return [None] * len(observations)
        knowledge = self.knowledge(attack, [o.client for o in observations], device)
        grey = [replace(one, images=torch.full_like(one.images, 0.5)) for one in found]
        left, whole = (misfit(observations, images, knowledge) for images in (found, grey))
        return [own / max(all_of_it, _LEAST) for own, all_of_it in zip(left, whole, strict=True)]

    def knowledge(self, attack: Attack, clients: Sequence[int], device: torch.device) -> Knowledge:
        """What one attack is handed against some clients: what its threat model grants, and no more."""
        threat_model = replace(attack.needs, labels=self.labels_known)
        keys = {self.preparation_key(attack, client) for client in clients}
        return Knowledge(
            threat_model=threat_model,
            model=self.target,
            device=device,
            seed=self.seed,
            auxiliary=self.auxiliary if threat_model.auxiliary_data else None,
            preparations={key.client: self.preparations[key] for key in keys if key is not None},
        )


def audit_updates(
    attacker: Attacker,
    observations: Sequence[Observation],
    victims: Sequence[VictimBatch] | None,
    *,
    scorer: Scorer | None,
    round: int = 0,
    device: torch.device,
) -> AuditReport:
    """Attack updates and score the reconstructions.

    Updates of an optimiser that is no plain SGD are matched in direction alone, and the report says so.

    Args:
        attacker: ready.
        observations: the updates, of batches of one size.
        victims: the truth behind each update, in the same order. Attacks see of it what their threat models grant:
            labels, and what the client trained on. None reconstructs and scores nothing.
        scorer: of the reconstructions; None scores nothing.
        round: the federated round before which the updates were captured.
        device: where to attack.
    """
    earlier: dict[Attack, Sequence[Reconstruction]] = {}
    records: list[PrivacyRecord] = []
    rebuilt: dict[str, Tensor] = {}
    made = {repr(observation.update.optimizer): None for observation in observations if not observation.update.plain}
    notes = [f"{rule} took steps that are not sized as gradients: matched in direction alone" for rule in made]
    truths: Sequence[VictimBatch | None] = [None] * len(observations) if victims is None else victims
    labelled = dict(zip(attack_labels(attacker.attacks), attacker.attacks, strict=True))
    for number, (label, attack) in enumerate(labelled.items(), start=1):
        knowledge = attacker.knowledge(attack, [observation.client for observation in observations], device)
        if not attack.applies(knowledge):
            notes.append(f"{label} does not apply to this model and defence, and was left out")
            continue
        threat_model = knowledge.threat_model
        handed = [_granted(o, truth, threat_model) for o, truth in zip(observations, truths, strict=True)]
        # What was made with grants that this attack lacks is none of its business.
        allowed = {other: made for other, made in earlier.items() if not threat_model.lacks(other.needs)}
        with doing(f"attack {number} of {len(labelled)}, {label}"):
            found = earlier[attack] = attack(handed, knowledge, earlier=allowed)
        if any(one.scale_guessed for one in found):
            notes.append(_scale_note(label, knowledge))
        matched = [
            one if truth is None else in_order(one, truth.originals, attack=label)
            for one, truth in zip(found, truths, strict=True)
        ]
        rebuilt[label] = torch.cat([one.images for one in matched])
        # Told a label, an attack that reads no update shows what it was told.
        reads_class = attack.reads_update or not threat_model.labels
        unexplained = attacker.misfits(attack, observations, matched, device)
        for truth, reconstruction, rest in zip(truths, matched, unexplained, strict=True):
            if truth is not None and scorer is not None:
                records += scorer.score(
                    truth,
                    reconstruction,
                    attack=label,
                    threat_model=threat_model,
                    round=round,
                    reads_class=reads_class,
                    misfit=rest,
                )
    known = victims or ()
    trained = [batch.trained for batch in known if batch.trained is not None]
    count = sum(observation.batch_size for observation in observations)
    return AuditReport(
        records=tuple(records),
        reconstructions=rebuilt,
        originals=torch.cat([batch.originals for batch in known]) if known else None,
        trained=torch.cat(trained) if trained and len(trained) == len(known) else None,
        victims=tuple(victim for batch in known for victim in batch.victims) if known else tuple(range(count)),
        adaptive=attacker.adaptive & rebuilt.keys(),
        training=attacker.training,
        judge=None if scorer is None else scorer.judge_quality,
        notes=tuple(notes),
    )


def _scale_note(label: str, knowledge: Knowledge) -> str:
    usual = usual_brightness(knowledge.auxiliary)
    like = (
        "as in photographs and scans" if knowledge.auxiliary is None else "as in the attacker's own images of the class"
    )
    return (
        f"{label}: updates hardly tell how bright the images are; the brightest pixels are put at about {usual:.2f}, {like},"
        " and MSE and PSNR depend on it"
    )


def _granted(observation: Observation, truth: VictimBatch | None, threat_model: ThreatModel) -> Observation:
    labels = observation.labels if truth is None else truth.labels
    series = observation.series
    drawn = [one.trained_images for one in series] if truth is None else truth.draws or [None] * len(series)
    first, *again = (
        replace(
            one,
            labels=labels if threat_model.labels else None,
            trained_images=draw if threat_model.trained_images else None,
        )
        for one, draw in zip(series, drawn, strict=True)
    )
    return replace(first, repeats=tuple(again))
