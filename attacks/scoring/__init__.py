"""Honest scoring: reconstructions against originals, one matching, floor and ceiling beside every number."""

from fedveil.attacks.scoring.baseline import ClassMeanGuess
from fedveil.attacks.scoring.gallery import Gallery
from fedveil.attacks.scoring.judge import Judge, train_judge
from fedveil.attacks.scoring.matching import match
from fedveil.attacks.scoring.metrics import MAX_PSNR, mse, psnr, ssim
from fedveil.attacks.scoring.scorer import Scorer, VictimBatch
from fedveil.attacks.scoring.statistics import Interval, mean_ci, paired_difference
from fedveil.attacks.scoring.summary import BASELINE_ATTACK, METRICS, PrivacyMetric, summarise
from fedveil.attacks.scoring.utility import TradeOff, mse_at_accuracy

__all__ = [
    "BASELINE_ATTACK",
    "MAX_PSNR",
    "METRICS",
    "ClassMeanGuess",
    "Gallery",
    "Interval",
    "Judge",
    "PrivacyMetric",
    "Scorer",
    "TradeOff",
    "VictimBatch",
    "match",
    "mean_ci",
    "mse",
    "mse_at_accuracy",
    "paired_difference",
    "psnr",
    "ssim",
    "summarise",
    "train_judge",
]
