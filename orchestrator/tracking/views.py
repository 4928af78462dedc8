"""What someone who opens the experiment in MLflow's user interface sees first.

The interface keeps a saved view in one experiment tag ``mlflow.sharedViewState.<id>``: an envelope with a
name and two times (milliseconds), and the state of the runs page as JSON text. The field names below are the
user interface's own (mlflow 3.17: chart cards ``SCATTER``, ``PARALLEL``, ``IMAGE``, ``LINE``).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedveil.orchestrator.metrics import metric
from fedveil.orchestrator.tracking.names import KIND_TAG, RECONSTRUCTION_GRID, SWEPT, TITLE

VIEW_ID = "fedveil"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_ID}"
NOTE_TAG = "mlflow.note.content"
KIND_OF_EXPERIMENT_TAG = "mlflow.experimentKind"
MAX_EXPERIMENT_TAG = 20_000
"""Characters that MLflow takes in an experiment tag."""

_SECTION = "fedveil-trade-off"
_UTILITY = "utility/accuracy"
_PRIVACY = "privacy/mse"
_COLUMNS = (_UTILITY, _PRIVACY, "privacy/attacker_accuracy", "privacy/identification_rate")
_EXPLAINED = (
    _UTILITY,
    _PRIVACY,
    "privacy/mse_low",
    "privacy/mse_high",
    "privacy/trained_mse",
    "privacy/baseline_mse",
    "privacy/attacker_accuracy",
    "privacy/chance_accuracy",
    "privacy/judge_accuracy",
)
_BETTER = {"max": " Higher is better.", "min": " Lower is better.", None: ""}

_NOTE = """\
**[Open the trade-off view]({link})**

Each trial is federated training under one defence, then attacks on the updates that the clients really sent.
Runs nest: a sweep, and below it its trials.

{metrics}

`privacy/mse` lies between 0 (the image leaked) and about `privacy/baseline_mse` (it does as well that saw no update);
no attack comes below `privacy/trained_mse` by inverting alone. `fl/*` are curves over rounds, all else is one number per
trial. `attack/<attack>/*` are the numbers of one attack, `swept/*` repeats swept params as numbers.
"""


@dataclass(frozen=True)
class SweptKey:
    """One thing that the sweep varies.

    Attributes:
        key: the configuration key, ``defense.strength``.
        space: in words, ``loguniform 0.1 to 4``.
        numeric: whether its values are numbers, and so are metrics ``swept/<key>`` too.
    """

    key: str
    space: str
    numeric: bool = True


def view_path(experiment_id: str) -> str:
    """The part of the view's address after the server's, for example ``/#/experiments/1/runs?...``.

    Without ``workflowType`` the interface begins on its page for language models, which is empty here.
    """
    shared = f"viewStateShareKey={VIEW_ID}&compareRunsMode=CHART"
    return f"/#/experiments/{experiment_id}/runs?{shared}&workflowType=machine_learning"


def sweep_note(swept: Sequence[SweptKey], objectives: Mapping[str, str]) -> str:
    """The parent run's description in Markdown: what was swept and how to read it."""
    rows = "".join(f"| `{key.key}` | {key.space} |\n" for key in swept)
    table = f"| swept | over |\n| --- | --- |\n{rows}\n" if rows else ""
    goals = ", ".join(f"`{metric}` ({direction})" for metric, direction in objectives.items())
    aim = f"Objectives: {goals}.\n\n" if goals else ""
    return (
        f"{table}{aim}The trials are this run's children. A good trial has high `{_UTILITY}` and high "
        f"`{_PRIVACY}`; trials that differ in their seed only belong together. `summary/` holds the Pareto figure.\n"
    )


def experiment_tags(
    experiment_id: str, present: Mapping[str, str], swept: Sequence[SweptKey], *, image_step: int
) -> dict[str, str]:
    """The experiment tags that are missing in ``present`` or differ: description, kind and saved view.

    A description that someone has written stays. Our view is replaced when another sweep varies other things.
    """
    wanted = {
        NOTE_TAG: present.get(NOTE_TAG) or _experiment_note(experiment_id),
        KIND_OF_EXPERIMENT_TAG: "custom_model_development",
        VIEW_TAG: _envelope(view_state(swept, image_step=image_step), present.get(VIEW_TAG)),
    }
    return {
        key: value for key, value in wanted.items() if value != present.get(key) and len(value) <= MAX_EXPERIMENT_TAG
    }


def _experiment_note(experiment_id: str) -> str:
    lines = [f"* `{name}`: {metric(name).meaning}.{_BETTER[metric(name).better]}" for name in _EXPLAINED]
    return _NOTE.format(link=view_path(experiment_id).removeprefix("/"), metrics="\n".join(lines))


def view_state(swept: Sequence[SweptKey], *, image_step: int) -> dict[str, object]:
    """The runs page: trials only, best privacy first; trade-off, swept keys, pictures and a curve."""
    numeric = [SWEPT + key.key for key in swept if key.numeric]
    other = [key.key for key in swept if not key.numeric]
    cards = [
        _card("SCATTER", "Accuracy against reconstruction error", _axes(), runs=100),
        _card(
            "IMAGE",
            "Reconstructions",
            {"imageKeys": [RECONSTRUCTION_GRID], "step": image_step, "showRunParams": False},
            runs=10,
        ),
        _card(
            "PARALLEL",
            "Swept keys to outcome",
            {
                "selectedParams": other or [TITLE],
                "selectedMetrics": [*numeric, _UTILITY, _PRIVACY],
                "showAllRuns": True,
            },
            runs=100,
        ),
        _card(
            "LINE",
            "Accuracy over rounds",
            {
                "metricKey": "fl/accuracy",
                "selectedMetricKeys": ["fl/accuracy"],
                "lineSmoothness": 0,
                "xAxisKey": "step",
                "xAxisScaleType": "linear",
                "scaleType": "linear",
                "range": {},
                "yAxisKey": "metric",
                "yAxisExpressions": [],
                "selectedXAxisMetricKey": "",
                "ignoreOutliers": False,
                "useGlobalXaxisKey": True,
                "useGlobalLineSmoothing": True,
            },
            runs=20,
        ),
    ]
    return {
        "searchFilter": f"tags.`{KIND_TAG}` = 'trial'",
        "orderByKey": f"metrics.`{_PRIVACY}`",
        "orderByAsc": False,
        "runsHiddenMode": "SHOW_ALL",
        "selectedColumns": [
            *(f"params.`{name}`" for name in (TITLE, "seed")),
            *(f"metrics.`{name}`" for name in _COLUMNS),
            *(f"metrics.`{name}`" for name in numeric),
        ],
        "compareRunCharts": cards,
        "compareRunSections": [
            {
                "uuid": _SECTION,
                "name": "Trade-off",
                "display": True,
                "isReordered": False,
                "isGenerated": False,
                "columns": 1,  # beside a list of runs, and a panel of the interface's own, two are too narrow to read
                "cardHeight": 420,
            }
        ],
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
        "autoRefreshEnabled": True,
    }


def _axes() -> dict[str, object]:
    return {"xaxis": {"key": _PRIVACY, "type": "METRIC"}, "yaxis": {"key": _UTILITY, "type": "METRIC"}}


def _card(kind: str, title: str, fields: Mapping[str, object], *, runs: int) -> dict[str, object]:
    return {
        "uuid": f"{_SECTION}-{kind.lower()}",
        "type": kind,
        "displayName": title,
        "metricSectionId": _SECTION,
        "deleted": False,
        "isGenerated": False,
        "runsCountToCompare": runs,
        **fields,
    }


def _envelope(state: Mapping[str, object], present: str | None) -> str:
    """The tag's value; the present one where it holds this very state, since only the times would differ."""
    text = json.dumps(state, separators=(",", ":"))
    stamp = int(time.time() * 1000)
    created = stamp
    if present is not None:
        try:
            old = json.loads(present)
            if old["state"] == text:
                return present
            created = int(old["createdAt"])
        except (ValueError, KeyError, TypeError):
            pass  # not an envelope of ours: replaced
    return json.dumps({"name": "Privacy against utility", "createdAt": created, "updatedAt": stamp, "state": text})
