"""The names that MLflow, reports and tests share. A name that stands here nowhere is a programming error."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

MAX_KEY = 250
"""Characters in the name of a metric, param or tag."""
MAX_PARAM = 6000
"""Characters in a param's value."""
MAX_TAG = 5000
"""Characters in a tag's value; newer servers take 8000."""

TOKEN_TAG = "fedveil.token"
"""A name that the client gave the run before the server did: a run is found by it, never made twice."""
KIND_TAG = "fedveil.kind"
"""``sweep`` or ``trial``."""
CLOSED_TAG = "fedveil.closed_at"
"""Milliseconds of the last close that was delivered; an older one that arrives later is void."""
ERROR_TAG = "error"
"""What ended a failed run, in one line."""
TRACEBACK_TAG = "error.traceback"
"""Where, at least its end."""
STOPPED_TAG = "stopped_by"
"""``scheduler`` where the sweep's scheduler ended the trial early."""
NOT_FINITE = "not_finite/"
"""Prefix of the tag that says where a metric was NaN or infinite, and so was left out."""


@dataclass(frozen=True)
class NameList:
    """The names allowed in one place: exact ones and patterns that match the whole name.

    >>> NameList("curve", ("fl/loss",), (r"swept/.+",)).check(["fl/loss", "swept/a"])
    """

    what: str
    exact: tuple[str, ...]
    patterns: tuple[str, ...] = ()

    def check(self, names: Iterable[str]) -> None:
        """Refuse any name that is not on the list.

        Raises:
            ValueError: a name is not allowed, or longer than MLflow takes.
        """
        for name in names:
            if name not in self.exact and not any(re.fullmatch(pattern, name) for pattern in self.patterns):
                allowed = ", ".join([*self.exact, *self.patterns])
                raise ValueError(f"{self.what} {name!r} has no place in the record; allowed: {allowed}")
            if len(name) > MAX_KEY:
                raise ValueError(f"{self.what} {name[:40]!r}... is longer than {MAX_KEY} characters")


SWEPT = "swept/"
"""Prefix of the metric that repeats a swept number, because MLflow keeps params as text."""

FINAL_METRICS = NameList(
    "final metric",
    (
        "utility/accuracy",
        "utility/val_accuracy",
        "utility/val_accuracy",
        "utility/auc",
        "utility/clean_accuracy",
        "privacy/mse",
        "privacy/psnr",
        "privacy/ssim",
        "privacy/lpips",
        "privacy/attacker_accuracy",
        "privacy/identification_rate",
        "privacy/chance_accuracy",
        "privacy/trained_mse",
        "privacy/baseline_mse",
        "privacy/complete",
        "cost/train_seconds",
        "cost/attack_seconds",
        "cost/update_bytes",
    ),
    (r"swept/[A-Za-z0-9_.]+", r"attack/[a-z0-9_]+/[a-z0-9_]+", r"defense/[a-z0-9_]+"),
)
CURVES = NameList("curve", ("fl/accuracy", "fl/loss", "fl/failed_clients"))
SUMMARY_METRICS = NameList("summary metric", (), (r"sweep/[a-z0-9_]+",))

RECONSTRUCTION_GRID = "grid/reconstruction"
"""Rows original / what the client trained on / reconstruction; the saved view shows it for all trials."""
IMAGES = NameList("image", (RECONSTRUCTION_GRID,), (r"grid/[a-z0-9_]+", r"victim/[a-z0-9_]+"))
KEYS = NameList("param or tag", (), (r"[A-Za-z0-9_.\-/]+",))
