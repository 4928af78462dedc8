"""Trials that differ in their seed only, read as one."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from fedveil.orchestrator.report.rows import TrialRow

_SEED_IN_NAME = re.compile(r"(^|[-_/])seed[-_=]?\d+")


@dataclass(frozen=True)
class TrialGroup(TrialRow):
    """One setting under one seed or several. A metric is the mean over the seeds, absent where a seed lacks it.

    Attributes:
        members: the trials, one per seed.
    """

    members: tuple[TrialRow, ...] = ()

    @property
    def complete(self) -> bool:
        """An adaptive attack ran under each seed."""
        return all(row.complete for row in self.members)

    def score(self, name: str) -> float:
        """Return the mean of what the trials have for ranking, see `TrialRow.score`."""
        return fmean(row.score(name) for row in self.members)

    def interval(self, name: str) -> tuple[float, float] | None:
        """Return the ends of a mean's 95 % interval, or None where there is nothing to take it from.

        Where the trials have intervals over their victims: each seed draws other victims, so that the distances from
        mean to end of S independent intervals combine to the root of the sum of their squares, divided by S. For what is
        measured once per trial (``utility/*``): Student's t over the seeds. Either is cut to [0, 1], where all of these
        scores lie.
        """
        if name not in self.metrics:
            return None
        mean, count = self.metrics[name], len(self.members)
        own = [(row.metrics[name], ends) for row in self.members if (ends := row.interval(name)) is not None]
        if len(own) == count:
            below = math.hypot(*(middle - low for middle, (low, _) in own)) / count
            above = math.hypot(*(high - middle for middle, (_, high) in own)) / count
            return max(0.0, mean - below), min(1.0, mean + above)
        if count < 2 or not name.startswith("utility/"):
            return None
        from scipy.special import stdtrit  # the quantiles of Student's t

        half = float(stdtrit(count - 1, 0.975)) * stdev(row.metrics[name] for row in self.members) / math.sqrt(count)
        return max(0.0, mean - half), min(1.0, mean + half)


def group_seeds(rows: Sequence[TrialRow]) -> list[TrialGroup]:
    """Return the finished trials grouped by setting, in the order in which the settings occur.

    Trials belong together where all params but ``seed`` are the same, and the names but for their ``seed0`` or
    ``seed=0``; of trials that share the seed too, the second begins another group.
    """
    groups: dict[Hashable, list[TrialRow]] = defaultdict(list)
    times: Counter[Hashable] = Counter()
    for row in rows:
        if row.finished:
            setting = (_name(row), tuple(sorted((k, str(v)) for k, v in row.params.items() if k != "seed")))
            trial = (setting, str(row.params.get("seed")))
            groups[setting, times[trial]].append(row)
            times[trial] += 1
    return [_group(members) for members in groups.values()]


def _group(members: Sequence[TrialRow]) -> TrialGroup:
    first = members[0]
    if len(members) == 1:
        return TrialGroup(first.name, first.status, first.params, first.metrics, first.error, (first,))
    shared = [name for name in first.metrics if all(name in row.metrics for row in members)]
    metrics = {name: fmean(row.metrics[name] for row in members) for name in shared}
    params = {key: value for key, value in first.params.items() if key != "seed"}
    return TrialGroup(_name(first), first.status, params, metrics, None, tuple(members))


def _name(row: TrialRow) -> str:
    return _SEED_IN_NAME.sub("", row.name) or row.defense
