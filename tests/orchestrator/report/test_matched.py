from __future__ import annotations

import re

import pytest
from rich.console import Console

from fedveil.fl.messages import PrivacyRecord, ThreatModel
from fedveil.orchestrator.report import TrialRow, TrialTable, matched_line

NO_RECORDS = " (no interval: the victims' records are not at hand)"
VICTIMS = 8


def trial(name: str, defense: str, accuracy: float, error: float, *, seed: int = 0, baseline: float = 1.0) -> TrialRow:
    metrics = {
        "utility/accuracy": accuracy,
        "privacy/mse": error,
        "privacy/baseline_mse": baseline,
        "privacy/complete": 1.0,
    }
    return TrialRow(name, "FINISHED", {"defense.name": defense, "seed": seed}, metrics)


ROWS = [
    trial("a", "latent", 0.90, 0.010),
    trial("b", "latent", 0.80, 0.020),
    trial("c", "pixel_noise", 0.85, 0.002),
    trial("d", "pixel_noise", 0.75, 0.004),
    trial("e", "none", 0.95, 0.0),
]


def records(
    row: TrialRow, *, victims: int = VICTIMS, spread: float = 0.0, baseline: float = 1.0
) -> list[PrivacyRecord]:
    """Records whose leakiest audit has the row's MSE: victim v is off by (v - mean v) * spread."""

    def record(victim: int, attack: str, number: int, error: float) -> PrivacyRecord:
        return PrivacyRecord(
            attack=attack,
            threat_model=ThreatModel(),
            seed=int(row.params["seed"]),
            round=number,
            client=0,
            victim=victim,
            label=0,
            mse=error,
            psnr=0.0,
            ssim=0.0,
            label_recovered=True,
            baseline_mse=baseline,
        )

    middle = (victims - 1) / 2
    mine = [row.metrics["privacy/mse"] + (victim - middle) * spread for victim in range(victims)]
    return [
        record(victim, attack, number, error + off)
        for attack, number, off in (("adaptive", 0, 0.0), ("adaptive", 1, 0.5), ("inverting_gradients", 0, 0.7))
        for victim, error in enumerate(mine)
    ]


def test_defences_are_compared_at_an_accuracy_that_all_reach() -> None:
    at = "At accuracy 0.850 the MSE is 0.0150 for latent, 0.0020 for pixel_noise"
    assert matched_line(ROWS) == at + NO_RECORDS
    assert matched_line(ROWS[:2]) == ""
    assert matched_line(ROWS[3:]) == ""
    far = [trial("x", "top_k", 0.5, 0.01), trial("y", "top_k", 0.4, 0.02)]
    assert matched_line([*ROWS[:2], *far]) == ""
    dominated = trial("f", "latent", 0.79, 0.001)
    assert matched_line([*ROWS, dominated]) == at + NO_RECORDS


def test_the_difference_has_a_paired_interval_of_which_what_victims_share_is_no_part() -> None:
    # All victims differ between them, but each by the same from trial to trial.
    same = {row.name: records(row, spread=0.0001) for row in ROWS}
    line = matched_line(ROWS, same)
    assert line.endswith(
        "; latent is ahead of pixel_noise by 0.0130 [0.0130, 0.0130] (95 % interval, paired over 8 victims)"
    )
    found = re.search(r"by 0.0130 \[(.*), (.*)\]", matched_line(ROWS, {**same, "b": records(ROWS[1], spread=0.002)}))
    assert found is not None
    low, high = map(float, found.groups())
    # at the middle of a and b the victims spread by 0.00105, less the 0.0001 that they share, times v - 3.5; that has a
    # standard deviation of 2.449 and so a standard error of 0.000823; t = 2.3646 for seven degrees of freedom
    assert low == pytest.approx(0.0130 - 2.3646 * 0.000823, abs=1e-4)
    assert high == pytest.approx(0.0130 + 2.3646 * 0.000823, abs=1e-4)


def test_seeds_are_units_of_their_own() -> None:
    rows = [
        trial(
            f"{row.name}-seed{seed}",
            row.defense,
            row.metrics["utility/accuracy"],
            row.metrics["privacy/mse"],
            seed=seed,
        )
        for row in ROWS
        for seed in (0, 1, 2)
    ]
    line = matched_line(rows, {row.name: records(row) for row in rows})
    assert "0.0150 for latent, 0.0020 for pixel_noise; latent is ahead" in line
    assert line.endswith("paired over 24 victims)")


def test_beyond_the_guess_each_victim_counts_with_the_guess() -> None:
    rows = [
        trial(row.name, row.defense, row.metrics["utility/accuracy"], row.metrics["privacy/mse"], baseline=0.012)
        for row in ROWS
    ]
    line = matched_line(rows, {row.name: records(row, spread=0.0001, baseline=0.012) for row in rows})
    # a 0.010 and b 0.012 instead of 0.020: 0.011 between them
    assert "0.0110 for latent, 0.0020 for pixel_noise; latent is ahead of pixel_noise by 0.0090 [" in line


def test_without_the_same_victims_there_is_no_interval() -> None:
    mine = {row.name: records(row) for row in ROWS}
    assert matched_line(ROWS, {name: mine[name] for name in "ac"}).endswith(NO_RECORDS)
    differ = " (no interval: their victims or seeds differ)"
    assert matched_line(ROWS, {**mine, "c": records(ROWS[2], victims=7)}).endswith(differ)
    assert matched_line(ROWS, {**mine, "a": records(ROWS[0], victims=7)}).endswith(differ)


def test_a_single_victim_has_a_difference_without_an_interval() -> None:
    line = matched_line(ROWS, {row.name: records(row, victims=1) for row in ROWS})
    assert line.endswith("by 0.0130 (no interval: there is one victim)")


def test_the_table_ends_with_the_sentence() -> None:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(TrialTable(ROWS, {row.name: records(row) for row in ROWS}))
    assert capture.get().rstrip().endswith("(95 % interval, paired over 8 victims)")
