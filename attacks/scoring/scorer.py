"""From one batch's reconstruction to one `PrivacyRecord` per victim, always against the originals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedveil.attacks.scoring.baseline import ClassMeanGuess
from fedveil.attacks.scoring.gallery import Gallery
from fedveil.attacks.scoring.judge import Judge, cached_judge
from fedveil.attacks.scoring.metrics import mse, psnr, ssim
from fedveil.attacks.scoring.quality import JudgeQuality
from fedveil.fl.data.images import Images
from fedveil.fl.messages import PrivacyRecord, Reconstruction, ThreatModel
from fedveil.fl.seeding import torch_stream

if TYPE_CHECKING:
    from fedveil.attacks.scoring.victims import VictimBatch

_UNTOUCHED = 1000


@dataclass(frozen=True, eq=False)
class Scorer:
    """Scores reconstructions of victim batches. It changes none of its inputs.

    Attributes:
        judge: reads the class in a reconstruction; None leaves ``attacker_label`` open.
        gallery: the untouched images among which the original has to be found; None leaves ``identified`` open.
        baseline: the attacker without an update, told the true class; None leaves ``baseline_mse`` open.
        seed: the trial's seed, kept in the records.
        judge_quality: how well the judge reads untouched private originals; None if that was not measured.
        labels_true: the victims' labels are the true ones; where they were themselves recovered from the updates,
            ``label_recovered`` stays open.
    """

    judge: Judge | None
    gallery: Gallery | None
    baseline: ClassMeanGuess | None
    seed: int
    judge_quality: JudgeQuality | None = None
    labels_true: bool = True

    def score(
        self,
        batch: VictimBatch,
        reconstruction: Reconstruction,
        *,
        attack: str,
        threat_model: ThreatModel,
        round: int,
        reads_class: bool,
        misfit: float | None = None,
    ) -> list[PrivacyRecord]:
        """Return one record per victim, in the batch's order.

        Args:
            batch: the truth.
            reconstruction: what the attack returned, matched to the originals (`matching.in_order`).
            attack: the attack's label.
            threat_model: what the attack was granted.
            round: the federated round before which the update was captured.
            reads_class: a class can be read from these images. False for an attack that only shows what it was told.
            misfit: what the attack leaves unexplained of the update, see `PrivacyRecord`.

        Raises:
            FedveilError: the originals are not the untouched images of the gallery.
        """
        images, originals = reconstruction.images, batch.originals.to(reconstruction.images.device)
        if self.gallery is not None and batch.gallery_index is not None:
            self.gallery.check_untouched(originals, batch.gallery_index)
        labels = batch.labels.cpu()
        error = mse(images, originals)
        unknown = [None] * len(batch)
        trained = None if batch.trained is None else batch.trained.to(images)
        columns = zip(
            batch.victims,
            labels.tolist(),
            error.tolist(),
            psnr(error).tolist(),
            ssim(images, originals).tolist(),
            labels_recovered(labels, reconstruction.labels.cpu()) if self.labels_true else unknown,
            unknown if trained is None else mse(images, trained).tolist(),
            unknown if trained is None else mse(trained, originals).tolist(),
            unknown if self.baseline is None else mse(self.baseline.guess(labels).to(images), originals).tolist(),
            self._class_read(reconstruction) if reads_class else unknown,
            *self._identified(reconstruction, batch),
            unknown if reconstruction.classes is None else reconstruction.classes.tolist(),
            [misfit] * len(batch),
            strict=True,
        )
        return [PrivacyRecord(attack, threat_model, self.seed, round, batch.client, *column) for column in columns]

    def _class_read(self, found: Reconstruction) -> Sequence[int | None]:
        if self.judge is None:
            return [None] * len(found.images)
        read: list[int] = self.judge.labels(found.images if found.blind is None else found.blind).tolist()
        return read

    def _identified(self, found: Reconstruction, batch: VictimBatch) -> tuple[Sequence[bool | None], ...]:
        """Both ways: nearest to the reconstruction, and what explains best what was observed."""
        gallery, index, unknown = self.gallery, batch.gallery_index, [None] * len(batch)
        if gallery is None or index is None:
            return unknown, unknown
        nearest = gallery.same(gallery.nearest(found.images), index).tolist()
        if found.likeness is None:
            return nearest, unknown
        return nearest, gallery.same(gallery.most_alike(found.likeness, len(batch)), index).tolist()


def labels_recovered(true: Tensor, used: Tensor) -> list[bool]:
    """Say for each victim whether its label was recovered, so that as many are as the two batches have in common.

    An update tells the labels of a batch and not which image has which, so a batch in another order is no error. Of each
    class as many victims count as the attack used labels of it: first those whose matched image was given theirs.

    Args:
        true: (B,) labels.
        used: (B,) labels of the attack, in the order of the matched images.
    """
    found = true == used
    left = Counter(used[~found].tolist())
    answers = found.tolist()
    for at, label in enumerate(true.tolist()):
        if not answers[at] and left[label]:
            left[label] -= 1
            answers[at] = True
    return answers


def build_scorer(
    auxiliary: Images | None,
    gallery: Gallery | None,
    *,
    classes: int,
    seed: int,
    device: torch.device,
    untouched: Images | None,
    cache: Path | None = None,
) -> Scorer:
    """Return a scorer with all the parts for which there are images.

    Args:
        auxiliary: images of no client, for the judge and the baseline; None or none at all leaves both out.
        gallery: see `Scorer`.
        classes: k.
        seed: of the trial; fixes the judge.
        device: where to train the judge, if the cache does not hold it.
        untouched: private originals on which to measure the judge, of which up to 1,000 are drawn.
        cache: folder for trained judges.
    """
    if auxiliary is None or not len(auxiliary):
        return Scorer(None, gallery, None, seed)
    judge = cached_judge(auxiliary, classes=classes, seed=seed, device=device, cache=cache)
    quality = None
    if untouched is not None:
        drawn = torch.randperm(len(untouched), generator=torch_stream(seed, "judge", "untouched"))[:_UNTOUCHED]
        images, labels = untouched.batch(drawn)
        quality = JudgeQuality.of(labels.tolist(), judge.labels(images).tolist(), classes=classes)
    return Scorer(judge, gallery, ClassMeanGuess.of(auxiliary, classes=classes), seed, quality)
