"""Honest scoring: reconstructions against originals, one matching, floor and ceiling beside every number."""

from attacks.scoring.evaluator import Evaluator, train_evaluator
from attacks.scoring.floor import FloorGuess
from attacks.scoring.gallery import Gallery
from attacks.scoring.matching import match
from attacks.scoring.metrics import MAX_PSNR, mse, psnr, ssim
from attacks.scoring.scorer import Scorer, VictimBatch
from attacks.scoring.statistics import Interval, mean_ci, paired_difference
from attacks.scoring.summary import FLOOR_ATTACK, METRICS, PrivacyMetric, summarise
from attacks.scoring.utility import TradeOff, mse_at_accuracy

__all__ = [
    "FLOOR_ATTACK",
    "MAX_PSNR",
    "METRICS",
    "Evaluator",
    "FloorGuess",
    "Gallery",
    "Interval",
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
    "train_evaluator",
]
