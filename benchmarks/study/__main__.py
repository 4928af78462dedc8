"""Run the study, cell by cell; what is done already stays.

    FEDVEIL_DATA=... python -m benchmarks.study --data blood --seeds 0 1 2
    FEDVEIL_DATA=... python -m benchmarks.study --data blood --defenses none latent --settings 2

A cell is a data set, a seed, a defence and its settings. Results go to ``benchmarks/results/study-DATA.json`` after each.
`python -m benchmarks.study.render` makes docs/results.md of them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.study.cell import run_cell, silent_rows
from benchmarks.study.protocols import FAMILIES, PROTOCOLS, SEEDS

RESULTS = Path(__file__).parents[1] / "results"


def load(path: Path) -> dict[str, Any]:
    """Return the record of a data set, an empty one where there is none."""
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": []}
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=list(PROTOCOLS), default=list(PROTOCOLS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--defenses", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--settings", type=int, nargs="+", help="which of each family's settings; all by default")
    parser.add_argument("--set", dest="overrides", type=json.loads, default={}, help="JSON: sections of the experiment")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        for data in arguments.data:
            path = arguments.out / f"study-{data}.json"
            for defense in arguments.defenses:
                for at, settings in enumerate(FAMILIES[defense]):
                    if arguments.settings is not None and len(FAMILIES[defense]) > 1 and at not in arguments.settings:
                        continue
                    record = load(path)
                    asked = {"data": data, "seed": seed, "defense": defense, "settings": settings}
                    if any({key: row[key] for key in asked} == asked for row in record["rows"]):
                        continue
                    row = run_cell(data, seed, defense, settings, arguments.overrides)
                    rows = [row, *silent_rows(row)] if defense == "none" else [row]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    record = {"rows": [*load(path)["rows"], *rows]}
                    path.write_text(json.dumps(record, indent=1) + "\n")
                    print(data, seed, defense, settings, row["utility"], row["privacy"]["worst"], flush=True)


if __name__ == "__main__":
    main()
