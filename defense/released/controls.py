"""Controls of the learnt perturbations of answers: a random one of equal norm, and rounding. Nothing is learnt here."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedveil.defense.base import DEFENSES, Defense
from fedveil.defense.checks import whole
from fedveil.defense.released.perturbing import as_logits, candidate, moved
from fedveil.fl.errors import SettingError
from fedveil.fl.seeding import derive_seed

FINEST = 1e-3
LARGEST = 2.0
"""Two points of the simplex are never farther apart in L1 norm."""
SPREAD = 4.0
"""Of the random scores towards which an answer is moved; the way there is nearly always longer than a budget of up to 1."""
_GRAIN = 1e4


def check_budget(defense: str, strength: float) -> None:
    """Refuse a budget that no answer could be moved by, or that rounding errors would eat up.

    Raises:
        FedveilError: it is not in [0.001, 2].
    """
    if not FINEST <= strength <= LARGEST:
        raise SettingError(
            defense, "strength", strength, f"it is an L1 distance on the simplex: {FINEST:g} to {LARGEST:g}"
        )


@DEFENSES.register("output_noise")
@dataclass(frozen=True, kw_only=True)
class OutputNoise(Defense[None]):
    """Each answer is moved in a random direction of the simplex; its largest entry stays the largest.

    The control of `lpa`: the same law without anything learnt. The direction is drawn from the answer itself, so that asking
    again tells nothing more; answers that differ by 1e-4 in a logit have directions of their own.

    Attributes:
        strength: L1 distance on the simplex, 0.001 to 2.
        seed: of the directions; whoever knows it knows them.
    """

    strength: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        check_budget("output_noise", self.strength)
        whole("output_noise", seed=(self.seed, 0))

    def output(self, logits: Tensor) -> Tensor:
        """See `fedveil.fl.hooks.ClientHooks.output`."""
        exact = logits.double()
        # Batches of another size differ in the last digits.
        grain = (exact.softmax(1).log().clamp_min(-50) * _GRAIN).round().long().cpu().numpy()
        scores = torch.stack([self._drawn(row.tobytes(), logits.shape[1]) for row in grain]).to(exact)
        aim = candidate(SPREAD * scores, logits.argmax(1))
        return as_logits(moved(exact.softmax(1), aim, self.strength), logits)

    def _drawn(self, answer: bytes, classes: int) -> Tensor:
        number = int.from_bytes(hashlib.blake2b(answer, digest_size=8).digest(), "big")
        stream = torch.Generator().manual_seed(derive_seed(self.seed, "output noise", number))
        return torch.randn(classes, dtype=torch.float64, generator=stream)


@DEFENSES.register("output_rounding")
@dataclass(frozen=True, kw_only=True)
class OutputRounding(Defense[None]):
    """Confidences are rounded, and normalised again; the largest stays the largest.

    Attributes:
        decimals: of the rounded confidences, 1 to 6.
    """

    dial: ClassVar[str] = "decimals"

    decimals: int = 1

    def __post_init__(self) -> None:
        whole("output_rounding", most=6, decimals=(self.decimals, 1))

    def output(self, logits: Tensor) -> Tensor:
        """See `fedveil.fl.hooks.ClientHooks.output`."""
        exact = logits.double().softmax(1)
        top = logits.argmax(1, keepdim=True)
        coarse = exact.round(decimals=self.decimals)
        # Rounding makes ties, and may leave nothing at all of many equal entries.
        crowned = coarse.scatter_add(1, top, torch.full_like(top, 0.1 * 10.0**-self.decimals, dtype=coarse.dtype))
        return as_logits(crowned / crowned.sum(1, keepdim=True), logits)
