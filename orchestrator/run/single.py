"""One trial without Tune: what ``fedveil run`` does."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from fedveil.orchestrator.cluster.executor import RayExecutor
from fedveil.orchestrator.config import Experiment
from fedveil.orchestrator.report import TrialRow
from fedveil.orchestrator.run.paths import ExperimentPaths, tracking_settings
from fedveil.orchestrator.run.setup import make_setup
from fedveil.orchestrator.run.trial import Trial, params_of
from fedveil.orchestrator.tracking import TrialTracker, replay, without_passwords


def run_single(experiment: Experiment, console: Console) -> TrialRow:
    """Run the experiment's one trial on the connected Ray cluster.

    Records that earlier runs could not deliver are delivered first.

    Raises:
        FedveilError: the trial does not fit the cluster.
    """
    files = ExperimentPaths.of(experiment)
    setup = make_setup(experiment)
    tracking = tracking_settings(experiment, files, published=setup.data.published, deliver=True)
    params = params_of(experiment)
    resources = experiment.resources
    console.print(
        f"{resources.workers} worker slot(s), recorded in {escape(without_passwords(tracking.uri))}", soft_wrap=True
    )
    replay(tracking.spool_folder)
    try:
        with RayExecutor(
            resources.workers,
            cpus_per_worker=resources.cpus_per_worker,
            gpus_per_worker=resources.gpus_per_worker,
        ) as executor:
            name, places = files.new_trial(f"{params['defense.name']}-seed{experiment.seed}")

            def say(text: str) -> None:
                console.print(f"[bold]{escape(name)}[/bold]  {escape(text)}", soft_wrap=True)

            with TrialTracker(tracking, parent_run_id=None, name=name, params=params) as tracker:
                final = Trial(experiment, executor, places, say).run(tracker)
    finally:
        waiting = replay(tracking.spool_folder).waiting
        if waiting:
            console.print(
                f"MLflow did not take the records of {waiting} run(s): they wait in {escape(str(tracking.spool_folder))}"
                f" for the next run or sweep of {escape(experiment.experiment)}",
                soft_wrap=True,
            )
    return TrialRow(name, "FINISHED", params, final)
