"""Experiment files: their schema, their checks and their overrides."""

from fedveil.orchestrator.config.load import ConfigError, check, load_experiment, with_overrides
from fedveil.orchestrator.config.schema import Experiment, SearchSection

__all__ = ["ConfigError", "Experiment", "SearchSection", "check", "load_experiment", "with_overrides"]
