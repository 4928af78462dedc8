"""What goes on around a trial without being part of it: callbacks, and the two that need nothing but the trial itself."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from statistics import fmean

from fedveil.attacks.audit.report import AuditReport
from fedveil.attacks.model_inversion.audit import InversionReport
from fedveil.defense.stack import makes_guard
from fedveil.fl.progress import EVERY, duration
from fedveil.fl.rounds import RoundReport
from fedveil.fl.trust import Rejection, listed
from fedveil.orchestrator.cluster.progress import Say
from fedveil.orchestrator.config import Experiment
from fedveil.orchestrator.run.checkpoint import Progress
from fedveil.orchestrator.run.setup import Setup


class Phase(Enum):
    """What a trial does now."""

    DEFENSE = "the defence is prepared"
    ATTACKER = "the attacker prepares"
    AUDIT = "a round's updates are attacked"
    MEMBERSHIP = "clients' images are told from others"
    ROUND = "a round is trained"
    RELEASE = "the finished model's answers are prepared"
    INVERSION = "the released model is attacked"
    REFERENCES = "what does without the federation is trained"


@dataclass(frozen=True)
class TrialResult:
    """What a trial ends with.

    Attributes:
        progress: its last.
        metrics: its final scalars.
    """

    progress: Progress
    metrics: Mapping[str, float]


class TrialCallback:
    """Told what a trial does, in this order; each method does nothing by default."""

    def on_begin(self, phase: Phase, number: int) -> None:
        """A phase begins, before or in round ``number``."""

    def on_end(self, phase: Phase) -> None:
        """The phase is over."""

    def on_prepared(self, diagnostics: Mapping[str, float]) -> None:
        """The defence is prepared; what it says of itself, ``defense/<name>`` each."""

    def on_audit(self, report: AuditReport) -> None:
        """A round's updates were attacked."""

    def on_round(self, progress: Progress, report: RoundReport, running: Mapping[str, float]) -> None:
        """A round was trained.

        Args:
            progress: all that is needed to go on from here.
            report: of the round.
            running: the metrics that are known by now.
        """

    def on_inversion(self, report: InversionReport) -> None:
        """The released model was attacked."""

    def scores(self) -> Mapping[str, float]:
        """Return this callback's own share in the final scalars."""
        return {}

    def on_final(self, result: TrialResult) -> None:
        """The trial is over."""


CLOSE = 0.9
"""So near to each other are the errors of the game's adversary and of a fresh attacker where nothing has to be said."""
PAID = {
    Phase.DEFENSE: "cost/train_seconds",
    Phase.ROUND: "cost/train_seconds",
    Phase.ATTACKER: "cost/attack_seconds",
    Phase.AUDIT: "cost/attack_seconds",
    Phase.MEMBERSHIP: "cost/attack_seconds",
    Phase.RELEASE: "cost/train_seconds",
    Phase.INVERSION: "cost/attack_seconds",
}
"""Where the time of a phase is counted."""


class Costs(TrialCallback):
    """A stopwatch, and a count of the bytes that clients send.

    Args:
        rounds: of the trial.
        spent: `spent` of the trial that is resumed.
        clock: seconds.
    """

    def __init__(
        self, rounds: int, spent: Mapping[str, float] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.spent = {**dict.fromkeys([*PAID.values(), "cost/update_bytes"], 0.0), **(spent or {})}
        self._rounds = rounds
        self._clock = clock
        self._began = 0.0

    def on_begin(self, phase: Phase, number: int) -> None:
        """Start the watch."""
        self._began = self._clock()

    def on_end(self, phase: Phase) -> None:
        """Stop the watch."""
        if phase in PAID:
            self.spent[PAID[phase]] += self._clock() - self._began

    def on_round(self, progress: Progress, report: RoundReport, running: Mapping[str, float]) -> None:
        """Count what a client sent."""
        self.spent["cost/update_bytes"] += report.update_bytes / self._rounds

    def scores(self) -> Mapping[str, float]:
        """Return the costs so far."""
        return self.spent


class _Left:
    """How long the audits and rounds that are still to come will take, by those that are over.

    Args:
        rounds: of the trial.
        audited: before which of them there is an audit.
    """

    def __init__(self, rounds: int, audited: Iterable[int]) -> None:
        self._numbers = {Phase.ROUND: range(rounds), Phase.AUDIT: sorted(audited)}
        self._took: dict[Phase, list[float]] = {phase: [] for phase in self._numbers}

    def took(self, phase: Phase, seconds: float) -> None:
        """Count a phase that is over."""
        if phase in self._took:
            self._took[phase].append(seconds)

    def after(self, rounds: int) -> float | None:
        """Return the seconds that are left when so many rounds are over; None where none are, or nothing can be said yet."""
        ahead = {phase: sum(number >= rounds for number in numbers) for phase, numbers in self._numbers.items()}
        if not any(ahead.values()) or any(count and not self._took[phase] for phase, count in ahead.items()):
            return None
        return sum(count * fmean(self._took[phase]) for phase, count in ahead.items() if count)


class Speech(TrialCallback):
    """Says in a line what the trial does now. Of quick rounds, and of quick audits, it is one line in `EVERY` seconds.

    Args:
        say: is told the lines.
        experiment: what runs.
        setup: its images.
        clock: seconds.
    """

    def __init__(
        self, say: Say, experiment: Experiment, setup: Setup, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._say = say
        self._rounds = experiment.fl.rounds
        self._clock = clock
        self._began = 0.0
        self._left = _Left(self._rounds, experiment.audit.round_numbers(self._rounds))
        self._said: dict[Phase, float] = {}
        self._failed = 0
        self._rejections: list[Rejection] = []
        self._noted: set[str] = set()
        self._note(setup.data.notes)
        self._lines = {
            Phase.DEFENSE: f"preparing the defence on {len(setup.public)} public images and with"
            f" {len(setup.shards)} clients",
            Phase.ATTACKER: f"the attacker prepares with {len(setup.auxiliary)} auxiliary images: "
            + ", ".join(experiment.audit.attack_labels()),
            Phase.AUDIT: "audit of round {number}: " + f"{experiment.audit.victims} victims",
        }
        if experiment.audit.membership:
            self._lines[Phase.MEMBERSHIP] = "telling clients' images from others by all that a client trained on"
        if makes_guard(experiment.build_defense()):
            self._lines[Phase.RELEASE] = (
                f"learning from {len(setup.public)} public images what the finished model's answers are to pass"
            )
        if setup.release is not None:
            self._lines[Phase.INVERSION] = (
                f"attacking the released model with {len(setup.release.attacker)} images: "
                + ", ".join(experiment.audit.model_inversion_labels())
            )
        if experiment.references.measure:
            clients = min(experiment.references.clients, len(setup.shards))
            self._lines[Phase.REFERENCES] = (
                f"without the federation: {len(setup.public)} public images alone, and with each of {clients} clients'"
                " own (kept for other trials)"
            )

    def on_begin(self, phase: Phase, number: int) -> None:
        """Say what begins, if it takes long."""
        self._began = self._clock()
        if phase in self._lines and (phase is not Phase.AUDIT or self._is_due(phase)):
            self._say(self._lines[phase].format(number=number))

    def on_end(self, phase: Phase) -> None:
        """Note how long it took."""
        self._left.took(phase, self._clock() - self._began)

    def on_prepared(self, diagnostics: Mapping[str, float]) -> None:
        """Say if the defence failed to learn, or what it learnt against was another attacker than those who will come."""
        if diagnostics.get("defense/collapsed", 0) > 0:
            self._say(
                f"the minimax training collapsed for {diagnostics['defense/collapsed']:.0%} of the clients: the perturbed"
                " images hardly carry the classes; lower defense.privacy_weight or raise defense.utility_weight"
            )

        gap = diagnostics.get("defense/adversary_gap", 1.0)
        if not CLOSE <= gap <= 1 / CLOSE:
            better = "less" if gap < 1 else "more"
            self._say(
                f"the adversary in the defence's game errs by {better} than an attacker that starts afresh, {gap:.2f} times"
                " as much on public images that both never learnt from: what the game says of an attacker holds for its own"
                " adversary alone"
            )

    def on_audit(self, report: AuditReport) -> None:
        """Say what the reader of the numbers has to know, once."""
        self._note(report.notes)

    def on_round(self, progress: Progress, report: RoundReport, running: Mapping[str, float]) -> None:
        """Say how the training goes, with what happened in the rounds of which nothing was said."""
        self._failed += report.failed_clients
        self._rejections += report.rejections
        number = progress.state.round
        if not self._is_due(Phase.ROUND) and number < self._rounds:
            return
        left = self._left.after(number)
        self._say(
            f"round {number}/{self._rounds}: accuracy {running['fl/accuracy']:.3f}, loss {report.loss:.3f}"
            + (f", {self._failed} client turn(s) replayed" if self._failed else "")
            + (f", rejected {listed(self._rejections)}" if self._rejections else "")
            + (f", rounds and audits: about {duration(left)} left" if left is not None else "")
        )
        self._failed, self._rejections = 0, []

    def on_final(self, result: TrialResult) -> None:
        """Say what came out."""
        accuracy, error = result.metrics["utility/accuracy"], result.metrics.get("privacy/mse", float("nan"))
        self._say(f"done: accuracy {accuracy:.3f}, worst-case MSE {error:.4f}")

    def _is_due(self, phase: Phase) -> bool:
        """Whether the last line about such a phase was said long enough ago; then it is said now."""
        now = self._clock()
        due = now - self._said.get(phase, -math.inf) >= EVERY
        if due:
            self._said[phase] = now
        return due

    def _note(self, notes: Iterable[str]) -> None:
        for note in notes:
            if note not in self._noted:
                self._noted.add(note)
                self._say(f"note: {note}")
