"""What came back under each protection, in words for readers who are responsible for the images and not for the code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from fedveil.attacks.audit.figures import mse_text
from fedveil.attacks.scoring import BASELINE_ATTACK
from fedveil.orchestrator.report.comparison import representatives
from fedveil.orchestrator.report.groups import TrialGroup, group_seeds
from fedveil.orchestrator.report.html.words import error_with_ends, percent, percent_with_ends
from fedveil.orchestrator.report.references import UNDEFENDED
from fedveil.orchestrator.report.rows import TrialRow

WHOLE, MOST, HARDLY = 0.9, 0.5, 0.1
"""Shares of the way from a guess to an exact copy at which the words change; chosen for reading, with no other meaning."""
_SEEN = ("privacy/attacker_accuracy", "privacy/adaptive_attacker_accuracy")


class Level(StrEnum):
    """What a finding says, in two or three words."""

    LEAKS = "images leak"
    PARTLY = "something leaks"
    NOTHING = "hardly more than a guess"
    UNKNOWN = "not known"


@dataclass(frozen=True)
class Finding:
    """What came back under one setting.

    Attributes:
        row: the setting.
        level: the short of it.
        lines: sentences, the most telling first.
    """

    row: TrialGroup
    level: Level
    lines: tuple[str, ...]


def settings_to_answer_for(rows: Sequence[TrialRow]) -> list[TrialGroup]:
    """Return a setting per protection: the one that stands for it (`representatives`), or its first if none may.

    The undefended one comes first, since all others are read beside it.
    """
    chosen = {row.defense: row for row in representatives(rows)}
    for row in group_seeds(rows):
        chosen.setdefault(row.defense, row)
    return sorted(chosen.values(), key=lambda row: (row.defense != UNDEFENDED, row.defense))


def finding(row: TrialGroup, undefended: TrialGroup | None, gallery: int | None) -> Finding:
    """Return what came back under a setting.

    Args:
        row: the setting.
        undefended: the setting without protection, if there is one.
        gallery: images in the line-up in which victims had to be found; None where that differs or is not known.
    """
    unknown = _unknown(row)
    # Weak attacks, or such as do not know the protection, may still have found much: that is the least that can be found.
    told = "privacy/mse" in row.metrics and not row.collapsed
    level = _level(row, gallery) if told else Level.UNKNOWN
    rest = (*_proved(row), *_utility(row, undefended))
    if unknown and level not in (Level.LEAKS, Level.PARTLY):
        return Finding(row, Level.UNKNOWN, (unknown, *rest))
    lines = [_image(row), *_identity(row, gallery), *_membership(row), *_class(row)]
    least = [f"{unknown} What follows was found all the same, and is the least that can be."] if unknown else []
    return Finding(row, level, (*least, *lines, *rest))


def recovered(row: TrialGroup) -> float | None:
    """Return how much of the way from a guess to an exact copy the best reconstruction went, in [0, 1].

    That is 1 - MSE / baseline MSE; None where there was no guess to compare with.
    """
    guess = row.metrics.get("privacy/baseline_mse", 0.0)
    return None if guess <= 0 else min(max(1 - row.metrics["privacy/mse"] / guess, 0.0), 1.0)


def _unknown(row: TrialGroup) -> str:
    """Say why the numbers support no statement; empty where they do."""
    if "privacy/mse" not in row.metrics:
        return "No attack on an update was scored."
    if row.collapsed:
        return (
            "The protection's own training failed: the images it made no longer show what the model has to learn, and what"
            " an attack finds in them says nothing of a protection that works."
        )
    if row.weakly_attacked:
        return (
            "No attack worked, by the attacks' own measure: the images that they found would have led to other updates. That"
            " is a failure of the attacks, and no sign of protection. Repeat it with more steps."
        )
    if not row.complete:
        return (
            "No attack that knows the protection was tried. Attackers who do not know it found an error of"
            f" {error_with_ends(row, 'privacy/mse')}; one who does may find far more."
        )
    return ""


def _image(row: TrialGroup) -> str:
    error, share = error_with_ends(row, "privacy/mse"), recovered(row)
    if share is None:
        return f"Image: the best reconstruction is off by {error}; there is no guess to compare it with."
    guess = mse_text(row.metrics["privacy/baseline_mse"])
    if _like_a_guess(row):
        how = "no attack came clearly nearer than a guess"
    elif share >= WHOLE:
        how = "it came back nearly whole"
    elif share >= MOST:
        how = "most of it came back"
    elif share >= HARDLY:
        how = "part of it came back"
    else:
        how = "hardly more came back than a guess tells"
    return (
        f"Image: {how}. The best reconstruction is off by {error}, where an exact copy is at 0 and a guess without any"
        f" update at {guess}: it went {percent(share)} of the way."
    )


def _like_a_guess(row: TrialGroup) -> bool:
    """The error's interval, or where there is none the error, reaches the guess."""
    ends = row.interval("privacy/mse")
    return (row.metrics["privacy/mse"] if ends is None else ends[1]) >= row.metrics["privacy/baseline_mse"]


def _identity(row: TrialGroup, gallery: int | None) -> list[str]:
    name = "privacy/identification_rate"
    if name not in row.metrics:
        return []
    among = "" if gallery is None else f" of {gallery} images"
    guess = _guessed_in_line_up(row, gallery)
    beside = "" if guess is None else f", where a guess without the update finds {percent(guess)}"
    return [
        f"Person: for {percent_with_ends(row, name)} of them the right image was picked from a line-up{among}{beside}."
    ]


def _guessed_in_line_up(row: TrialGroup, gallery: int | None) -> float | None:
    """How often the image is picked by chance, or by the guess of an attacker without the update if that does better."""
    known = [1 / gallery] if gallery else []
    guess = row.metrics.get(f"attack/{BASELINE_ATTACK}/identification_rate")
    return max([*known, *([] if guess is None else [guess])], default=None)


def _membership(row: TrialGroup) -> list[str]:
    name = "privacy/membership_auc"
    if name not in row.metrics:
        return []
    ends = row.interval(name)
    interval = f" (95 % interval {ends[0]:.2f} to {ends[1]:.2f})" if ends else ""
    said = (
        "Taking part: an attacker who holds all that a client trained on ranks an image that took part above one that did"
        f" not in {row.metrics[name]:.2f}{interval} of cases; 0.5 is a coin's toss."
    )
    return [said]


def _proved(row: TrialGroup) -> list[str]:
    name = "privacy/epsilon"
    if name not in row.metrics:
        return []
    guessed = any(key.endswith(".accountant") and value == "gdp" for key, value in row.params.items())
    by = "by an approximation that may name too little, and is no proof" if guessed else "by proof"
    at = f" at delta {row.metrics['privacy/delta']:g}" if "privacy/delta" in row.metrics else ""
    said = (
        f"Differential privacy: epsilon is {row.metrics[name]:.3g}{at}, {by}, of each image over the whole training and"
        " whatever the attack. At 0 nothing tells whether an image took part; from about 10 on hardly anything is promised."
    )
    return [said]


def _class(row: TrialGroup) -> list[str]:
    read = [name for name in _SEEN if name in row.metrics]
    if not read:
        return []
    most = max(read, key=lambda name: row.metrics[name])
    chance = row.metrics.get("privacy/chance_accuracy")
    beside = "" if chance is None else f", where chance is {percent(chance)}"
    return [f"Diagnosis (the class): read off right for {percent_with_ends(row, most)}{beside}."]


def _utility(row: TrialGroup, undefended: TrialGroup | None) -> list[str]:
    name = "utility/accuracy"
    if name not in row.metrics:
        return []
    lost = ""
    if undefended is not None and undefended.name != row.name and name in undefended.metrics:
        points = 100 * (undefended.metrics[name] - row.metrics[name])
        lost = f", {abs(points):.1f} points {'below' if points >= 0 else 'above'} that without protection"
    return [f"Use: the model is right on {percent_with_ends(row, name)} of the test images{lost}."]


def _level(row: TrialGroup, gallery: int | None) -> Level:
    share = recovered(row)
    image = share is not None and not _like_a_guess(row)
    rate = row.metrics.get("privacy/identification_rate", 0.0)
    found = _above(row, "privacy/identification_rate", _guessed_in_line_up(row, gallery))
    if (image and share is not None and share >= MOST) or (found and rate >= MOST):
        return Level.LEAKS
    if (image and share is not None and share >= HARDLY) or found or _above(row, "privacy/membership_auc", 0.5):
        return Level.PARTLY
    return Level.UNKNOWN if share is None else Level.NOTHING


def _above(row: TrialGroup, name: str, chance: float | None) -> bool:
    """Whether a score is above chance by its 95 % interval. Without an interval, or a known chance, any hit counts."""
    if name not in row.metrics:
        return False
    ends = row.interval(name)
    low = row.metrics[name] if ends is None else ends[0]
    return low > (chance or 0.0)
