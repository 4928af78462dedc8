"""What an audit found: the scores, and the pictures behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from fedveil.attacks.audit.figures import draw_reconstructions, save
from fedveil.attacks.scoring.quality import JudgeQuality
from fedveil.attacks.scoring.statistics import Interval
from fedveil.attacks.scoring.summary import headline_interval, summarise
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import PrivacyRecord

_PICTURED = 8


@dataclass(frozen=True, eq=False)
class AuditReport:
    """The result of one audit.

    >>> import fedveil as fv
    >>> where = {"seed": 0, "round": 0, "client": 0, "victim": 0, "label": 1}
    >>> scores = {"mse": 0.01, "psnr": 20.0, "ssim": 0.5, "label_recovered": True}
    >>> record = fv.PrivacyRecord("guess", fv.ThreatModel(), **where, **scores)
    >>> fv.AuditReport(records=(record,)).worst("mse")
    0.01


    Attributes:
        records: one per victim and attack; empty where the truth was not given.
        reconstructions: by attack's label, (n, C, H, W) in [0, 1], in the victims' order, matched to the originals
            where these are known.
        originals: (n, C, H, W) in [0, 1]; None where the truth was not given.
        trained: (n, C, H, W) in [0, 1], what the client trained on; None where that is not known.
        victims: the numbers of the n victims that are pictured.
        adaptive: the labels of the attacks that reckon with the defence.
        training: how the training of what the adaptive attacks learnt ended, see
            `fedveil.attacks.audit.updates.Attacker.training`.
        judge: how well the judge of classes reads untouched originals; None where that was not measured.
        notes: one line each: what the reader of the numbers has to know.
    """

    records: tuple[PrivacyRecord, ...] = ()
    reconstructions: Mapping[str, Tensor] = field(default_factory=dict)
    originals: Tensor | None = None
    trained: Tensor | None = None
    victims: tuple[int, ...] = ()
    adaptive: frozenset[str] = frozenset()
    training: Mapping[str, float] = field(default_factory=dict)
    judge: JudgeQuality | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def merged(cls, reports: Sequence[AuditReport]) -> AuditReport:
        """Put together what was audited in parts: the same attacks on other victims.

        Pictures of an attack are kept where every part holds them, and originals and trained images likewise.
        """
        if not reports:
            return cls()
        first = reports[0]
        shown = [label for label in first.reconstructions if all(label in r.reconstructions for r in reports)]
        return cls(
            records=tuple(record for report in reports for record in report.records),
            reconstructions={label: torch.cat([r.reconstructions[label] for r in reports]) for label in shown},
            originals=_joined([report.originals for report in reports]),
            trained=_joined([report.trained for report in reports]),
            victims=tuple(victim for report in reports for victim in report.victims),
            adaptive=frozenset[str]().union(*(report.adaptive for report in reports)),
            training=first.training,
            judge=first.judge,
            notes=tuple(dict.fromkeys(note for report in reports for note in report.notes)),
        )

    def first(self, count: int) -> AuditReport:
        """Return the report with the pictures of the victims numbered below ``count`` only; the records stay."""
        kept = [at for at, victim in enumerate(self.victims) if victim < count]
        return replace(
            self,
            reconstructions={label: images[kept] for label, images in self.reconstructions.items()},
            originals=None if self.originals is None else self.originals[kept],
            trained=None if self.trained is None else self.trained[kept],
            victims=tuple(self.victims[at] for at in kept),
        )

    def worst(self, metric: str) -> float:
        """Return the mean of ``metric`` under the attack that leaks most, the baseline aside.

        Args:
            metric: for example ``mse``, ``psnr``, ``ssim``, ``attacker_accuracy`` or ``identification_rate``.

        Raises:
            FedveilError: nothing was scored by that name: the audit lacked the truth or a part that it takes.
        """
        return self.interval(metric).mean

    def interval(self, metric: str) -> Interval:
        """Return `worst` with its 95 % interval over victims.

        Raises:
            FedveilError: as for `worst`.
        """
        if not self.records:
            raise FedveilError(
                f"{metric}: nothing was scored: the audit was not given the original images, or no attack applies"
            )
        if metric == "attacker_accuracy" and not (self.judge and self.judge.fit):
            raise FedveilError("attacker_accuracy: there is no judge that reads untouched images clearly above chance")
        return headline_interval(self.records, metric)

    def summary(self) -> dict[str, float]:
        """Return the scalars of `scoring.summarise`; none where nothing was scored."""
        if not self.records:
            return {}
        return summarise(self.records, adaptive=self.adaptive, judge=self.judge, training=self.training)

    def figure(self, path: str | Path, *, captions: Sequence[str] | None = None) -> None:
        """Draw at most eight victims to ``path``: original, what the client trained on, and a row per attack.

        Without originals the reconstructions stand alone.

        Args:
            path: where to write; the suffix gives the format.
            captions: one per pictured victim, for example its class.

        Raises:
            FedveilError: there are no reconstructions.
        """
        if not self.victims or not self.reconstructions:
            raise FedveilError("figure: the audit left no reconstruction to draw")
        shown = {label: images[:_PICTURED] for label, images in self.reconstructions.items()}
        originals, trained = (None if x is None else x[:_PICTURED] for x in (self.originals, self.trained))
        words = None if captions is None else captions[:_PICTURED]
        save(draw_reconstructions(originals, trained, shown, words), Path(path))


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known) if len(known) == len(parts) else None
