"""What is recorded of a sweep and its trials in MLflow, without ever hurting the training that is recorded.

`SweepTracker` keeps the parent run and `TrialTracker` one child run. They only write, to a spool on disk, so that an
unreachable server costs nothing but a delay; `delivering` sends what lies there while they work, `replay` once.

MLflow itself is imported only where something is delivered: that import takes seconds.
"""

from fedveil.orchestrator.tracking.background import delivering
from fedveil.orchestrator.tracking.delivery import Replayed, replay
from fedveil.orchestrator.tracking.settings import ImagePolicy, TrackingSettings, without_passwords
from fedveil.orchestrator.tracking.sweep import SweepTracker
from fedveil.orchestrator.tracking.trial import TrialTracker
from fedveil.orchestrator.tracking.views import SweptKey, view_path

__all__ = [
    "ImagePolicy",
    "Replayed",
    "SweepTracker",
    "SweptKey",
    "TrackingSettings",
    "TrialTracker",
    "delivering",
    "replay",
    "view_path",
    "without_passwords",
]
