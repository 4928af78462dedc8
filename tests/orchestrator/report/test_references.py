from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Annotation
from rich.console import Console

from fedveil.orchestrator.report import TrialRow, TrialTable
from fedveil.orchestrator.report.figures import draw_pareto
from fedveil.orchestrator.report.references import federating_line, reference_groups, wilson


def trial(
    accuracy: float,
    public: float | None,
    local: float | None,
    *,
    seed: int = 0,
    defense: str = "none",
    images: float = 400,
) -> TrialRow:
    scores = {"public": public, "local": local}
    metrics = {f"utility/{key}_accuracy": value for key, value in scores.items() if value is not None}
    metrics |= {"utility/accuracy": accuracy, "privacy/mse": 0.01, "utility/test_images": images}
    return TrialRow(f"{defense}-seed{seed}", "FINISHED", {"defense.name": defense, "seed": seed}, metrics)


def test_it_is_said_where_an_undefended_federation_is_below_one_of_its_references() -> None:
    # Wilson: (.8 + 1.9208/400 -+ 1.96 sqrt(.16/400 + .9604/160000)) / (1 + 3.8416/400)
    assert federating_line([trial(0.8, 0.85, 0.70)]) == (
        "Federating does not pay here: none 0.800 [0.758, 0.836], public only 0.850"
    )
    assert federating_line([trial(0.8, 0.85, 0.81)]).endswith(", public only 0.850, local only 0.810")


def test_it_is_not_shown_to_pay_where_a_reference_is_inside_the_interval() -> None:
    assert federating_line([trial(0.8, 0.77, 0.70)]) == (
        "Federating is not shown to pay here: none 0.800 [0.758, 0.836], public only 0.770"
    )


@pytest.mark.parametrize(
    "rows",
    [
        [trial(0.8, 0.75, 0.70)],
        [trial(0.8, 0.79, 0.70, images=40_000)],
        [trial(0.8, None, None)],
        [trial(0.7, 0.9, 0.9, defense="pixel_noise")],
        [TrialRow("none", "FAILED", {"defense.name": "none"}, trial(0.1, 0.9, 0.9).metrics)],
        [],
    ],
    ids=["above both", "close, many images", "no references", "no undefended trial", "failed", "nothing"],
)
def test_nothing_is_said_where_federating_pays_or_was_not_compared(rows: list[TrialRow]) -> None:
    assert federating_line(rows) == ""


def test_over_seeds_the_interval_is_students() -> None:
    rows = [trial(accuracy, 0.78, 0.7, seed=seed) for seed, accuracy in enumerate([0.79, 0.80, 0.81])]
    # t(2, .975) * .01 / sqrt 3 = 4.3027 * .0057735 = .02484
    assert federating_line(rows) == (
        "Federating is not shown to pay here: none 0.800 [0.775, 0.825], public only 0.780"
    )
    assert federating_line([trial(accuracy, 0.77, 0.7, seed=s) for s, accuracy in enumerate([0.79, 0.80, 0.81])]) == ""


def test_the_most_accurate_undefended_setting_stands_for_all() -> None:
    weak, strong = trial(0.6, 0.75, 0.7), trial(0.9, 0.75, 0.7)
    assert federating_line([weak, TrialRow("none_rounds=9", "FINISHED", strong.params, strong.metrics)]) == ""


def test_a_reference_is_one_setting_whatever_trials_share_it() -> None:
    rows = [
        trial(0.8, 0.7 + seed / 100, None, seed=seed, defense=d) for seed in (0, 2) for d in ("none", "pixel_noise")
    ]
    (public,) = reference_groups(rows)
    assert (public.name, len(public.members)) == ("public only", 2)
    assert public.metrics == {"utility/accuracy": pytest.approx(0.71)}
    # The best, where settings differ.
    assert reference_groups([*rows[:2], trial(0.8, 0.9, None, defense="x")])[0].metrics["utility/accuracy"] == 0.9
    assert reference_groups([trial(0.8, None, None)]) == []


@given(st.floats(0, 1), st.integers(1, 10**6))
def test_wilsons_ends_are_where_the_share_is_just_not_unlikely(share: float, count: int) -> None:
    for end in wilson(share, count):
        assert -1e-9 <= end <= 1 + 1e-9
        # (Wilson 1927) |share - p| = z sqrt(p (1 - p) / n)
        inside = min(max(end, 0.0), 1.0)
        assert abs(share - end) == pytest.approx(1.959964 * math.sqrt(inside * (1 - inside) / count), abs=1e-6)


def printed(rows: Sequence[TrialRow]) -> list[str]:
    console = Console(width=200, force_terminal=False)
    with console.capture() as capture:
        console.print(TrialTable(rows))
    return capture.get().splitlines()


def test_the_table_ends_with_the_references_and_the_sentence() -> None:
    lines = printed([trial(0.8, 0.85, 0.70), trial(0.7, 0.85, 0.70, defense="pixel_noise")])
    rows = [line.split() for line in lines]
    assert [row for row in rows if row[:2] == ["public", "only"]] == [["public", "only", "0.850", "–"]]
    assert [row for row in rows if row[:2] == ["local", "only"]] == [["local", "only", "0.700", "–"]]
    assert sum("Federating does not pay here" in line for line in lines) == 1
    assert sum("do without the federation" in line for line in lines) == 1
    paying = printed([trial(0.95, 0.85, 0.70)])
    assert not any("Federating" in line for line in paying)
    assert not any("only" in line for line in printed([trial(0.8, None, None)]))


def test_the_figure_has_an_upright_line_with_a_label_for_each() -> None:
    (axes,) = draw_pareto([trial(0.8, 0.85, 0.70), trial(0.75, 0.85, 0.70, defense="x")], title="t").axes
    upright = {float(line.get_xdata()[0]) for line in axes.lines if list(line.get_ydata()) == [0, 1]}  # type: ignore[index, arg-type]
    assert upright == {0.85, 0.70}
    labels = {text.get_text(): text.xy[0] for text in axes.texts if isinstance(text, Annotation)}
    assert (labels["public only"], labels["local only"]) == (0.85, 0.70)
    left, right = axes.get_xlim()
    assert left < 0.70 < 0.85 < right
    (plain,) = draw_pareto([trial(0.8, None, None)], title="t").axes
    assert not any("only" in text.get_text() for text in plain.texts)
