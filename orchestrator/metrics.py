"""The one table of metric names: configuration, tracking, table, figures and reports all read it.

A name may hold a placeholder, ``attack/<attack>/mse``: there stands the attack's label, numbered where an audit runs
several of one name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fedveil.attacks.audit.figures import mse_text
from fedveil.attacks.model_inversion.base import ModelInversion
from fedveil.attacks.scoring import BASELINE_ATTACK, METRICS

Direction = Literal["max", "min"]

_PLACEHOLDER = re.compile(r"<\w+>")
_FILLING = r"[A-Za-z0-9_.-]+"


def fits(name: str, template: str) -> bool:
    """Whether ``name`` is ``template`` with its placeholders filled.

    >>> fits("attack/adaptive_2/mse", "attack/<attack>/mse"), fits("attack/a/b/mse", "attack/<attack>/mse")
    (True, False)
    """
    return re.fullmatch(_PLACEHOLDER.sub(_FILLING, re.escape(template)), name) is not None


@dataclass(frozen=True)
class Metric:
    """One number that a run or a sweep reports.

    Attributes:
        name: as in MLflow, perhaps with placeholders.
        meaning: in one line.
        better: which direction is better for the clients; None where neither is.
        write: its text in tables and figures.
        title: its heading in the table, on two lines; empty where it has no column of its own.
        objective: a search may name it as an objective.
    """

    name: str
    meaning: str
    better: Direction | None = None
    write: Callable[[float], str] = "{:.3f}".format
    title: str = ""
    objective: bool = False


_SHARE = "{:.2f}".format
_SECONDS = "{:.0f}".format

# how each score per victim is written, its heading and its meaning
_SCORES: Mapping[str, tuple[Callable[[float], str], str, str]] = {
    "mse": (mse_text, "worst-case\nMSE", "error of the reconstruction against the original"),
    "psnr": ("{:.1f}".format, "PSNR\ndB", "of that error, in dB, at most 100"),
    "ssim": (_SHARE, "SSIM\n", "structural similarity of reconstruction and original"),
    "attacker_accuracy": (
        _SHARE,
        "attacker\naccuracy",
        "how often the judge reads the true class; absent where it cannot tell classes or none was inferred",
    ),
    "adaptive_attacker_accuracy": (
        _SHARE,
        "own\nclassifier",
        "how often the attacker's own classifier, trained against the defence and not told the label, reads the true class",
    ),
    "identification_rate": (_SHARE, "identi-\nfied", "how often the original is found in a gallery, by the better way"),
    "identification_nearest": (_SHARE, "", "the original is the image of the gallery nearest to the reconstruction"),
    "identification_forward": (
        _SHARE,
        "",
        "the original, passed through the known defence, explains best what was observed",
    ),
    "mse_to_perturbed": (mse_text, "", "error against what the client trained on: did the attack itself work?"),
    "misfit": (
        "{:.3f}".format,
        "",
        "what the images leave unexplained of the update, as a share of what grey ones leave: the attack's own measure",
    ),
    "label_recovery": (_SHARE, "", "share of the true labels, order in a batch aside, that the attack used"),
}


def _better(score: str) -> Direction:
    """What finds the most private information is worst for the clients."""
    (leakiest,) = (metric.leakiest for metric in METRICS if metric.name == score)
    return "max" if leakiest is min else "min"


def _headline(score: str) -> Metric:
    write, title, meaning = _SCORES[score]
    return Metric(f"privacy/{score}", f"{meaning}; worst case over attacks", _better(score), write, title, True)


_READ = "how often the judge, which learnt from images that neither model nor attacker saw, reads the class in an image"
_INVERSIONS: tuple[Metric, ...] = (
    Metric("attacker_accuracy", _READ, "min", _SHARE, "released:\nread", objective=True),
    Metric("attacker_accuracy_low", "lower end of its 95 % interval over images", "min", _SHARE),
    Metric("attacker_accuracy_high", "upper end of it", "min", _SHARE),
    Metric("attacker_accuracy_top5", "how often the class is among the judge's five likeliest", "min", _SHARE),
    Metric(
        "mse",
        "error of the images rebuilt from the model's answers to clients' images",
        "max",
        mse_text,
        "released:\nMSE",
        True,
    ),
    Metric("mse_low", "lower end of its 95 % interval over images", "max", mse_text),
    Metric("mse_high", "upper end of it", "max", mse_text),
    Metric("psnr", "of that error, in dB, at most 100", "min", "{:.1f}".format, objective=True),
    Metric("ssim", "structural similarity of these with the originals", "min", _SHARE, objective=True),
    Metric("ssim_low", "lower end of its 95 % interval over images", "min", _SHARE),
    Metric("ssim_high", "upper end of it", "min", _SHARE),
    Metric("heldout_mse", "the same error for test images, on which nobody trained", "max", mse_text),
    Metric("heldout_ssim", "and their structural similarity", "min", _SHARE),
)
"""Scores of attacks on the released model: of each attack, and the worst case over them."""
_REBUILT = {"mse", "psnr", "ssim"}


def _inversion(metric: Metric, *, of: str = "") -> Metric:
    end = "" if of else "; worst case over attacks on the released model"
    name = f"inversion/{of}{metric.name}"
    return replace(metric, name=name, meaning=metric.meaning + end, objective=metric.objective and not of)


FINAL: tuple[Metric, ...] = (
    Metric("utility/accuracy", "test accuracy of the federated model", "max", title="accuracy\n", objective=True),
    Metric("utility/val_accuracy", "its accuracy on validation images", "max", objective=True),
    Metric("utility/auc", "area under the ROC curve, mean over classes", "max", objective=True),
    Metric(
        "utility/clean_accuracy",
        "test accuracy on images that passed no defence",
        "max",
        title="on clean\nimages",
        objective=True,
    ),
    Metric("utility/public_accuracy", "test accuracy of a classifier that has the public images alone", "max"),
    Metric("utility/public_auc", "its area under the ROC curve", "max"),
    Metric("utility/local_accuracy", "of one that has a client's own and the public images, mean over clients", "max"),
    Metric("utility/local_auc", "their area under the ROC curve", "max"),
    Metric("utility/test_images", "behind the test scores", None, _SECONDS),
    *(_headline(metric.name) for metric in METRICS if metric.headline),
    Metric("privacy/mse_low", "lower end of the MSE's 95 % interval over victims", "max", mse_text, objective=True),
    Metric("privacy/mse_high", "upper end of it", "max", mse_text),
    *(
        Metric(f"privacy/{metric.name}_{end}", f"{which} end of its 95 % interval over victims", "min", _SHARE)
        for metric in METRICS
        if metric.interval and metric.name != "mse"
        for end, which in (("low", "lower"), ("high", "upper"))
    ),
    Metric("privacy/chance_accuracy", "an attacker that guesses the class: 1 / classes", None, _SHARE),
    Metric("privacy/judge_accuracy", "the judge's accuracy on untouched private originals", None, _SHARE),
    Metric(
        "privacy/trained_mse", "error of a perfect inversion: what the client trained on", "max", mse_text, "", True
    ),
    Metric("privacy/baseline_mse", "error of an attacker without the update: the class mean", None, mse_text),
    Metric("privacy/complete", "1 if an adaptive attack ran, so that privacy/* is a worst case"),
    *(
        Metric(f"attack/<attack>/{metric.name}", meaning, _better(metric.name), write, objective=True)
        for metric in METRICS
        for write, _, meaning in [_SCORES[metric.name]]
    ),
    Metric(
        "attack/<attack>/inverse_error", "error of its learnt inverse on held-out auxiliary images", "max", mse_text
    ),
    Metric("attack/<attack>/inverse_steps", "steps of that inverse's training", None, _SECONDS),
    Metric("attack/<attack>/inverse_flat", "1 if it was trained until it got no better", None, _SECONDS),
    Metric("attack/<attack>/reader_accuracy", "of its own classifier, on held-out auxiliary images", "min", _SHARE),
    Metric("cost/train_seconds", "time of preparation and training", "min", _SECONDS, objective=True),
    Metric("cost/attack_seconds", "time of the audits", "min", _SECONDS, objective=True),
    Metric("cost/update_bytes", "that a round's clients send", "min", _SECONDS, objective=True),
    Metric("swept/<key>", "a swept number again, since MLflow keeps params as text"),
    Metric("privacy/epsilon", "of differential privacy of each image, proved of the whole training", "min", _SHARE),
    Metric("privacy/delta", "at which epsilon holds"),
    Metric(
        "privacy/proved_mse",
        "no one answer's error is below it on average: how much the images scatter that look the same in what is sent",
        "max",
        mse_text,
    ),
    Metric("privacy/k", "images that share one, in the smallest group of all clients", "max", "{:.0f}".format),
    Metric(
        "privacy/membership_auc",
        "how often an attacker that holds all that a client trained on ranks a member above an outsider; 0.5 is chance",
        "min",
        objective=True,
    ),
    Metric("privacy/membership_auc_low", "lower end of its 95 % interval over members and outsiders", "min"),
    Metric("privacy/membership_auc_high", "upper end of it", "min"),
    Metric(
        "privacy/membership_tpr",
        "share of the members that it finds at a false-alarm rate of at most 1 %; 0.01 is chance",
        "min",
        objective=True,
    ),
    Metric("privacy/membership_tpr_low", "lower end of its 95 % interval over members and outsiders", "min"),
    Metric("privacy/membership_tpr_high", "upper end of it", "min"),
    Metric(
        "privacy/left_out_victims",
        "victims that are not attacked: the defence leaves them out of training, or their clients make no whole sum",
    ),
    *(_inversion(known) for known in _INVERSIONS),
    Metric("inversion/chance_accuracy", "an attacker that guesses the class: 1 / classes", None, _SHARE),
    Metric("inversion/judge_accuracy", "that judge's accuracy on untouched private originals", None, _SHARE),
    Metric("inversion/baseline_mse", "error of an attacker that is told the model's label alone", None, mse_text),
    Metric("inversion/heldout_baseline_mse", "the same for test images", None, mse_text),
    Metric(
        "inversion/complete", "1 if an attacker had the weights, and one another reading of answers that are changed"
    ),
    *(_inversion(known, of="<attack>/") for known in _INVERSIONS),
    Metric("inversion/<attack>/target_accuracy", "how often the model itself reads the class: did the attack work?"),
    Metric("inversion/<attack>/queries", "images that a label-only attack asked about", None, _SECONDS),
    Metric("inversion/<attack>/decoder_error", "its decoder's error on the attacker's held-out images", None, mse_text),
    Metric("inversion/<attack>/decoder_steps", "steps of that decoder's training", None, _SECONDS),
    Metric("inversion/<attack>/decoder_flat", "1 if it was trained until it got no better", None, _SECONDS),
    Metric("defense/<diagnostic>", "what the defence says of its own training, mean over clients"),
)
CURVES: tuple[Metric, ...] = (
    Metric("fl/accuracy", "validation accuracy after the round", "max", objective=True),
    Metric("fl/loss", "the clients' mean training loss", "min", objective=True),
    Metric("fl/failed_clients", "clients whose worker was lost and whose turn was replayed", "min", _SECONDS),
    Metric("fl/rejected_clients", "clients whose update could not be trusted and was left out", "min", _SECONDS),
)
SUMMARY: tuple[Metric, ...] = (
    Metric("sweep/trials", "trials of the sweep", None, _SECONDS),
    Metric("sweep/failed", "trials that failed", "min", _SECONDS),
    Metric("sweep/pareto_front", "settings that no other beats in accuracy and MSE", None, _SECONDS),
    Metric("sweep/hypervolume", "area between the origin and that front", "max"),
)
EVERY_ROUND: tuple[str, ...] = tuple(metric.name for metric in CURVES if metric.objective)
"""Objectives that exist after every round, so that a scheduler can compare trials by them."""
_HEADLINES = {"privacy/mse_low", *(f"privacy/{metric.name}" for metric in METRICS if metric.headline)}


def metric(name: str) -> Metric:
    """Return the table's line for a name without placeholders.

    Raises:
        KeyError: the table has no such name.
    """
    for known in (*FINAL, *CURVES, *SUMMARY):
        if fits(name, known.name):
            return known
    raise KeyError(name)


def objectives(attacks: Sequence[str], inversions: Sequence[ModelInversion] = ()) -> list[str]:
    """Return the names that a search may have as objectives.

    Args:
        attacks: the labels of the audit's attacks. The attack without an update always runs, and makes no headline.
        inversions: attacks on the released model.
    """
    rebuilt = any(attack.rebuilds for attack in inversions)
    labels = list(dict.fromkeys([BASELINE_ATTACK, *attacks]))
    attacked = len(labels) > 1
    names = []
    for known in (*FINAL, *CURVES):
        if not known.objective or (known.name in _HEADLINES and not attacked):
            continue
        kind, _, score = known.name.partition("/")
        if kind == "inversion" and not (rebuilt if score in _REBUILT else inversions):
            continue
        names += [known.name.replace("<attack>", label) for label in labels] if "<" in known.name else [known.name]
    return names
