"""One trial as reports see it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from fedveil.attacks.scoring import BASELINE_ATTACK
from fedveil.orchestrator.metrics import fits, metric

FINISHED = "FINISHED"
"""The status that MLflow gives to a run that ended well."""
_UNEXPLAINED = 0.05
"""Share of what a grey image leaves of the update, above which no attack has worked (``benchmarks/unexplained.py``)."""


@dataclass(frozen=True)
class TrialRow:
    """One trial of a sweep, however it was stored.

    Attributes:
        name: the trial's name.
        status: as in MLflow: ``FINISHED``, ``FAILED``, ``KILLED``, ``RUNNING`` or ``SCHEDULED``.
        params: by the shared names, for example ``defense.strength``; numbers may be strings, as MLflow
            returns them.
        metrics: final scalars by the shared names, for example ``privacy/mse``.
        error: what ended a trial that failed.
    """

    name: str
    status: str
    params: Mapping[str, str | float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None

    @property
    def defense(self) -> str:
        """The defence's name."""
        return str(self.params.get("defense.name", "unknown"))

    @property
    def dial(self) -> float | None:
        """The setting that says how much the defence protects (`fedveil.defense.Defense.dial`); None where it has none."""
        return self.number(f"defense.{self._dial}")

    @property
    def dial_text(self) -> str:
        """That setting as tables and figures show it: a strength as a bare number, others with their name."""
        if self.dial is None:
            return ""
        number = f"{self.dial:.3g}"
        return number if self._dial == "strength" else f"{self._dial.replace('_', ' ')} {number}"

    @property
    def title(self) -> str:
        """The defence with that setting, in words."""
        return f"{self.defense.replace('_', ' ')} {self.dial_text}".strip()

    @property
    def _dial(self) -> str:
        return str(self.params.get("defense.dial", "strength"))

    @property
    def finished(self) -> bool:
        """The trial ended well."""
        return self.status == FINISHED

    @property
    def complete(self) -> bool:
        """An adaptive attack ran, so that ``privacy/*`` is a worst case."""
        return self.metrics.get("privacy/complete", 0.0) > 0

    @property
    def collapsed(self) -> bool:
        """The defence's training collapsed for half of the clients or more: their images no longer carry the task."""
        return self.metrics.get("defense/collapsed", 0.0) >= 0.5

    @property
    def weakly_attacked(self) -> bool:
        """No attack explains the updates, by the attacks' own measure: their images would have sent something else.

        Where ``trained_images`` ran, the headline is its bound and rests on no inversion.
        """
        if self._scores_of("trained_images", "mse"):
            return False
        unexplained = self._scores_of(r"[^/]+", "misfit")
        return min(unexplained, default=0.0) > _UNEXPLAINED

    @property
    def comparable(self) -> bool:
        """The trial may compete for the Pareto front: finished, attacked adaptively and not weakly, not collapsed."""
        return self.finished and self.complete and not self.collapsed and not self.weakly_attacked

    def score(self, name: str) -> float:
        """Return a metric for ranking: beyond the guess without an update (``privacy/baseline_mse``) no MSE counts more."""
        value = self.metrics[name]
        return min(value, self.metrics.get("privacy/baseline_mse", value)) if name.endswith("/mse") else value

    def _scores_of(self, attack: str, score: str) -> list[float]:
        """A score of all attacks whose name fits, however they are numbered."""
        name = re.compile(rf"attack/{attack}(_\d+)?/{score}")
        return [value for key, value in self.metrics.items() if name.fullmatch(key)]

    def headline_attack(self, score: str = "mse", *, among: Collection[str] | None = None) -> str | None:
        """Return the label of the attack behind ``privacy/<score>``: the leakiest; None where none has that score.

        Args:
            score: a score per attack, for example ``attacker_accuracy``.
            among: labels to choose from; None for all but the attack without an update.
        """
        scores = {name.split("/")[1]: v for name, v in self.metrics.items() if fits(name, f"attack/<attack>/{score}")}
        labels = scores.keys() - {BASELINE_ATTACK} if among is None else scores.keys() & set(among)
        leakiest = min if metric(f"privacy/{score}").better == "max" else max
        return leakiest(sorted(labels), key=scores.__getitem__, default=None)

    def interval(self, name: str) -> tuple[float, float] | None:
        """Return the ends of a metric's 95 % interval over victims, or None where they were not recorded."""
        low, high = self.metrics.get(f"{name}_low"), self.metrics.get(f"{name}_high")
        return None if low is None or high is None else (low, high)

    def number(self, param: str) -> float | None:
        """Return a parameter as a number, or None where it is absent or no number."""
        try:
            return float(self.params[param])
        except (KeyError, ValueError):
            return None
