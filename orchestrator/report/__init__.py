"""What a sweep found: a table on the screen, the Pareto front, and pictures.

The pictures (``figures``, ``comparison``) are imported where they are drawn: matplotlib takes seconds to load, and workers
never draw.
"""

from fedveil.orchestrator.report.pareto import TRADE_OFF, hypervolume, pareto_front
from fedveil.orchestrator.report.rows import TrialRow
from fedveil.orchestrator.report.table import TrialTable

__all__ = ["TRADE_OFF", "TrialRow", "TrialTable", "hypervolume", "pareto_front"]
