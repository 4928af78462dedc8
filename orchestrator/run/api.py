"""Running an experiment from Python: `run` and `sweep`. The command line calls the same functions."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fedveil.fl.errors import FedveilError
from fedveil.orchestrator.cluster.connection import connect, offline_environment
from fedveil.orchestrator.interrupts import interruptible

if TYPE_CHECKING:
    from fedveil.orchestrator.config import Experiment
    from fedveil.orchestrator.run.results import RunResult, SweepResult
    from fedveil.orchestrator.run.setup import Setup


def run(
    experiment: str | Path | Mapping[str, Any],
    *,
    overrides: Iterable[str] = (),
    plugins: Sequence[str] = (),
    ray: str | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> RunResult:
    """Run an experiment's trial, or one for each of its seeds.

    >>> import os, tempfile, fedveil as fv
    >>> os.chdir(tempfile.mkdtemp())  # results are written to runs/ here
    >>> attack = {"name": "inverting_gradients", "steps": 2}
    >>> tiny = {"experiment": "tiny", "data": {"limit": 60}, "fl": {"clients": 2, "rounds": 1}}
    >>> tiny |= {"audit": {"victims": 3, "attacks": [attack]}, "references": {"measure": False}}
    >>> result = fv.run(tiny)
    >>> len(result.rows), "privacy/mse" in result.rows[0].metrics
    (1, True)


    Args:
        experiment: a YAML file, or what would stand in it.
        overrides: ``a.b=value`` each, as for ``--set``.
        plugins: modules and Python files that are imported first wherever the experiment runs.
        ray: address of a Ray cluster; None for ``RAY_ADDRESS``, or else one of this process's own.
        resume: go on with the interrupted run of that name, from its last round.
        console: for progress; None to keep quiet.

    Raises:
        FedveilError: a setting is wrong (a line per mistake), the data or the cluster do not fit, the training diverged, or
            there is nothing to resume, or with other settings.
        fedveil.fl.errors.TrialError: another error ended the trial; its traceback is in a file.
    """
    offline_environment()
    console = console or Console(quiet=True)
    with console.status("loading PyTorch, checking the settings and the data"):
        from fedveil.orchestrator.config import load_experiment
        from fedveil.orchestrator.run.paths import ExperimentPaths
        from fedveil.orchestrator.run.setup import check_setups

        checked, raw = load_experiment(experiment, overrides, plugins)
        if checked.search is not None:
            raise _other(experiment, "has a", "sweep")
        ExperimentPaths.of(checked)  # what is wrong with them is said before Ray starts
        setup = check_setups(checked, raw, here=_is_here(ray))
    _say_how_long(checked, raw, setup, ray, console)
    with _ray_for(checked, ray, console):
        from fedveil.orchestrator.run.single import run_single

        return run_single(checked, setup, console, resume=resume)


def sweep(
    experiment: str | Path | Mapping[str, Any],
    *,
    overrides: Iterable[str] = (),
    plugins: Sequence[str] = (),
    ray: str | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> SweepResult:
    """Run the sweep that an experiment's ``search`` section describes.

    >>> import os, tempfile, fedveil as fv
    >>> os.chdir(tempfile.mkdtemp())  # results are written to runs/ here
    >>> attack = {"name": "inverting_gradients", "steps": 2}
    >>> tiny = {"experiment": "tiny", "data": {"limit": 60}, "fl": {"clients": 2, "rounds": 1}}
    >>> tiny |= {"audit": {"victims": 3, "attacks": [attack]}, "references": {"measure": False}}
    >>> panel = [{"defense": "none"}, {"defense": {"name": "pixel_noise", "strength": 0.1}}]
    >>> sorted(row.defense for row in fv.sweep({**tiny, "search": {"panel": panel}}).rows)
    ['none', 'pixel_noise']


    Args:
        experiment: as for `run`, like all that is not named here.
        overrides: see there.
        plugins: see there.
        ray: see there.
        resume: go on with the interrupted sweep of that name.
        console: see there.

    Raises:
        FedveilError: as for `run`; a trial that fails raises nothing, its row says so.
    """
    offline_environment()
    console = console or Console(quiet=True)
    with console.status("loading PyTorch, checking the settings and the data"):
        from fedveil.orchestrator.config import load_experiment
        from fedveil.orchestrator.run.paths import ExperimentPaths
        from fedveil.orchestrator.run.setup import check_setups

        checked, raw = load_experiment(experiment, overrides, plugins)
        if checked.search is None:
            raise _other(experiment, "has no", "run")
        ExperimentPaths.of(checked)
        setup = check_setups(checked, raw, here=_is_here(ray))
    if not resume:
        _say_how_long(checked, raw, setup, ray, console)
    with _ray_for(checked, ray, console):
        from fedveil.orchestrator.run.sweep import run_sweep

        return run_sweep(checked, raw, console, published=setup.data.published, resume=resume)


def _say_how_long(
    experiment: Experiment, raw: Mapping[str, Any], setup: Setup, ray: str | None, console: Console
) -> None:
    """Say how long it will take, where this machine can tell."""
    if console.quiet or not _is_here(ray) or experiment.resources.gpus_per_worker:
        return
    from fedveil.orchestrator.cluster.progress import plainly
    from fedveil.orchestrator.run.estimate import estimated, trials_of

    with console.status("timing a few steps"):
        line = estimated(trials_of(experiment, raw), setup)
    plainly(console)(line)


def _other(experiment: str | Path | Mapping[str, Any], has: str, command: str) -> FedveilError:
    """Return the refusal that names the command that fits."""
    if isinstance(experiment, Mapping):
        return FedveilError(f"this experiment {has} 'search' section; run it with fedveil.{command}")
    return FedveilError(f"{experiment}: {has} 'search' section; run it with: fedveil {command} {experiment}")


def _is_here(address: str | None) -> bool:
    """Whether the cluster is one of this process's own."""
    return (address or os.environ.get("RAY_ADDRESS") or "local") == "local"


@contextmanager
def _ray_for(experiment: Experiment, address: str | None, console: Console) -> Iterator[None]:
    resources = experiment.resources
    # Cores that a cluster of our own declares: the machine's, or what the trial asks for where that is more.
    cpus = max(os.cpu_count() or 1, math.ceil((resources.workers or 1) * resources.cpus_per_worker))
    with ExitStack() as stack:
        interrupts = stack.enter_context(interruptible())
        with console.status("starting Ray"):
            own = {"job_name": experiment.experiment, "kind": "sweep" if experiment.search else "run"}
            stack.enter_context(connect(address, cpus=cpus, metadata=own))
        interrupts.install()
        yield
