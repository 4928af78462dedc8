"""Write docs/results.md from the study's records: no number on the page is written by hand.

python -m benchmarks.study.render
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.markdown import machine, page_arguments, table
from benchmarks.study.cell import PICTURES, picture_of, untouched
from benchmarks.study.figure import save_trade_off
from benchmarks.study.matched import matched
from benchmarks.study.protocols import FAMILIES, PROTOCOLS, SEEDS
from benchmarks.tables import RESULTS

PAGE = Path("docs/results.md")
T_975 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}
"""Student's t for a 95 % interval, by the number of seeds."""

Row = Mapping[str, Any]

_ABOUT = """# What each defence leaves an attacker, and what it costs

Made by `python -m benchmarks.study.render` of the records that `python -m benchmarks.study` writes; the protocols are
in [benchmarks/study/protocols.py](../benchmarks/study/protocols.py). Accuracy is on untouched test images; *behind it*
on test images that pass the client's own defence as its training images do. MSE is that of the attacker that comes
closest, told the label: one knows the algorithm, one is handed what the client trained on, both have an inverse that is
trained until flat on 2,000 images of their own; *guess* is the error of these images' class means, *proved* what no one
answer's error is below on average ([for what, and why](method.md)); in a sample it may be a little. *Found* is how
often the victim is found among 1,000 images, by the better of two ways. *Judged* is how often a judge that was trained
on untouched images reads the class in the reconstruction of an attacker that was not told it, *read* how often the
attacker's own classifier does, which has learnt from what the defence leaves. *Member* is the area under the ROC curve
of an attacker that holds all a client trained on and tells the client's images from others (0.5 is chance). *Under
none* and *over local* compare accuracies on untouched images with those of no defence and of one client with its own
and the public images. Intervals over seeds are Student's 95 %; a row of one seed has none, and is a smoke test, no
result. But for *proved* nothing here is a bound.
"""

_MATCHED = """The attacker's error behind the controls at the accuracy of each setting of `latent`, on straight lines between
their settings, and how many times as large it is behind `latent`. A dash, or no column: no setting of the control is as
accurate, or none as inaccurate."""

_QUICK = """## Settings, without a federation

Made by `python -m benchmarks.shared_images`, one seed: the learnt images of all clients are trained on in one place, twice.
The attacker holds the learnt images. Found is the better of two ways, among 1,000 images: whole groups, or one member of
each group and strangers.
"""


def main() -> None:
    arguments = page_arguments(__doc__, RESULTS, PAGE)
    arguments.page.write_text(page(arguments.results))
    for data in PROTOCOLS:
        path = arguments.results / f"study-{data}.json"
        if path.exists():
            save_trade_off(json.loads(path.read_text())["rows"], arguments.page.parent / figure_of(data), title=data)


def page(results: Path) -> str:
    """Return the page."""
    parts = [_ABOUT]
    for data in PROTOCOLS:
        path = results / f"study-{data}.json"
        record = json.loads(path.read_text()) if path.exists() else None
        drawn = f"![{data}: accuracy against the closest attacker's error]({figure_of(data)})\n\n"
        parts.append(f"## {data}\n\n" + ("Not measured yet.\n" if record is None else drawn + section(record)))
    looked = results / "shared_images.json"
    if looked.exists():
        parts.append(quick_look(json.loads(looked.read_text())))
    return "\n".join(parts)


def figure_of(data: str) -> str:
    """Return where a data set's figure is, seen from the page."""
    return f"images/study-{data}.png"


def pictures(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return titles and places, seen from the page, of a record's pictures."""
    found = {title(row): picture_of(row) for row in record["rows"]}
    return [(name, f"images/study/{picture}") for name, picture in found.items() if (PICTURES / picture).exists()]


def quick_look(record: Mapping[str, Any]) -> str:
    """Return the table of settings of `latent` and its like that were looked at without a federation."""
    head = ("data", "defence", "seed", "accuracy", "MSE", "guess", "found among whole groups", "found, one of each")
    lines = [
        (
            row["data"],
            title(row),
            str(row["seed"]),
            f"{fmean(row['accuracy']):.3f}",
            f"{row['mse']:.4f} ± {1.96 * row['mse_deviation']:.4f}",
            f"{row['guess_mse']:.4f}",
            *(f"{max(row[key].values()):.2f}" for key in ("found_whole_groups", "found_one_of_each")),
        )
        for row in record["rows"]
    ]
    return _QUICK + "\n" + table(head, lines) + "\n\n" + machine(record) + "\n"


def section(record: Mapping[str, Any]) -> str:
    """Return a data set's table, and what is missing of it."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in record["rows"]:
        groups[title(row)].append(row)
    known = {
        defense: {row["seed"]: untouched(row) for row in record["rows"] if row["defense"] == defense}
        for defense in ("none", "local_only")
    }
    head = (
        "defence",
        "seeds",
        "accuracy",
        "behind it",
        "under none",
        "over local",
        "AUC",
        "MSE",
        "guess",
        "proved",
        "SSIM",
        "found",
        "judged",
        "read",
        "member",
        "victims",
    )
    lines = [line(name, rows, known["none"], known["local_only"]) for name, rows in groups.items()]
    missing = [
        f"{family} {', '.join(f'{k}={v}' for k, v in settings.items())}".strip()
        for family, options in FAMILIES.items()
        for settings in options
        if len([r for r in record["rows"] if r["defense"] == family and r["settings"] == settings]) < len(SEEDS)
    ]
    notes = [f"{_MATCHED}\n\n{beside}\n"] if (beside := matched(record["rows"], "at its accuracy")) else []
    notes += [
        f"![{name}: originals, what the client trained on, attacks]({shown})\n" for name, shown in pictures(record)
    ]
    notes += sorted({machine(row) for row in record["rows"] if "machine" in row})
    if missing:
        notes.append(f"Not yet with all {len(SEEDS)} seeds: {'; '.join(missing)}.")
    return table(head, lines) + "\n\n" + "\n".join(notes) + "\n"


def title(row: Row) -> str:
    """Return a defence with its settings."""
    settings = ", ".join(f"{key} {value}" for key, value in row["settings"].items())
    return f"`{row['defense']}` {settings}".strip()


def line(name: str, rows: Sequence[Row], none: Mapping[int, float], local: Mapping[int, float]) -> Sequence[str]:
    """Return a line of the table, beside the accuracies of no defence and of no federation by seed."""
    worst = [row["privacy"].get("worst", {}) for row in rows]
    below = [none[row["seed"]] - untouched(row) for row in rows if row["seed"] in none]
    above = [untouched(row) - local[row["seed"]] for row in rows if row["seed"] in local]
    return (
        name,
        str(len(rows)),
        interval([untouched(row) for row in rows], "{:.3f}"),
        interval([row["utility"]["accuracy"] for row in rows], "{:.3f}"),
        interval(below, "{:+.3f}"),
        interval(above, "{:+.3f}"),
        interval([row["utility"]["auc"] for row in rows if "auc" in row["utility"]], "{:.3f}"),
        interval(_all(worst, "mse"), "{:.4f}"),
        interval(_all(worst, "baseline_mse"), "{:.4f}"),
        interval(_all(worst, "proved_mse"), "{:.4f}"),
        interval(_all(worst, "ssim"), "{:.2f}"),
        interval(_all(worst, "identification_rate"), "{:.2f}"),
        interval(_all(worst, "attacker_accuracy"), "{:.2f}"),
        interval(_all(worst, "adaptive_attacker_accuracy"), "{:.2f}"),
        interval(_all(worst, "membership_auc"), "{:.2f}"),
        str(min(int(row["victims"]) for row in rows)),
    )


def interval(values: Sequence[float], form: str) -> str:
    """Return the mean of some seeds' values, with its interval from two on; a dash where there is none."""
    if not values:
        return "-"
    if len(values) < 2:
        return form.format(values[0])
    half = T_975.get(len(values), 2.57) * stdev(values) / len(values) ** 0.5
    return f"{form.format(fmean(values))} ± {form.format(half).lstrip('+')}"


def _all(parts: Sequence[Mapping[str, float]], key: str) -> list[float]:
    return [part[key] for part in parts if key in part]


if __name__ == "__main__":
    main()
