from __future__ import annotations

from typing import Any

import pytest

from benchmarks.model_inversion import ANSWERS, DATA, TRAINING, experiment, page, render
from fedveil.defense import DEFENSES
from fedveil.orchestrator.config import check

MACHINE = {"cpu": "a core", "threads": 1, "torch": "2", "python": "3"}


def row(name: str, **metrics: float) -> dict[str, Any]:
    known = {"utility/accuracy": 0.9, "inversion/chance_accuracy": 0.25, "inversion/judge_accuracy": 0.95}
    known |= {"inversion/baseline_mse": 0.05, "inversion/training_based/heldout_mse": 0.04}
    return {
        "data": "blood",
        "seed": 0,
        "row": name,
        "metrics": known | {f"inversion/{k}": v for k, v in metrics.items()},
    }


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("name", [name for name, own in {**TRAINING, **ANSWERS}.items() if own["name"] in DEFENSES])
def test_every_row_is_an_experiment(data: str, name: str) -> None:
    made = check(experiment(data, 0, {**TRAINING, **ANSWERS}[name], answers_alone=name in ANSWERS))
    holding = [attack.name for attack in made.audit.build_model_inversions() if not attack.rebuilds]
    assert holding == ([] if name in ANSWERS else ["gmi", "ked_mi", "brep_mi"])


def test_the_page_says_what_was_measured_and_what_was_not() -> None:
    none = row(
        "none",
        **{"gmi/attacker_accuracy": 0.5, "gmi/attacker_accuracy_low": 0.4, "gmi/attacker_accuracy_high": 0.6},
        **{"training_based/mse": 0.04, "training_based_2/mse": 0.041},
    )
    text = page({"machine": MACHINE, "rows": [none, row("lpa 0.1")]})
    lines = text.splitlines()
    assert "| `none` | 0 | 0.900 | 0.50 [0.40, 0.60] | - | - | 0.0400 | 0.0410 | - | - |" in lines
    assert "| `lpa 0.1` | 0 | 0.900 | as none | as none | as none | as none | as none | as none | as none |" in lines
    assert "none (seed 0)" not in text.partition("### mnist")[0]
    assert "none (seed 1)" in text
    assert "told the label alone errs by 0.0500" in text


def test_a_learnt_perturbation_is_held_against_a_random_one_victim_by_victim() -> None:
    labels = ["training_based", "training_based_2", "training_based_3", "training_based_4"]
    learnt = row("lpa 0.1") | {"errors": dict.fromkeys(labels, "5000 7000")}
    random = row("output_noise 0.1") | {"errors": dict.fromkeys(labels, "4000 6000")}
    text = page({"machine": MACHINE, "rows": [learnt, random, row("output_noise 0.5")]})
    assert "`lpa 0.1` less `output_noise 0.1`, seed 0, MSE per victim: released +0.0100 [+0.0100, +0.0100], " in text
    assert text.count("MSE per victim") == 1


def test_the_tables_go_between_the_marks() -> None:
    before = "a\n<!-- table: x -->\nold\n<!-- end -->\nb\n"
    made = render({"rows": []}, before)
    assert made.startswith("a\n<!-- table: x -->\n### blood\n")
    assert made.endswith("\n<!-- end -->\nb\n")
    assert render({"rows": []}, made) == made
    with pytest.raises(ValueError, match="found 0"):
        render({"rows": []}, "nothing")
