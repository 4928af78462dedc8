"""One trial: prepare the defence, train the federation, attack what it sends, record what came of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from fedveil.attacks.audit import AuditContext, AuditPlan, audit, build_scorer, prepare_attackers
from fedveil.attacks.scoring import Scorer, summarise
from fedveil.defense import Defense, DefenseContext, Stack
from fedveil.fl.data import Images
from fedveil.fl.executor import Executor, Handle, Slot
from fedveil.fl.rounds import (
    Client,
    Federation,
    evaluate,
    evaluate_clean,
    evaluate_quickly,
    play_round,
    start,
)
from fedveil.fl.training import LocalTraining
from fedveil.orchestrator.config import Experiment
from fedveil.orchestrator.run.checkpoint import Progress, record_to_plain, tensors_of
from fedveil.orchestrator.run.setup import Setup, make_setup
from fedveil.orchestrator.tracking import TrialTracker, without_passwords
from fedveil.orchestrator.tracking.names import RECONSTRUCTION_GRID

PICTURES = 8
Say = Callable[[str], None]


@dataclass(frozen=True)
class TrialPaths:
    """Where a trial writes.

    Attributes:
        folder: its results.
        cache: modules trained on public images alone, shared by all trials of this machine.
    """

    folder: Path
    cache: Path


def params_of(experiment: Experiment) -> dict[str, str | float]:
    """Return the flat parameters that MLflow and reports share; a stack has those of its first part that has them."""
    params: dict[str, str | float] = {
        "data.name": experiment.data.name,
        "model.name": experiment.model.name,
        "defense.name": "+".join(str(part["name"]) for part in experiment.defense),
        "fl.clients": experiment.fl.clients,
        "fl.rounds": experiment.fl.rounds,
        "seed": experiment.seed,
    }
    defense = experiment.build_defense()
    parts = defense.parts if isinstance(defense, Stack) else (defense,)
    for key in ("strength", "privacy_weight", "utility_weight"):
        values = [getattr(part, key) for part in parts if hasattr(part, key)]
        if values:
            params[f"defense.{key}"] = float(values[0])
    return params


@dataclass(frozen=True)
class _Preparing:
    defense: Handle[Defense]
    public: Handle[Images]
    private: Handle[Images] | None
    client: int
    experiment: Experiment
    model: Any
    cache: Path


def _prepare(slot: Slot, job: _Preparing) -> Defense:
    preparation = DefenseContext(job.public.get(), job.model, slot.device, job.experiment.seed, job.cache)
    if job.private is None:
        return job.defense.get().pretrain(preparation)
    return job.defense.get().prepare(job.private.get(), preparation, job.client)


@dataclass(frozen=True)
class _Judging:
    public: Handle[Images]
    setup: Any
    seed: int
    cache: Path


def _judge(slot: Slot, job: _Judging) -> Scorer:
    gallery, classes = job.setup
    return build_scorer(job.public.get(), gallery, classes=classes, seed=job.seed, device=slot.device, cache=job.cache)


class Trial:
    """A trial that is ready to run.

    Args:
        experiment: what to run.
        executor: where to run it.
        files: where to write.
        say: is told, in a line, what the trial does now.
    """

    def __init__(self, experiment: Experiment, executor: Executor, files: TrialPaths, say: Say) -> None:
        self.experiment = experiment
        self.executor = executor
        self.files = files
        self.say = say

    def run(
        self,
        tracker: TrialTracker,
        *,
        resumed: Progress | None = None,
        on_round: Callable[[Progress, Mapping[str, float]], None] = lambda progress, metrics: None,
    ) -> dict[str, float]:
        """Run to the end and return the final metrics.

        Args:
            tracker: of this trial; the caller closes it.
            resumed: go on from here.
            on_round: is given what a checkpoint needs and the running metrics after every round.
        """
        began = time.monotonic()
        setup = make_setup(self.experiment)
        for note in setup.data.notes:
            self.say(f"note: {note}")
        tracker.log_dict(self._resolved(), "experiment.yaml")
        federation, shared, context, prepared = self._prepare(setup)
        shared_context = self.executor.broadcast(context)
        test = self.executor.broadcast(setup.data.test)
        diagnostics = _mean_diagnostics([d.get() for d in prepared])
        if diagnostics.get("defense/collapsed", 0) > 0:
            self.say(
                f"the minimax game collapsed for {diagnostics['defense/collapsed']:.0%} of the clients: the perturbed images"
                " hardly carry the classes; lower defense.privacy_weight or raise defense.utility_weight"
            )
        progress = resumed or Progress(state=start(federation))
        progress = replace(
            progress, run_id=tracker.run_id, train_seconds=progress.train_seconds + time.monotonic() - began
        )
        audited = self.experiment.audit.round_numbers(self.experiment.fl.rounds)
        running: dict[str, float] = {}
        while progress.state.round < self.experiment.fl.rounds:
            number = progress.state.round
            if number in audited and number not in progress.audited:
                progress = self._audit(context, shared_context, progress)
            began = time.monotonic()
            state, report = play_round(federation, shared, progress.state, self.executor)
            accuracy = evaluate_quickly(federation, shared, state, setup.validation, self.executor)
            progress = replace(
                progress,
                state=state,
                run_id=tracker.run_id,
                train_seconds=progress.train_seconds + time.monotonic() - began,
                update_bytes=progress.update_bytes + report.update_bytes,
            )
            curves = {
                "fl/accuracy": accuracy,
                "fl/loss": report.loss,
                "fl/failed_clients": float(report.failed_clients),
            }
            tracker.log_curve(curves, step=number)
            self.say(
                f"round {number + 1}/{self.experiment.fl.rounds}: accuracy {accuracy:.3f}, loss {report.loss:.3f}"
                + (f", {report.failed_clients} client turn(s) replayed" if report.failed_clients else "")
            )
            running = {**curves, "utility/val_accuracy": accuracy, **self._privacy(progress)}
            on_round(progress, running)

        utility = evaluate(federation, shared, progress.state, test, self.executor)
        clean = evaluate_clean(federation, shared, progress.state, test, self.executor)
        validated = evaluate(
            federation, shared, progress.state, self.executor.broadcast(setup.validation), self.executor
        )
        final = {
            "utility/accuracy": utility.accuracy,
            "utility/val_accuracy": validated.accuracy,
            "utility/auc": utility.auc,
            "utility/clean_accuracy": clean.accuracy,
            **self._privacy(progress),
            **diagnostics,
            "cost/train_seconds": progress.train_seconds,
            "cost/attack_seconds": progress.attack_seconds,
            "cost/update_bytes": progress.update_bytes / self.experiment.fl.rounds,
        }
        tracker.log_final(final)
        self._write(progress, final, setup, tracker)
        self.say(
            f"done: accuracy {final['utility/accuracy']:.3f}, worst-case MSE {final.get('privacy/mse', float('nan')):.4f}"
        )
        return final

    def _prepare(self, setup: Setup) -> tuple[Federation, Handle[Federation], AuditContext, list[Handle[Defense]]]:
        experiment, executor = self.experiment, self.executor
        untrained = executor.broadcast(experiment.build_defense())
        public = executor.broadcast(setup.public)
        shards = [executor.broadcast(shard) for shard in setup.shards]

        def job(defense: Handle[Defense], private: Handle[Images] | None, client: int) -> _Preparing:
            return _Preparing(defense, public, private, client, experiment, setup.model, self.files.cache)

        self.say(f"preparing the defence on {len(setup.public)} public images")
        (pretrained,) = executor.map(_prepare, [job(untrained, None, -1)])
        base = executor.broadcast(pretrained)
        self.say(f"preparing it with {len(shards)} clients")
        own = executor.map(_prepare, [job(base, shard, client) for client, shard in enumerate(shards)])
        prepared = [executor.broadcast(defense) for defense in own]

        strategy = experiment.fl.build_strategy()
        training = LocalTraining(
            kind=strategy.local_kind,
            epochs=experiment.fl.local_epochs,
            batch_size=experiment.fl.batch_size,
            learning_rate=experiment.fl.learning_rate,
            proximal=strategy.proximal,
        )
        federation = Federation(
            model=setup.model,
            clients=tuple(
                Client(number, len(shard), handle, hooks)
                for number, (shard, handle, hooks) in enumerate(zip(setup.shards, shards, prepared, strict=True))
            ),
            strategy=strategy,
            training=training,
            cohort=experiment.fl.cohort_size,
            shares=experiment.fl.client_chunks,
            seed=experiment.seed,
            learning_rate_decay=experiment.fl.learning_rate_decay,
        )
        shared = executor.broadcast(federation)
        plan = AuditPlan(
            targets=setup.targets,
            attacks=tuple(experiment.audit.build_attacks()),
            labels_known=experiment.audit.labels == "known",
            local_steps=experiment.audit.local_steps,
            seed=experiment.seed,
            device_chunk=-(-len(setup.targets) // experiment.resources.workers),
        )
        self.say("the attacker prepares: " + ", ".join(attack.name for attack in plan.attacks))
        judging = _Judging(public, (setup.gallery, len(setup.data.classes)), experiment.seed, self.files.cache)
        (scorer,) = executor.map(_judge, [judging])
        trained_on = untrained.get().trained_on
        preparations = prepare_attackers(
            plan,
            untrained,
            trained_on,
            shared,
            prepared,
            public,
            experiment.audit.build_inverse(),
            executor,
            self.files.cache,
        )
        context = AuditContext(plan, shared, public, executor.broadcast(scorer), preparations, trained_on)
        return federation, shared, context, prepared

    def _audit(self, context: AuditContext, shared: Handle[AuditContext], progress: Progress) -> Progress:
        began = time.monotonic()
        number = progress.state.round
        self.say(f"audit of round {number}: {self.experiment.audit.victims} victims")
        result = audit(context, shared, progress.state, self.executor, pictures=PICTURES)
        return replace(
            progress,
            records=(*progress.records, *result.records),
            pictures=result.pictures if not progress.pictures else progress.pictures,
            audited=(*progress.audited, number),
            attack_seconds=progress.attack_seconds + time.monotonic() - began,
        )

    def _resolved(self) -> dict[str, Any]:
        """The whole configuration, without the password of a tracking address."""
        return dict(without_passwords(self.experiment.model_dump(mode="json")))

    def _privacy(self, progress: Progress) -> dict[str, float]:
        if not progress.records:
            return {}
        adaptive = frozenset(a.name for a in self.experiment.audit.build_attacks() if a.adaptive)
        return summarise(progress.records, adaptive=adaptive)

    def _write(self, progress: Progress, final: Mapping[str, float], setup: Setup, tracker: TrialTracker) -> None:
        folder = self.files.folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "experiment.yaml").write_text(yaml.safe_dump(self._resolved(), sort_keys=False), encoding="utf-8")
        (folder / "metrics.json").write_text(json.dumps(dict(final), indent=2) + "\n", encoding="utf-8")
        records = folder / "privacy_records.json"
        records.write_text(json.dumps([record_to_plain(r) for r in progress.records]) + "\n", encoding="utf-8")
        tracker.log_file(records)
        originals, trained, rebuilt = tensors_of(progress.pictures)
        torch.save({"originals": originals, "trained": trained, "reconstructions": rebuilt}, folder / "pictures.pt")
        captions = [setup.data.classes[r] for r in _labels(progress, len(originals))]
        from fedveil.orchestrator.report.figures import reconstruction_figure

        figure = folder / "reconstruction.png"
        reconstruction_figure(figure, originals, trained, rebuilt, captions)
        tracker.log_image(figure, RECONSTRUCTION_GRID, step=progress.audited[0])


def _labels(progress: Progress, count: int) -> list[int]:
    labels = {record.victim: record.label for record in progress.records}
    return [labels[victim] for victim in sorted(labels)[:count]]


def _mean_diagnostics(defenses: list[Defense]) -> dict[str, float]:
    """Average the clients' diagnostics; ``defense/collapsed`` is the share of clients whose game collapsed."""
    numbers = [defense.diagnostics() for defense in defenses]
    return {f"defense/{key}": sum(n[key] for n in numbers) / len(numbers) for key in numbers[0]}
