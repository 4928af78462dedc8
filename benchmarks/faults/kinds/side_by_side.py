"""Sweeps that are started at once, and what an earlier one has left."""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.faults.experiment import NAME
from benchmarks.faults.servers import free_port, mute
from benchmarks.faults.stage import Stage, fault
from fedveil.orchestrator.tracking import TrackingSettings, TrialTracker

_OTHER = "others"


@fault("two-sweeps", "two sweeps started at once in a fresh folder", "sweep")
def two_sweeps(stage: Stage) -> None:
    """They make one database."""
    stage.experiments.append(_OTHER)
    stage.strike(moment="the start")
    both = [stage.start("sweep"), stage.start("sweep", settings={"experiment": _OTHER})]
    for command in both:
        stage.finish(command)


@fault("same-sweep", "a sweep started twice at once", "sweep")
def same_sweep(stage: Stage) -> None:
    """The second is refused, and leaves nothing."""
    first = stage.start("sweep")
    stage.when(first, "recorded in", within=5)  # late in the first one, the second would find it over
    stage.finish(stage.start("sweep"), 2)
    stage.finish(first)


@fault("old-journal", "records for servers that are gone in the spool", "run")
def old_journals(stage: Stage) -> None:
    """One refuses connections, the other never answers."""
    with ExitStack() as stack:
        for port in (free_port(), stack.enter_context(mute())):
            where = TrackingSettings(
                experiment=NAME,
                uri=f"http://127.0.0.1:{port}",
                spool=stage.runs / NAME / "spool",
            )
            with TrialTracker(where, parent_run_id=None, name="old", params={}) as old:
                old.log_curve({"fl/loss": 1.0}, 0)
        stage.strike(moment="the start")
        stage.finish(stage.start("run"))
