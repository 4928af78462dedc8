"""From one batch's reconstruction to one `PrivacyRecord` per victim, always against the originals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedveil.attacks.scoring.baseline import ClassMeanGuess
from fedveil.attacks.scoring.gallery import Gallery
from fedveil.attacks.scoring.judge import Judge
from fedveil.attacks.scoring.matching import match
from fedveil.attacks.scoring.metrics import check_images, mse, psnr, ssim
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import PrivacyRecord, Reconstruction, ThreatModel


@dataclass(frozen=True, eq=False)
class VictimBatch:
    """The truth about one audited batch. The scorer sees it, no attack does.

    Attributes:
        round: the federated round before which the update was captured.
        client: the client's number.
        victims: (B,) int64, the victims' numbers, the same for every defence.
        originals: (B, C, H, W) in [0, 1], as they are in the data set.
        trained: (B, C, H, W) in [0, 1], what the client trained on at the audit, in the originals' order.
        labels: (B,) int64, the true labels.
        gallery_index: (B,) int64, the position of each original in the gallery.
    """

    round: int
    client: int
    victims: Tensor
    originals: Tensor
    trained: Tensor
    labels: Tensor
    gallery_index: Tensor

    def __post_init__(self) -> None:
        check_images("originals", self.originals)
        check_images("images that the client trained on", self.trained)
        if self.trained.shape != self.originals.shape:
            raise FedveilError(
                f"images that the client trained on: "
                f"expected {tuple(self.originals.shape)} as the originals, got {tuple(self.trained.shape)}"
            )
        for name in ("victims", "labels", "gallery_index"):
            given: Tensor = getattr(self, name)
            if given.shape != (len(self.originals),) or given.dtype != torch.int64:
                raise FedveilError(
                    f"{name}: expected ({len(self.originals)},) int64, got {tuple(given.shape)} {given.dtype}"
                )


class Scorer:
    """Scores reconstructions of victim batches. It changes none of its inputs.

    Args:
        judge: reads the class in a reconstruction.
        gallery: the untouched images among which the original has to be found.
        floor: the no-gradient attacker, told the true class.
        seed: the trial's seed, kept in the records.
    """

    def __init__(self, judge: Judge, gallery: Gallery, floor: ClassMeanGuess, seed: int) -> None:
        self._evaluator = judge
        self._gallery = gallery
        self._floor = floor
        self._seed = seed

    def score(
        self, batch: VictimBatch, reconstruction: Reconstruction, *, attack: str, threat_model: ThreatModel
    ) -> list[PrivacyRecord]:
        """Return one record per victim, in the batch's order.

        The reconstruction is matched one to one to the *originals* by MSE, once, and every number follows
        that match, the error against the trained image too.

        Args:
            batch: the truth.
            reconstruction: what the attack returned, in any order.
            attack: the attack's name.
            threat_model: what the attack was granted.

        Raises:
            FedveilError: the reconstruction has the wrong shape, leaves [0, 1] or holds NaN; or the originals
                are not the untouched images of the gallery.
        """
        images = reconstruction.images
        check_images(f"attack {attack!r}: reconstruction", images)
        if images.shape != batch.originals.shape:
            raise FedveilError(f"attack {attack!r}: expected {tuple(batch.originals.shape)}, got {tuple(images.shape)}")
        if reconstruction.labels.shape != batch.labels.shape:
            raise FedveilError(
                f"attack {attack!r}: expected {tuple(batch.labels.shape)} labels, "
                f"got {tuple(reconstruction.labels.shape)}"
            )
        self._gallery.check_untouched(batch.originals, batch.gallery_index)
        originals = batch.originals.to(images)
        trained = batch.trained.to(images)

        order = match(images, originals)
        images = images[order]
        used_labels = reconstruction.labels.cpu()[order.cpu()]
        true_labels = batch.labels.cpu()

        error = mse(images, originals)
        columns = zip(
            batch.victims.tolist(),
            true_labels.tolist(),
            error.tolist(),
            psnr(error).tolist(),
            ssim(images, originals).tolist(),
            mse(images, trained).tolist(),
            mse(trained, originals).tolist(),
            mse(self._floor.guess(true_labels).to(images), originals).tolist(),
            self._evaluator.labels(images).tolist(),
            self._gallery.same(self._gallery.nearest(images), batch.gallery_index).tolist(),
            (used_labels == true_labels).tolist(),
            strict=True,
        )
        return [
            PrivacyRecord(attack, threat_model, self._seed, batch.round, batch.client, *column) for column in columns
        ]
