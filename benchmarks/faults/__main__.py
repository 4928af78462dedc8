"""Cause faults in real runs and sweeps, and measure what each costs.

    python -m benchmarks.faults --kinds all --times 5
    python -m benchmarks.faults --kinds worker-round sweep-killed --times 1 --out /tmp/faults.json
    python -m benchmarks.faults --render

Each row is written as soon as it is known, and what the record has already is not repeated. The page is docs/faults.md.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import benchmarks.faults.kinds  # noqa: F401 - registers them
from benchmarks.faults.commands import StuckError
from benchmarks.faults.experiment import NAME
from benchmarks.faults.outcome import Facts, cost, facts_of
from benchmarks.faults.render import PAGE, page
from benchmarks.faults.stage import FAULTS, REPORT, Fault, Stage
from benchmarks.machine import about

OUT = Path("benchmarks/results/faults.json")
_STEP = 0.6180339887
"""Tries with multiples of it, as shares of a whole, lie evenly spread however many there are."""


class Undisturbed:
    """How `run` and `sweep` end without a fault, each tried once.

    Args:
        folder: keeps it for other processes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, command: str) -> tuple[Facts, float]:
        """Return the facts, and the seconds that it worked."""
        known = self._folder / f"{command}.json"
        if not known.exists():
            stage = Stage(self._folder / command, random.Random(0), 0, 0)
            try:
                started = stage.start(command)
                started.until("recorded in")
                began = time.monotonic()
                stage.finish(started)
                seconds = time.monotonic() - began
            finally:
                stage.close()
            if stage.troubles:
                raise RuntimeError(f"{command} without a fault: {stage.troubles}\n{started.said[-3000:]}")
            known.write_text(json.dumps([_facts(stage, NAME), seconds]))
        facts, seconds = json.loads(known.read_text())
        return facts, seconds


def _facts(stage: Stage, experiment: str) -> Facts:
    report = stage.folder / f"{experiment}-{REPORT}"
    return facts_of(stage.uri, experiment, stage.runs / experiment, report, given_up=stage.given_up)


def attempt(fault: Fault, time_: int, undisturbed: Undisturbed, folder: Path) -> dict[str, Any]:
    """Cause a fault once and return its row."""
    expected, seconds = undisturbed.of(fault.command)
    chance = random.Random(f"{fault.name} {time_}")
    share = (random.Random(fault.name).random() + time_ * _STEP) % 1
    stage = Stage(folder, chance, share, seconds)
    began = time.monotonic()
    try:
        fault.cause(stage)
    except StuckError as error:
        stage.troubles.append(str(error))
    finally:
        stage.close()
    took = time.monotonic() - (began if stage.began is None else stage.began)
    costs = [cost(_facts(stage, name), renamed(expected, name)) for name in stage.experiments]
    return {
        "kind": fault.name,
        "time": time_,
        "moment": stage.moment,
        "lost": sum(one.lost for one in costs),
        "doubled": sum(one.doubled for one in costs),
        "bit_equal": all(one.bit_equal for one in costs),
        "seconds": round(took, 1),
        "troubles": [*stage.troubles, *(line for one in costs for line in one.differences)],
    }


def renamed(facts: Facts, experiment: str) -> Facts:
    """Return the facts of the usual experiment as those of one with another name, after which its sweep's run is called."""
    if experiment == NAME:
        return facts
    return {f"{experiment}{key[len(NAME) :]}" if key.startswith(f"{NAME} ") else key: facts[key] for key in facts}


def _rows(record: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(record.read_text())["rows"] if record.exists() else []
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=["all"], choices=["all", *FAULTS], metavar="KIND")
    parser.add_argument("--times", type=int, default=5, help="tries of each kind")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--scratch", type=Path, help="folder that keeps how it ends without a fault, for further calls")
    parser.add_argument("--render", action="store_true", help="write the page only")
    arguments = parser.parse_args()
    kinds = list(FAULTS) if "all" in arguments.kinds else arguments.kinds
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as own:
        keep = arguments.scratch or Path(own) / "undisturbed"
        keep.mkdir(parents=True, exist_ok=True)
        undisturbed = Undisturbed(keep)
        for time_ in range(0 if arguments.render else arguments.times):
            for kind in kinds:
                if any(row["kind"] == kind and row["time"] == time_ for row in _rows(arguments.out)):
                    continue
                folder = Path(own) / f"{kind}-{time_}"
                folder.mkdir()
                row = attempt(FAULTS[kind], time_, undisturbed, folder)
                print(json.dumps(row), flush=True)
                whole = {"machine": about(), "rows": [*_rows(arguments.out), row]}
                arguments.out.write_text(json.dumps(whole, indent=1) + "\n")
    arguments.page.write_text(page(arguments.out))


if __name__ == "__main__":
    main()
