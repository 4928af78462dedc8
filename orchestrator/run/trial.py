"""One trial: prepare the defence, train the federation, attack what it sends, record what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fedveil.defense.base import DefenseContext
from fedveil.fl.executor import Executor
from fedveil.fl.rounds import Simulation, exposures
from fedveil.fl.sent_once import sent_once
from fedveil.orchestrator.config import Experiment
from fedveil.orchestrator.run.audit import Auditor, prepare_audits
from fedveil.orchestrator.run.callbacks import Phase, TrialCallback, TrialResult
from fedveil.orchestrator.run.checkpoint import Progress
from fedveil.orchestrator.run.federation import build_federation, first_state, pretrain
from fedveil.orchestrator.run.membership import measure_membership
from fedveil.orchestrator.run.references import measure_references
from fedveil.orchestrator.run.released import measure_inversion, release
from fedveil.orchestrator.run.setup import Setup

PICTURES = 8
"""Victims whose images are kept."""


class Trial:
    """A trial that is ready to run.

    Args:
        experiment: what to run, with one seed.
        setup: its images.
        executor: where to run it.
        cache: see `DefenseContext`.
        callbacks: told what happens.
    """

    def __init__(
        self,
        experiment: Experiment,
        setup: Setup,
        executor: Executor,
        *,
        cache: Path | None = None,
        callbacks: Sequence[TrialCallback] = (),
    ) -> None:
        self.experiment = experiment
        self.setup = setup
        self.executor = executor
        self.cache = cache
        self.callbacks = callbacks

    def run(self, resumed: Progress | None = None) -> TrialResult:
        """Run to the end; from ``resumed`` on, the end is the same, bit for bit."""
        experiment, setup, executor = self.experiment, self.setup, self.executor
        defense = experiment.build_defense()
        defense.guarantee(())  # what cannot be reckoned is said before anything is trained
        with self._during(Phase.DEFENSE):
            context = DefenseContext(
                sent_once(replace(setup.public), executor),  # defences may hold it, and the setup outlives the workers
                setup.model,
                torch.device("cpu"),
                experiment.seed,
                self.cache,
                tuple(experiment.fl.augmentation),
            )
            public = pretrain(defense, context, executor)
            federation, diagnostics = build_federation(experiment, setup, context, public, executor)
            # Who takes part when is drawn beforehand, so this is known, or refused, before anything is trained.
            spent = defense.guarantee(exposures(federation, experiment.fl.rounds))
            proved = {f"privacy/{name}": number for name, number in spent.items()}
            state = resumed.state if resumed else first_state(experiment, setup, federation, executor, cache=self.cache)
        for callback in self.callbacks:
            callback.on_prepared(diagnostics)
        with self._during(Phase.ATTACKER):
            auditor = prepare_audits(experiment, setup, federation, context, public, executor, pictures=PICTURES)

        simulation = Simulation(federation, executor, state)
        progress = resumed or Progress(state)
        privacy = auditor.summary(progress.records)
        audited = experiment.audit.round_numbers(experiment.fl.rounds)
        for number in range(simulation.state.round, experiment.fl.rounds):
            if number in audited:
                with self._during(Phase.AUDIT, number):
                    report = auditor.audit(progress.state, progress.past)
                    progress = progress.after_audit(report)
                    privacy = auditor.summary(progress.records)
                for callback in self.callbacks:
                    callback.on_audit(report)
            with self._during(Phase.ROUND, number):
                trained = simulation.round()
                accuracy = simulation.evaluate_quickly(setup.validation)
            progress = progress.after_round(simulation.state, look_back=experiment.audit.observations - 1)
            curves = {
                "fl/accuracy": accuracy,
                "fl/loss": trained.loss,
                "fl/failed_clients": float(trained.failed_clients),
                "fl/rejected_clients": float(len(trained.rejections)),
            }
            running = {**curves, "utility/val_accuracy": accuracy, **privacy}
            for callback in self.callbacks:
                callback.on_round(progress, trained, running)

        metrics = {**privacy, **diagnostics, **proved, **self._measured(simulation, auditor, context, public)}
        for callback in self.callbacks:
            metrics |= callback.scores()
        result = TrialResult(progress, metrics)
        for callback in self.callbacks:
            callback.on_final(result)
        return result

    def _measured(
        self, simulation: Simulation, auditor: Auditor, context: DefenseContext, public: Any
    ) -> dict[str, float]:
        """Return what is measured after the last round: of the released model, and utility."""
        experiment, setup, executor = self.experiment, self.setup, self.executor
        federation = simulation.federation
        metrics: dict[str, float] = {}
        if experiment.audit.membership:
            with self._during(Phase.MEMBERSHIP):
                metrics |= measure_membership(experiment, setup, federation, context, auditor.law, executor)
        with self._during(Phase.RELEASE):
            released, told = release(experiment, federation, context, public, simulation.state, executor)
        metrics |= told
        if setup.release is not None:
            with self._during(Phase.INVERSION):
                found = measure_inversion(
                    experiment, setup, setup.release, released, simulation.state, executor, cache=self.cache
                )
            metrics |= found.metrics()
            for callback in self.callbacks:
                callback.on_inversion(found)
        with self._during(Phase.REFERENCES):
            metrics |= measure_references(experiment, setup, federation, executor, cache=self.cache)
        finished = simulation if released is federation else Simulation(released, executor, simulation.state)
        return {**metrics, **self._utility(finished)}

    def _utility(self, simulation: Simulation) -> dict[str, float]:
        test, validation = (self.executor.broadcast(images) for images in (self.setup.data.test, self.setup.validation))
        utility = simulation.evaluate(test)
        return {
            "utility/accuracy": utility.accuracy,
            "utility/val_accuracy": simulation.evaluate(validation).accuracy,
            "utility/auc": utility.auc,
            "utility/clean_accuracy": simulation.evaluate_clean(test).accuracy,
            "utility/test_images": float(len(self.setup.data.test)),
        }

    @contextmanager
    def _during(self, phase: Phase, number: int = 0) -> Iterator[None]:
        for callback in self.callbacks:
            callback.on_begin(phase, number)
        yield
        for callback in self.callbacks:
            callback.on_end(phase)
