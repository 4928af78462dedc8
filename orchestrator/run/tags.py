"""What MLflow is told of a trial beside its numbers and settings."""

from __future__ import annotations

from fedveil.orchestrator.cluster.nodes import installed, versions
from fedveil.orchestrator.config import Experiment
from fedveil.orchestrator.run.colors import run_color
from fedveil.orchestrator.tracking.names import COLOR_TAG, VERSIONS_TAG


def tags_of(experiment: Experiment) -> dict[str, str]:
    """Return the tags of a trial's run: its colour, and the versions that it runs on here."""
    own = {"fedveil": installed("fedveil"), **versions()}
    return {
        COLOR_TAG: run_color(experiment),
        VERSIONS_TAG: ", ".join(f"{name} {number}" for name, number in own.items()),
    }
