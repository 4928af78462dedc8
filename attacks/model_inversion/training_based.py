"""Training-based inversion of confidence vectors: the attacker trains a decoder on answers to its own images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fedveil.attacks.model_inversion.base import MODEL_INVERSIONS, InversionKnowledge, Inverted, ModelInversion
from fedveil.attacks.model_inversion.released import Access, ConfidenceTarget
from fedveil.defense.checks import above_zero, whole
from fedveil.defense.released.decoder import DecoderTraining, train_decoder
from fedveil.fl.seeding import torch_stream

Reading = Literal["released", "sharpened", "rounded", "label"]


@MODEL_INVERSIONS.register("training_based")
@dataclass(frozen=True, kw_only=True)
class TrainingBased(ModelInversion):
    """A decoder from confidence vectors to images (Yang et al. 2019, arXiv 1902.08552).

    The attacker asks the release about images of its own, trains a decoder on pairs of an answer and its image, and shows
    it the answers to the victims' images. Whatever stands in front of the answers when it trains also does when it attacks.
    A defence that perturbs answers is met by other readings of them: what is done to an answer before the decoder sees it.

    Attributes:
        reading: ``released`` as they come; ``sharpened`` to p^power, normalised; ``rounded`` to so many decimals;
            ``label``, nothing but the largest entry, which no defence that keeps labels can take away.
        power: of sharpening, above 0.
        decimals: of rounding, 1 to 6.
        decoder: how the decoder is trained.
    """

    access: ClassVar[Access] = Access.CONFIDENCES
    rebuilds: ClassVar[bool] = True

    reading: Reading = "released"
    power: float = 4.0
    decimals: int = 1
    decoder: DecoderTraining = field(default_factory=DecoderTraining)

    def __post_init__(self) -> None:
        above_zero("training_based", power=self.power)
        whole("training_based", most=6, decimals=(self.decimals, 1))

    @property
    def reckons(self) -> bool:
        """See `ModelInversion.reckons`."""
        return self.reading != "released"

    def read(self, confidences: Tensor) -> Tensor:
        """Return what the decoder is shown of confidences (n, k): rows of the simplex again.

        >>> answer = torch.tensor([[0.64, 0.32, 0.04]])
        >>> TrainingBased(reading="rounded").read(answer)
        tensor([[0.6667, 0.3333, 0.0000]])
        >>> TrainingBased(reading="label").read(answer)
        tensor([[1., 0., 0.]])
        """
        return _READINGS[self.reading](self, confidences)

    def run(self, target: ConfidenceTarget, knowledge: InversionKnowledge) -> Inverted:
        """See `ModelInversion.run`."""
        assert knowledge.observed is not None  # `__call__` has checked it
        images = knowledge.images
        answers = self.read(target.confidences(images.floats()))
        learnt = train_decoder(
            answers,
            images,
            self.decoder,
            device=knowledge.device,
            stream=torch_stream(knowledge.seed, "model inversion", "decoder", self.reading),
        )
        curve = learnt.curve
        return Inverted(
            learnt(self.read(knowledge.observed)),
            None,
            {"decoder_error": curve.error, "decoder_flat": float(curve.flat), "decoder_steps": float(curve.steps[-1])},
        )


def _sharpened(attack: TrainingBased, confidences: Tensor) -> Tensor:
    return (attack.power * confidences.log()).softmax(1)


def _rounded(attack: TrainingBased, confidences: Tensor) -> Tensor:
    coarse = confidences.round(decimals=attack.decimals)
    # All entries of many alike may round to nothing; then nothing is known.
    total = coarse.sum(1, keepdim=True)
    return torch.where(total > 0, coarse / total.clamp_min(1e-12), torch.full_like(coarse, 1 / coarse.shape[1]))


def _label(attack: TrainingBased, confidences: Tensor) -> Tensor:
    return F.one_hot(confidences.argmax(1), confidences.shape[1]).float()


_READINGS: Mapping[Reading, Callable[[TrainingBased, Tensor], Tensor]] = {
    "released": lambda attack, confidences: confidences,
    "sharpened": _sharpened,
    "rounded": _rounded,
    "label": _label,
}
