"""What a diagnosis says: findings, a line each, and what they come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

SHOWN = 3


class Outlook(StrEnum):
    """What a finding means for whoever inverts the update."""

    STOPS = "stops"
    """Nothing can be inverted, or not by what fedveil has."""
    HINDERS = "hinders"
    """Attacks get less, or have to be told more."""
    NEUTRAL = "neutral"
    HELPS = "helps"
    SOLVES = "solves"
    """Images follow from the update without a search."""


@dataclass(frozen=True)
class Finding:
    """One line of a diagnosis.

    >>> Finding("dropout", Outlook.HINDERS, "p = 0.5 in head", "the client's masks are unknown", "say mode='eval'").line
    "dropout: p = 0.5 in head; the client's masks are unknown -> say mode='eval'"

    Attributes:
        what: was looked at.
        outlook: see `Outlook`.
        found: there.
        meaning: of that, for an inversion.
        advice: what to do; empty where nothing has to be done.
    """

    what: str
    outlook: Outlook
    found: str
    meaning: str
    advice: str = ""

    @property
    def line(self) -> str:
        """The finding as one line."""
        return f"{self.what}: {self.found}; {self.meaning}" + (f" -> {self.advice}" if self.advice else "")


@dataclass(frozen=True)
class LayerSize:
    """How much of an update is in one layer.

    Attributes:
        name: of the layer; its parameters' names begin with it.
        numbers: of its parameters that the update holds.
        sent: how many of them are not 0.
        norm: Euclidean norm of the mean gradient there, or of what stands for it where its size is not known.
        share: of that norm in the whole update's.
    """

    name: str
    numbers: int
    sent: int
    norm: float
    share: float


@dataclass(frozen=True)
class Diagnosis:
    """All findings on one update. That an inversion is likely to fail is no proof of privacy: a better one may come.

    >>> import fedveil as fv
    >>> from fedveil.attacks.diagnosis import Finding, Outlook
    >>> fv.Diagnosis((Finding("values", Outlook.STOPS, "all 0", "nothing to invert"),), ()).verdict
    "can't be inverted as it is: values"

    Attributes:
        findings: in the order in which they were made.
        layers: in the model's order, those that the update lacks left out.
    """

    findings: tuple[Finding, ...]
    layers: tuple[LayerSize, ...]

    def of(self, outlook: Outlook) -> tuple[Finding, ...]:
        """Return the findings of one outlook."""
        return tuple(finding for finding in self.findings if finding.outlook is outlook)

    @property
    def verdict(self) -> str:
        """What the findings come to, as one line. It weighs nothing: it names what would have to be wrong."""
        stops, hinders = (", ".join(one.what for one in self.of(kind)) for kind in (Outlook.STOPS, Outlook.HINDERS))
        if stops:
            return f"can't be inverted as it is: {stops}"
        if self.of(Outlook.SOLVES):
            return (
                f"images can be solved for, as far as this lets: {hinders}" if hinders else "images can be solved for"
            )
        return f"an inversion has this in its way: {hinders}" if hinders else "nothing was found in an inversion's way"

    def __str__(self) -> str:
        return "\n".join([*(f"{one.outlook:7}  {one.line}" for one in self.findings), f"verdict: {self.verdict}"])


def some(names: Sequence[str]) -> str:
    """Return the first names of a list that may be long.

    >>> some(["a", "b", "c", "d"])
    'a, b, c and 1 more'
    """
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
