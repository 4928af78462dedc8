from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TINY_MODEL_INVERSIONS, tiny_experiment, write_bars

from fedveil.attacks.model_inversion.audit import InversionReport
from fedveil.fl.cache import fingerprint
from fedveil.fl.executor import SerialExecutor
from fedveil.orchestrator.config import ConfigError, check
from fedveil.orchestrator.metrics import FINAL, fits, objectives
from fedveil.orchestrator.run.callbacks import Phase, TrialCallback, TrialResult
from fedveil.orchestrator.run.setup import Setup, make_setup
from fedveil.orchestrator.run.trial import Trial

LPA = {"name": "lpa", "steps": 2, "surrogate_steps": 3, "width": 2}


NOBODY = (
    "data.private_classes: given [0, 1]; the other classes' images are for the attacks of audit.model_inversion, which has"
    " none: list one, or leave the classes out"
)


class Kept(TrialCallback):
    def __init__(self) -> None:
        self.phases: list[Phase] = []
        self.reports: list[InversionReport] = []

    def on_begin(self, phase: Phase, number: int) -> None:
        self.phases.append(phase)

    def on_inversion(self, report: InversionReport) -> None:
        self.reports.append(report)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The judge is trained once."""
    return tmp_path_factory.mktemp("cache")


def raw(cache: Path, *, private: list[int] | None = None, **sections: Any) -> dict[str, Any]:
    own = {"rounds": [0], "attacks": ["baseline"], "model_inversion": TINY_MODEL_INVERSIONS}
    made = tiny_experiment(write_bars(cache / "bars.npz"), audit={**own, **sections.pop("audit", {})}, **sections)
    if private is not None:
        made["data"] = {**made["data"], "private_classes": private}
    return made


def run(cache: Path, **sections: Any) -> tuple[TrialResult, Kept, Setup]:
    experiment, kept = check(raw(cache, **sections)), Kept()
    setup = make_setup(experiment)
    result = Trial(experiment, setup, SerialExecutor(), cache=cache, callbacks=[kept]).run()
    return result, kept, setup


def test_a_released_model_is_attacked_after_the_last_round(cache: Path) -> None:
    result, kept, setup = run(cache, private=[0, 2])
    assert kept.phases[-3:] == [Phase.RELEASE, Phase.INVERSION, Phase.REFERENCES]
    assert len(setup.data.classes) == 2
    metrics = result.metrics
    attacks = ["gmi", "ked_mi", "brep_mi", "training_based", "training_based_2"]
    assert all(math.isfinite(metrics[f"inversion/{attack}/target_accuracy"]) for attack in attacks)
    assert metrics["inversion/mse"] == min(metrics[f"inversion/{attack}/mse"] for attack in attacks[3:])
    assert metrics["inversion/complete"] == 1
    assert metrics["inversion/brep_mi/queries"] == 8 + 2 * 2 * 2 * 2  # tries; classes, images, points and steps
    (report,) = kept.reports
    assert set(report.outcomes) == set(attacks)
    named = [metric.name for metric in FINAL]
    assert all(any(fits(name, template) for template in named) for name in metrics)


def test_nothing_is_attacked_unasked(cache: Path) -> None:
    result, kept, setup = run(cache, audit={"model_inversion": []})
    assert setup.release is None
    assert Phase.INVERSION not in kept.phases
    assert not any(name.startswith("inversion/") for name in result.metrics)


def test_lpa_changes_no_prediction_and_its_guard_stands_before_the_attackers(cache: Path) -> None:
    plain, _, _ = run(cache, private=[0, 2])
    guarded, _, _ = run(cache, private=[0, 2], defense=LPA)
    for name in ("utility/accuracy", "utility/val_accuracy", "utility/clean_accuracy", "inversion/gmi/target_accuracy"):
        assert guarded.metrics[name] == plain.metrics[name]
    assert guarded.metrics["inversion/training_based/mse"] != plain.metrics["inversion/training_based/mse"]
    assert guarded.metrics["defense/output_l1"] > 0
    assert not any(name.startswith("defense/") for name in plain.metrics)


def test_a_guard_that_flips_counts_in_the_utility(cache: Path) -> None:
    flip = {"name": "lfp", "fraction": 0.5, "strength": 2.0, "steps": 2, "surrogate_steps": 3, "width": 2}
    result, _, _ = run(cache, defense=flip, audit={"model_inversion": []})
    assert result.metrics["defense/flipped"] > 0
    assert result.metrics["utility/accuracy"] < result.metrics["utility/clean_accuracy"]


def test_no_image_is_both_trained_on_and_the_attackers_or_the_judges(cache: Path) -> None:
    for private in (None, [0, 2]):
        setup = make_setup(check(raw(cache, private=private)))
        assert setup.release is not None
        parts = [*setup.shards, setup.public, setup.release.attacker, setup.release.judged]
        pictures = [{bytes(pixels.numpy().tobytes()) for pixels in part.pixels} for part in parts]
        assert sum(map(len, pictures)) == len(set().union(*pictures))
        if private is None:
            both = torch.cat([setup.release.attacker.pixels, setup.release.judged.pixels])
            assert len(both) == len(setup.auxiliary)
        else:
            assert fingerprint(setup.release.judged) == fingerprint(setup.auxiliary)
            assert len(setup.release.attacker) == 30  # all of the class that is not private


def test_the_same_trial_gives_the_same_numbers(cache: Path, tmp_path: Path) -> None:
    first, _, _ = run(cache, private=[0, 2], defense=LPA)
    again, _, _ = run(tmp_path, private=[0, 2], defense=LPA)
    assert first.metrics == again.metrics


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"private": [0, 0]},
            "data.private_classes: given [0, 0]; each class once",
        ),
        (
            {"private": [0, 1], "audit": {"model_inversion": []}},
            NOBODY,
        ),
        (
            {"audit": {"model_inversion": ["gmii"]}},
            "audit.model_inversion.0.name: given 'gmii'; allowed: brep_mi, gmi, ked_mi, training_based",
        ),
        (
            {"audit": {"model_inversion": [{"name": "gmi", "gan": {"latent": 0}}]}},
            "audit.model_inversion.0.gan.latent: given 0; it has to be at least 1 and finite",
        ),
    ],
)
def test_what_does_not_fit_is_said(cache: Path, changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        check(raw(cache, **changes))
    assert refusal.value.lines == (line,)


def test_a_search_may_aim_at_what_its_attacks_report(cache: Path) -> None:
    experiment = check(raw(cache))
    attacks = experiment.audit.build_model_inversions()
    assert {"inversion/attacker_accuracy", "inversion/mse"} <= set(objectives([], attacks))
    assert "inversion/mse" not in objectives([], attacks[:3])
    assert not any(name.startswith("inversion/") for name in objectives([]))
    aimed = {"panel": [{"defense": "none"}], "objectives": {"inversion/mse": "max"}}
    assert check(raw(cache, search=aimed)).search is not None
    with pytest.raises(
        ConfigError, match=r"search\.objectives: given 'inversion/mse'; allowed: .*inversion/attacker_accuracy"
    ):
        check(raw(cache, audit={"model_inversion": TINY_MODEL_INVERSIONS[:1]}, search=aimed))
    without = {**aimed, "panel": [{"audit.model_inversion": [TINY_MODEL_INVERSIONS[0]]}]}
    with pytest.raises(
        ConfigError, match=r"given gmi; search\.objectives has 'inversion/mse', which these attacks do not report"
    ):
        check(raw(cache, search=without))
