"""What is left of a run or sweep: in MLflow, in its folder, in its JSON; and what of it a fault has cost."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import fedveil.orchestrator.tracking.remote  # noqa: F401 - before MLflow, which reads some variables on import

Facts = dict[str, list[str]]
"""What is known, by what it is about; values are exact (`float.hex`), and a fact that is told twice has two."""
_OWN = ("cost/", "fl/failed_clients")
"""What tells of times, and of workers that were lost, not of results."""
_SUMMARY = "sweep/"
"""What each start of a sweep that comes to an end says once more; the last word counts."""


@dataclass(frozen=True)
class Cost:
    """What differs from an undisturbed run.

    Attributes:
        lost: facts that are missing: a point, a picture, a trial's end.
        doubled: facts that are there once too often, or that nobody asked for.
        bit_equal: what both have is equal to the last bit.
        differences: the first of each, for a person.
    """

    lost: int
    doubled: int
    bit_equal: bool
    differences: tuple[str, ...] = ()


def facts_of(uri: str, experiment: str, folder: Path, report: Path | None, *, given_up: Mapping[str, str]) -> Facts:
    """Return all facts but times, costs and how often a worker was lost.

    Args:
        uri: of the MLflow record.
        experiment: its name.
        folder: of the experiment's results.
        report: what ``--json`` wrote, if it was asked to.
        given_up: names of runs that were ended for good and began anew, with the name under which they did. That they are
            still said to run is the only fact of them; the new one stands for them.
    """
    names = {new: old for old, new in given_up.items()}
    facts: defaultdict[str, list[str]] = defaultdict(list)
    for run, what, value in _recorded(uri, experiment):
        if run not in given_up:
            facts[f"{names.get(run, run)} {what}"].append(value)
        elif what == "ended RUNNING":
            facts[f"{run} is still said to run"].append(value)
    trials = folder / "trials"
    for trial in sorted(trials.iterdir()) if trials.is_dir() else ():
        records = trial / "privacy_records.json"
        if trial.name not in given_up and records.exists():
            check = hashlib.sha256(records.read_bytes()).hexdigest()
            facts[f"{names.get(trial.name, trial.name)} file {records.name}"].append(check)
    if report is not None and report.exists():
        for one in json.loads(report.read_text())["trials"]:
            name = names.get(one["name"], one["name"])
            facts[f"{name} said {one['status']}"].append("")
            for key, value in one["metrics"].items():
                if not key.startswith(_OWN):
                    facts[f"{name} said {key}"].append(value if value is None else float(value).hex())
    return dict(facts)


def _recorded(uri: str, experiment: str) -> Iterator[tuple[str, str, str]]:
    """Yield name of a run, what is told, and the value."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    for run in client.search_runs([found.experiment_id]) if found is not None else ():
        name, run_id = str(run.info.run_name), run.info.run_id
        yield name, f"ended {run.info.status}", ""
        for key, value in run.data.params.items():
            yield name, f"param {key}", value
        for key, last in run.data.metrics.items():
            if key.startswith(_SUMMARY):
                yield name, f"point {key}", float(last).hex()
            elif not key.startswith(_OWN):
                for point in client.get_metric_history(run_id, key):
                    yield name, f"point {key} {point.step}", float(point.value).hex()
        for file in _files(run.info.artifact_uri, uri):
            if not file.startswith("images/"):  # whose names hold the time
                yield name, f"artifact {file}", ""


def _files(artifacts: str, uri: str) -> list[str]:
    """Return the names of a run's files, also of those that a server keeps beside its database, from which we read."""
    scheme, _, rest = artifacts.partition(":")
    beside = Path(uri.removeprefix("sqlite:///")).parent / "artifacts"
    folder = beside / rest.lstrip("/") if scheme == "mlflow-artifacts" else Path(rest.removeprefix("//"))
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def cost(found: Facts, undisturbed: Facts) -> Cost:
    """Return what ``found`` lacks, has too often, or has otherwise."""
    keys = sorted(found.keys() | undisturbed.keys())
    amounts = {key: len(found.get(key, ())) - len(undisturbed.get(key, ())) for key in keys}
    lost = [key for key in keys if amounts[key] < 0]
    doubled = [key for key in keys if amounts[key] > 0]
    other = [key for key in found.keys() & undisturbed.keys() if set(found[key]) != set(undisturbed[key])]
    return Cost(
        lost=-sum(amounts[key] for key in lost),
        doubled=sum(amounts[key] for key in doubled),
        bit_equal=not other,
        differences=tuple(
            f"{what}: {key}"
            for what, some in (("lost", lost), ("doubled", doubled), ("other", sorted(other)))
            for key in some[:3]
        ),
    )
