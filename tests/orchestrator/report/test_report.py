import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.text import Annotation, Text
from PIL import Image
from rich.console import Console

from fedveil.fl.errors import FedveilError
from fedveil.fl.seeding import torch_stream
from fedveil.orchestrator.report import TRADE_OFF, TrialRow, TrialTable, front_of, hypervolume
from fedveil.orchestrator.report.figures import draw_pareto, pareto_figure
from fedveil.orchestrator.report.pareto import pareto_front
from fedveil.orchestrator.report.style import looks
from fedveil.orchestrator.report.table import fold

CORNER = {"utility/accuracy": 0.5, "privacy/mse": 0.0}


def trial(
    name: str,
    accuracy: float,
    error: float,
    *,
    defense: str = "latent",
    strength: str | float | None = 1.0,
    complete: float = 1.0,
    collapsed: float = 0.0,
    baseline: float = 0.0234,
) -> TrialRow:
    params: dict[str, str | float] = {"defense.name": defense}
    if strength is not None:
        params["defense.strength"] = strength
    metrics = {
        "utility/accuracy": accuracy,
        "privacy/mse": error,
        "privacy/attacker_accuracy": 0.81,
        "privacy/chance_accuracy": 0.5,
        "privacy/trained_mse": 0.0071,
        "privacy/baseline_mse": baseline,
        "privacy/complete": complete,
        "defense/collapsed": collapsed,
        "cost/train_seconds": 31.0,
        "cost/attack_seconds": 11.4,
    }
    return TrialRow(name, "FINISHED", params, metrics)


FAILED = TrialRow(
    "t9",
    "FAILED",
    {"defense.name": "latent", "defense.strength": "4"},
    {},
    "FedveilError: no image\nTraceback",
)
ROWS = [
    trial("t0", 0.89, 0.0002, defense="none", strength=None),
    trial("t1", 0.80, 0.0050, defense="pixel_noise", strength="0.5"),
    trial("t2", 0.80, 0.0125),
    trial("t3", 0.70, 0.0150, strength=2.0),
    trial("t4", 0.95, 0.0200, defense="update_noise", complete=0.0),
    trial("t5", 0.30, 0.0220, strength=4.0, collapsed=1.0),
]


def printed(rows: list[TrialRow], width: int = 200) -> list[str]:
    console = Console(width=width, record=True, file=None, force_terminal=False)
    with console.capture() as capture:
        console.print(TrialTable(rows))
    return capture.get().splitlines()


def line_of(name: str, lines: list[str]) -> str:
    (line,) = [line for line in lines if f" {name} " in line]
    return line


def test_rows_read_numbers_that_mlflow_returns_as_text() -> None:
    row = TrialRow("t", "FINISHED", {"defense.name": "latent", "defense.strength": "0.5", "seed": "None"})
    assert (row.defense, row.dial, row.number("seed"), row.number("absent")) == (
        "latent",
        0.5,
        None,
        None,
    )
    assert not row.complete
    assert not row.comparable


def test_a_trial_is_shown_by_the_setting_that_says_how_much_its_defence_protects() -> None:
    params = {"defense.name": "latent", "defense.strength": 1.0, "defense.dial": "k", "defense.k": "10"}
    assert TrialRow("t", "FINISHED", params).title == "latent k 10"
    assert TrialRow("t", "FINISHED", {"defense.name": "pixel_noise", "defense.strength": 0.25}).dial_text == "0.25"
    assert TrialRow("t", "FINISHED", {"defense.name": "none"}).dial_text == ""


def test_only_finished_complete_and_uncollapsed_trials_compete() -> None:
    assert [row.name for row in [*ROWS, FAILED] if row.comparable] == ["t0", "t1", "t2", "t3"]


def test_pareto_front_worked_by_hand() -> None:
    comparable = [row for row in ROWS if row.comparable]
    assert [row.name for row in pareto_front(comparable, TRADE_OFF)] == ["t0", "t2", "t3"]  # t1 is beaten by t2
    assert [row.name for row in front_of([*ROWS, FAILED])] == ["t0", "t2", "t3"]
    least = pareto_front(comparable, {"utility/accuracy": "max", "privacy/mse": "min"})
    assert [row.name for row in least] == ["t0"]


def test_equal_trials_share_the_front_and_trials_without_the_numbers_are_left_out() -> None:
    twins = [trial("a", 0.8, 0.01), trial("b", 0.8, 0.01)]
    assert pareto_front([*twins, FAILED], TRADE_OFF) == twins


def test_hypervolume_worked_by_hand() -> None:
    rows = [
        trial("a", 0.9, 0.01, baseline=1.0),
        trial("b", 0.7, 0.03, baseline=1.0),
        trial("c", 0.6, 0.02, baseline=1.0),
        trial("d", 0.4, 0.05, baseline=1.0),
    ]
    # (.9 - .5) * .01 + (.7 - .5) * (.03 - .01); c is dominated, d is less accurate than the reference
    assert hypervolume(rows, TRADE_OFF, CORNER) == pytest.approx(0.004 + 0.004)
    assert hypervolume([], TRADE_OFF, CORNER) == 0.0
    down = hypervolume(
        rows,
        {"utility/accuracy": "max", "privacy/mse": "min"},
        {"utility/accuracy": 0.5, "privacy/mse": 0.04},
    )
    assert down == pytest.approx(0.4 * 0.03)
    with pytest.raises(FedveilError, match="expected two objectives"):
        hypervolume(rows, {"privacy/mse": "max"}, CORNER)


points = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8)


@given(points)
@settings(max_examples=60)
def test_laws_of_the_front(pairs: list[tuple[float, float]]) -> None:
    rows = [trial(str(i), *pair, baseline=1.0) for i, pair in enumerate(pairs)]
    front = pareto_front(rows, TRADE_OFF)
    assert front
    assert pareto_front(front, TRADE_OFF) == front
    for row in rows:
        assert any(all(other.metrics[name] >= row.metrics[name] for name in TRADE_OFF) for other in front)
    area = hypervolume(rows, TRADE_OFF, CORNER)
    assert area == pytest.approx(hypervolume(rows[::-1], TRADE_OFF, CORNER))
    assert hypervolume([*rows, trial("more", 0.7, 0.7, baseline=1.0)], TRADE_OFF, CORNER) >= area - 1e-12
    assert 0.0 <= area <= 0.5


def test_the_table_marks_what_needs_care() -> None:
    lines = printed([*ROWS, FAILED])
    assert line_of("t2", lines).split()[0] == "★"
    assert line_of("t1", lines).split()[0] == "t1"
    assert line_of("t4", lines).split()[0] == "○"
    assert line_of("t5", lines).split()[0] == "↓"
    text = "\n".join(lines)
    assert "○ incomplete: no adaptive attack ran" in text
    assert "↓ collapsed" in text
    assert "failed  t9, latent 4: FedveilError: no image" in text
    assert "Traceback" not in text


def test_the_table_shows_worst_case_bounds_chance_and_cost() -> None:
    line = line_of("t2", printed(ROWS))
    for cell in ("latent", "0.800", "0.0125", "0.81 (0.50)", "0.0071 / 0.0234", " 42 "):
        assert cell in f"{line} "
    assert "–" in line_of("t0", printed(ROWS))  # no strength
    assert "PSNR" not in "\n".join(printed(ROWS))  # nothing was recorded of it


def with_metrics(row: TrialRow, **others: float) -> TrialRow:
    return replace(row, metrics={**row.metrics, **{name.replace("__", "/"): value for name, value in others.items()}})


def test_an_attacker_that_no_fit_judge_read_has_no_accuracy_but_a_chance() -> None:
    row = ROWS[2]
    unread = replace(row, metrics={k: v for k, v in row.metrics.items() if k != "privacy/attacker_accuracy"})
    lines = printed([with_metrics(unread, privacy__judge_accuracy=0.54)])
    assert "– (0.50)" in line_of("t2", lines)
    text = " ".join(" ".join(lines).split())
    assert "a judge of classes (right on 0.54 of untouched originals)" in text
    assert "(chance: 1 / classes); – where the judge is not clearly above chance" in text


def test_the_headline_names_its_attack() -> None:
    scores = {"attack__baseline__mse": 0.001, "attack__adaptive__mse": 0.0125, "attack__adaptive_2__mse": 0.02}
    row = with_metrics(ROWS[2], **scores)
    assert row.headline_attack() == "adaptive"
    assert row.headline_attack(among=["baseline", "adaptive_2"]) == "baseline"
    assert row.headline_attack("ssim") is None
    other = with_metrics(ROWS[1], attack__adaptive__mse=0.02, attack__inverting_gradients__mse=0.005)
    text = " ".join(" ".join(printed([row, other])).split())
    assert "Worst-case MSE by adaptive (latent); inverting_gradients (pixel_noise)." in text


@pytest.mark.parametrize(("width", "cell"), [(80, "0.0125 ±0.0009"), (200, "0.0125 [0.0118, 0.0134]")])
def test_an_interval_over_victims_stands_in_the_cell(width: int, cell: str) -> None:
    lines = printed([with_metrics(ROWS[2], privacy__mse_low=0.0118, privacy__mse_high=0.0134), ROWS[3]], width)
    assert cell in line_of("t2", lines)
    assert "The 95 % intervals ([ ], or ± their longer side) are over victims for privacy." in " ".join(
        " ".join(lines).split()
    )
    assert "±" not in line_of("t3", lines)
    assert "±" not in " ".join(printed([ROWS[3]], width))


def test_a_defence_that_every_name_begins_with_needs_no_column() -> None:
    assert "defence" in printed(ROWS)[1]
    assert "defence" not in printed([replace(row, name=f"{row.defense}_{row.name}") for row in ROWS])[1]


@pytest.mark.parametrize("width", [80, 100, 130, 200])
def test_the_table_fits_the_console_and_keeps_the_headline(width: int) -> None:
    lines = printed([*ROWS, FAILED], width)
    assert max(map(len, lines)) <= width
    line = line_of("t3", lines)
    assert "0.700" in line
    assert "0.0150" in line


def test_the_table_takes_names_with_brackets_as_they_are_and_may_hold_failures_alone() -> None:
    assert "[red]" in line_of("[red]", printed([trial("[red]", 0.8, 0.01)]))
    assert printed([FAILED])[0].startswith(" failed  t9")


def test_in_a_narrow_window_names_are_folded_before_numbers_of_interest_are_left_out() -> None:
    rows = [replace(row, name=f"{row.defense}_strength=0.123_other_setting=4") for row in ROWS[1:3]]
    rows = [with_metrics(row, privacy__identification_rate=0.25) for row in rows]
    text = "\n".join(printed(rows, 80))
    assert "other_setting=4" in text
    assert "0.25" in text  # how many are identified
    assert "0.81 (0.50)" in text
    said = " ".join(text.split())
    assert "Left out where the window is narrow: MSE trained / baseline, seconds." in said.replace("setting, ", "", 1)
    assert "Left out" not in " ".join(printed(rows, 250))


@given(st.text("ab_-=/.+", max_size=60), st.integers(1, 30))
def test_a_folded_name_is_the_name_broken_between_its_parts(name: str, width: int) -> None:
    lines = fold(name, width).split("\n")
    assert "".join(lines) == name
    assert all(len(line) <= width or not re.search(r"[_\-/+].", line) for line in lines)
    assert all(line[-1] in "_-/+" for line in lines[:-1])


def test_each_defence_has_a_look_of_its_own_whatever_the_order() -> None:
    names = [f"d{i}" for i in range(12)]
    assert looks(names) == looks(names[::-1])
    assert len(set(looks(names).values())) == 12


def test_pareto_figure_shows_points_front_baseline_and_strengths(tmp_path: Path) -> None:
    figure = draw_pareto([*ROWS, FAILED], title="A sweep")
    (axes,) = figure.axes
    (front,) = [line for line in axes.get_lines() if line.get_label() == "Pareto front"]
    (baseline,) = [line for line in axes.get_lines() if line.get_linestyle() == "--"]
    assert np.asarray(front.get_data()).T.tolist() == [[0.7, 0.015], [0.8, 0.0125], [0.89, 0.0002]]
    assert np.asarray(baseline.get_ydata()).tolist() == pytest.approx([0.0234, 0.0234])
    legend = axes.get_legend()
    assert legend is not None
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts[:4] == ["latent", "none", "pixel_noise", "update_noise"]
    labels = {text.get_text() for text in axes.texts}
    assert {"1", "2", "4", "0.5"} <= labels
    path = tmp_path / "new folder" / "pareto.png"
    pareto_figure(ROWS, path)
    with Image.open(path) as image:
        assert image.size == (1472, 896)


def test_whiskers_are_the_intervals_of_error_and_accuracy() -> None:
    rows = [
        replace(with_metrics(trial(f"t-seed{seed}", 0.8 + seed / 100, 0.01)), params={"seed": seed})
        for seed in range(3)
    ]
    rows = [with_metrics(row, privacy__mse_low=0.007, privacy__mse_high=0.016) for row in rows]
    (axes,) = draw_pareto([*rows, ROWS[1]], title="").axes
    across, up = [collection for collection in axes.collections if isinstance(collection, LineCollection)][-2:]
    # by hand: 3 / sqrt(3) below and 6 / sqrt(3) above; Student's t for two degrees of freedom is 4.303
    assert up.get_segments()[0][:, 1] == pytest.approx([0.01 - 0.003 / 3**0.5, 0.01 + 0.006 / 3**0.5])
    assert across.get_segments()[0][:, 0] == pytest.approx([0.81 - 0.0248414, 0.81 + 0.0248414])


def test_labels_of_a_crowded_figure_cover_neither_each_other_nor_leave_the_axes() -> None:
    stream = torch_stream(0, "crowd")
    spots = torch.rand(24, 2, generator=stream).tolist()
    figure = draw_pareto(
        [trial(str(i), 0.6 + 0.3 * x, 0.02 * y, strength=round(x + y, 2)) for i, (x, y) in enumerate(spots)],
        title="",
    )
    (axes,) = figure.axes
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    figure.draw(renderer)
    labels = [text for text in axes.texts if isinstance(text, Annotation) and text.get_text()[0].isdigit()]
    boxes = [Text.get_window_extent(label, renderer) for label in labels]
    assert len(boxes) == 24
    assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    area = axes.get_window_extent(renderer)
    assert all(area.x0 <= box.x0 and box.x1 <= area.x1 and area.y0 <= box.y0 and box.y1 <= area.y1 for box in boxes)


def test_pareto_figure_needs_a_finished_trial(tmp_path: Path) -> None:
    with pytest.raises(FedveilError, match="no finished trial"):
        pareto_figure([FAILED], tmp_path / "pareto.png")


def test_an_mse_beyond_the_guess_counts_as_the_guess() -> None:
    beyond, at = trial("a", 0.8, 0.5), trial("b", 0.9, 0.0234)
    assert beyond.score("privacy/mse") == 0.0234
    assert beyond.score("utility/accuracy") == 0.8
    assert pareto_front([beyond, at], TRADE_OFF) == [at]


@pytest.mark.parametrize(("missed", "weak"), [(0.045, False), (0.055, True)])
def test_an_attack_that_leaves_updates_unexplained_is_marked(missed: float, weak: bool) -> None:
    row = trial("a", 0.8, 0.02)
    row = with_metrics(row, attack__inverting_gradients__misfit=missed)
    assert row.weakly_attacked is weak
    assert row.comparable is not weak
    console = Console(record=True, width=120)
    console.print(TrialTable([row]))
    assert ("? weak attack" in console.export_text()) is weak
    bounded = TrialRow(row.name, row.status, row.params, {**row.metrics, "attack/trained_images/mse": 0.01})
    assert not bounded.weakly_attacked
    again = with_metrics(row, attack__strongest__misfit=0.01)
    assert not again.weakly_attacked  # the better of two attacks explains them


@pytest.mark.parametrize(("share", "collapsed"), [(0.0, False), (0.25, False), (0.5, True), (1.0, True)])
def test_a_trial_collapsed_where_half_of_its_clients_did(share: float, collapsed: bool) -> None:
    assert trial("a", 0.8, 0.02, collapsed=share).collapsed is collapsed
