"""Tags, limits and names of pictures in MLflow. A name that is on no list is a programming error."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from fedveil.orchestrator.metrics import fits

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
ABANDONED = "its process ended without a word; what it had not written down is missing"
"""The error of a run that nobody closed."""
STOPPED_TAG = "stopped_by"
"""``scheduler`` where the sweep's scheduler ended the trial early, `INTERRUPT` where Ctrl-C or SIGTERM did."""
INTERRUPT = "interrupt"
INCOMPLETE_TAG = "fedveil.incomplete"
"""What did not arrive of a run that is closed all the same, and why; the last such thing where there are several."""
NOT_FINITE = "not_finite/"
"""Prefix of the tag that says where a metric was NaN or infinite, and so was left out."""


TITLE = "defense.title"
"""Param: the defence with the setting that says how much it protects, in words."""
COLOR_TAG = "mlflow.runColor"
"""Tag of the interface's own: the colour of the run in its charts, ``#rrggbb``."""
VERSIONS_TAG = "fedveil.versions"
"""Of the software that ran the trial, in words; the last one where it was resumed."""
SWEPT = "swept/"
"""Prefix of the metric that repeats a swept number, because MLflow keeps params as text."""

RECORDS = "privacy_records.json"
"""The artifact with a trial's scores per victim; also its name in the trial's folder."""
RECONSTRUCTION_GRID = "grid/reconstruction"
"""Rows original / what the client trained on / reconstruction; the saved view shows it for all trials."""
INVERSION_GRID = "grid/inversion"
"""What the released model's attackers made, beside private images."""
IMAGES = ("grid/<figure>", "victim/<picture>")


def cut(text: str, limit: int) -> str:
    """Return ``text``, or its beginning with an ellipsis where it is longer than ``limit``.

    Halves of surrogate pairs, as Python has them for undecodable file names, become question marks: no server takes them.
    """
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= limit else text[: limit - 1] + "…"


def check_names(what: str, names: Iterable[str], allowed: Sequence[str]) -> None:
    """Refuse any name that no template in ``allowed`` fits, see `fedveil.orchestrator.metrics.fits`.

    >>> check_names("curve", ["fl/loss", "swept/a"], ["fl/loss", "swept/<key>"])

    Raises:
        ValueError: a name is not allowed, or longer than MLflow takes.
    """
    for name in names:
        if not any(fits(name, template) for template in allowed):
            raise ValueError(f"{what} {name!r} has no place in the record; allowed: {', '.join(allowed)}")
        if len(name) > MAX_KEY:
            raise ValueError(f"{what} {name[:40]!r}... is longer than {MAX_KEY} characters")


def check_keys(names: Iterable[str]) -> None:
    """Refuse names of params and tags that MLflow does not take.

    Raises:
        ValueError: there is one.
    """
    for name in names:
        if not re.fullmatch(rf"[\w.\-/]{{1,{MAX_KEY}}}", name, re.ASCII):
            raise ValueError(f"param or tag {name!r}: allowed are letters, digits and _.-/, at most {MAX_KEY}")
