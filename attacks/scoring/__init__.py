"""Honest scoring: reconstructions against originals, one matching, and what a guess reaches beside every number."""

from fedveil.attacks.scoring.baseline import ClassMeanGuess
from fedveil.attacks.scoring.gallery import Gallery
from fedveil.attacks.scoring.judge import Judge, train_judge
from fedveil.attacks.scoring.matching import in_order, match
from fedveil.attacks.scoring.measures import METRICS, PrivacyMetric
from fedveil.attacks.scoring.metrics import MAX_PSNR, mse, psnr, small_note, ssim
from fedveil.attacks.scoring.quality import JudgeQuality
from fedveil.attacks.scoring.scorer import Scorer, build_scorer
from fedveil.attacks.scoring.statistics import (
    Interval,
    mean_ci,
    paired_difference,
    paired_difference_of,
    per_victim,
)
from fedveil.attacks.scoring.summary import (
    BASELINE_ATTACK,
    headline_attack,
    headline_interval,
    headline_records,
    summarise,
)

__all__ = [
    "BASELINE_ATTACK",
    "MAX_PSNR",
    "METRICS",
    "ClassMeanGuess",
    "Gallery",
    "Interval",
    "Judge",
    "JudgeQuality",
    "PrivacyMetric",
    "Scorer",
    "build_scorer",
    "headline_attack",
    "headline_interval",
    "headline_records",
    "in_order",
    "match",
    "mean_ci",
    "mse",
    "paired_difference",
    "paired_difference_of",
    "per_victim",
    "psnr",
    "small_note",
    "ssim",
    "summarise",
    "train_judge",
]
