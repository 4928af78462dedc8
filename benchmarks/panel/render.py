"""Write docs/panel.md and its figures from the panel's records: no number on the page is written by hand.

python -m benchmarks.panel.render
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.markdown import MISSING, machine, page_arguments, table
from benchmarks.panel.__main__ import DATA, SEEDS, load, settings
from benchmarks.study.cell import untouched
from benchmarks.study.figure import save_trade_off
from benchmarks.study.render import interval, title
from benchmarks.tables import RESULTS
from fedveil.orchestrator.config.options import normalise

PAGE = Path("docs/panel.md")

Row = Mapping[str, Any]

_ABOUT = """# Every defence of updates under one attacker that knows it

Made by `python -m benchmarks.panel.render` of the records that `python -m benchmarks.panel` writes; the settings and the
protocol are in [tune_configs/defence-panel.yaml](../tune_configs/defence-panel.yaml). One seed is a look, two are few:
[the study](results.md) has fewer defences and more of everything else. Accuracy is on untouched test images. MSE is that of
the attacker that comes closest, at the first or the last round, told the label, with its 95 % interval over victims (mean of
the seeds' intervals); *guess* is the error of the class means of its own images. *Found*: the victim is named among as many
images as the gallery has, by the better of two ways. *Judged*: a judge trained on untouched images reads the class in a
reconstruction made without the label; *read*: the attacker's own classifier does. *Bytes*: of an update, in the smallest of
three encodings. *Seconds*: of the whole trial on one core, beside other work. None of it is a bound.
"""


def main() -> None:
    arguments = page_arguments(__doc__, RESULTS, PAGE)
    arguments.page.write_text(page(arguments.results))
    for data in DATA:
        if rows := load(arguments.results / f"panel-{data}.json"):
            path = arguments.page.parent / figure_of(data)
            save_trade_off(rows, path, title=f"{data}: all defences", families=families(), best=True)


def page(results: Path) -> str:
    """Return the page."""
    parts = [_ABOUT]
    for data in DATA:
        rows = load(results / f"panel-{data}.json")
        drawn = f"![{data}: accuracy against the closest attacker's error]({figure_of(data)})"
        parts.append(f"## {data}\n\n{drawn}\n\n{section(rows)}\n" if rows else f"## {data}\n\n{MISSING}\n")
    return "\n".join(parts)


def figure_of(data: str) -> str:
    """Return where a data set's figure is, seen from the page."""
    return f"images/panel-{data}.png"


def families() -> tuple[str, ...]:
    """Return the panel's defences by name, each once."""
    return tuple(dict.fromkeys(normalise(setting["defense"])["name"] for setting in settings()))


def section(rows: Sequence[Row]) -> str:
    """Return a data set's table in the panel's order, and what is missing of it."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[str(row["setting"])].append(row)
    head = ("defence", "seeds", "accuracy", "MSE", "guess", "found", "judged", "read", "bytes", "seconds")
    lines = [line(found[str(setting)]) for setting in settings() if str(setting) in found]
    missing = sum(len(found[str(setting)]) < len(SEEDS) for setting in settings())
    notes = sorted({machine(dict(row)) for row in rows})
    if missing:
        notes.append(f"Of {len(settings())} settings, {missing} are not yet measured with {len(SEEDS)} seeds.")
    return table(head, lines) + "\n\n" + "\n".join(notes)


def line(rows: Sequence[Row]) -> Sequence[str]:
    """Return a line of the table: one setting, over its seeds."""
    worst = [row["privacy"]["worst"] for row in rows]

    def mean(key: str, form: str) -> str:
        values = [one[key] for one in worst if key in one]
        return form.format(sum(values) / len(values)) if values else "-"

    return (
        title(rows[0]),
        str(len(rows)),
        interval([untouched(row) for row in rows], "{:.3f}"),
        f"{mean('mse', '{:.4f}')} [{mean('mse_low', '{:.4f}')}, {mean('mse_high', '{:.4f}')}]",
        mean("baseline_mse", "{:.4f}"),
        *(mean(key, "{:.2f}") for key in ("identification_rate", "attacker_accuracy", "adaptive_attacker_accuracy")),
        f"{sum(row['cost']['update_bytes'] for row in rows) / len(rows):,.0f}",
        f"{sum(row['wall_seconds'] for row in rows) / len(rows):.0f}",
    )


if __name__ == "__main__":
    main()
