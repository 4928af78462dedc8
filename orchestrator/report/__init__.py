"""What a sweep found: a table on the screen, the Pareto front, and pictures."""

from orchestrator.report.comparison import comparison_figure, leakiest_attack, representatives
from orchestrator.report.figures import pareto_figure, reconstruction_figure
from orchestrator.report.pareto import TRADE_OFF, hypervolume, pareto_front
from orchestrator.report.rows import TrialRow
from orchestrator.report.table import TrialTable

__all__ = [
    "TRADE_OFF",
    "TrialRow",
    "TrialTable",
    "comparison_figure",
    "hypervolume",
    "leakiest_attack",
    "pareto_figure",
    "pareto_front",
    "reconstruction_figure",
    "representatives",
]
