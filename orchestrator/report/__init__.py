"""What a sweep found: a table on the screen, the Pareto front, and pictures.

The pictures (``figures``, ``comparison``) are imported where they are drawn: matplotlib takes seconds to load, and workers
never draw.
"""

from fedveil.orchestrator.report.groups import TrialGroup, group_seeds
from fedveil.orchestrator.report.matched import matched_line
from fedveil.orchestrator.report.pareto import TRADE_OFF, competing, front_of, hypervolume
from fedveil.orchestrator.report.rows import TrialRow
from fedveil.orchestrator.report.table import TrialTable

__all__ = [
    "TRADE_OFF",
    "TrialGroup",
    "TrialRow",
    "TrialTable",
    "competing",
    "front_of",
    "group_seeds",
    "hypervolume",
    "matched_line",
]
