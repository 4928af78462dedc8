from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_experiment, write_bars

from fedveil.orchestrator.config import Experiment, check
from fedveil.orchestrator.run import estimate as module
from fedveil.orchestrator.run.estimate import Estimate, Stopwatch, estimate, trials_of
from fedveil.orchestrator.run.setup import Setup, make_setup


class Watch(Stopwatch):
    """Every step of a kind takes a time that is easy to add up."""

    def training(self, batch: int) -> float:
        return batch / 1000

    def inverse(self, training: Any) -> float:
        return 0.01

    def judge(self) -> float:
        return 0.001


def ready(folder: Path, **overrides: Any) -> tuple[Experiment, Setup]:
    experiment = check(tiny_experiment(write_bars(folder / "bars.npz"), **overrides))
    return experiment, make_setup(experiment)


PLAIN: Mapping[str, Any] = {"name": "inverting_gradients", "steps": 10}


def test_steps_are_counted(tmp_path: Path) -> None:
    experiment, setup = ready(
        tmp_path,
        fl={"clients": 3, "rounds": 2, "local_steps": 5, "batch_size": 4},
        audit={
            "victims": 4,
            "rounds": [0, 1],
            "attacks": [PLAIN, {"name": "adaptive", "inversion": PLAIN, "inverse": {"steps": 7}}],
        },
        references={"measure": True, "clients": 2, "steps": 100},
    )
    found = estimate(experiment, setup, Watch(setup))
    assert found.uncounted == ()
    assert found.seconds == {
        "the defence": 0,
        "training": pytest.approx(2 * 3 * 5 * 0.004),
        # An inverse and a classifier of 7 steps each, and the judge's 600.
        "what attackers learn (less if flat early)": pytest.approx(2 * 7 * 0.01 + 600 * 0.001),
        # Both attacks begin with one search of 10 evaluations for 4 victims, in two rounds; an evaluation is 4 steps.
        "attacks": pytest.approx(2 * 10 * 4 * 0.004),
        # The public images alone, and with those of two clients.
        "without the federation (less if flat early)": pytest.approx(3 * 100 * 0.064),
    }
    later = estimate(experiment, setup, Watch(setup), first=False)
    assert later.seconds["what attackers learn (less if flat early)"] == pytest.approx(2 * 7 * 0.01)
    assert later.seconds["without the federation (less if flat early)"] == 0


def test_the_main_defence_counts_its_pool_its_images_and_the_attackers_rehearsals(tmp_path: Path) -> None:
    defense = {"name": "latent", "k": 2, "random_networks": 1, "trained_networks": 1, "steps": 10}
    audit = {"victims": 4, "attacks": [{"name": "adaptive", "inversion": PLAIN, "inverse": {"steps": 7}}]}
    experiment, setup = ready(tmp_path, defense=defense, audit=audit)
    from fedveil.defense.latent.pool import LONGEST

    found = estimate(experiment, setup, Watch(setup)).seconds
    # Each of three clients has fewer than 32 groups: ten steps of 32 images, half as long as those of 64.
    assert found["the defence"] == pytest.approx((LONGEST + 3 * 10 / 2) * 0.064)
    assert found["what attackers learn (less if flat early)"] == pytest.approx(0.14 + 0.6 + 4 * 10 / 2 * 0.064)


def test_what_nobody_can_reckon_is_named(tmp_path: Path) -> None:
    audit = {"victims": 4, "attacks": ["learning_to_invert"], "membership": True, "model_inversion": ["gmi"]}
    experiment, setup = ready(tmp_path, defense={"name": "latent_autoencoder"}, audit=audit)
    found = estimate(experiment, setup, Watch(setup))
    assert found.uncounted == (
        "learning_to_invert",
        "membership",
        "attacks on the released model",
        "preparing the defence",
    )


def test_trials_add_up_and_share_cores() -> None:
    one = Estimate({"training": 30.0, "attacks": 0.5}, ("membership",))
    both = one + Estimate({"training": 170.0, "the defence": 40.0}, ("membership", "dlg"))
    assert both.seconds == {"training": 200.0, "attacks": 0.5, "the defence": 40.0}
    said = both.line(2)
    assert said.startswith(
        "about 2 min on free cores once all has started, by a few steps timed here: training 2 min, the defence 20 s; not"
    )
    assert said.endswith("; not counted: membership, dlg")


def test_a_sweep_has_a_trial_for_each_setting_and_seed(tmp_path: Path) -> None:
    raw = tiny_experiment(write_bars(tmp_path / "bars.npz"), seeds=[0, 1])
    noise = {"name": "pixel_noise", "strength": 0.5}
    space = {"fl.learning_rate": {"uniform": [0.1, 0.2]}}
    search = {"panel": [{"defense": noise}], "space": space, "samples": 2, "searcher": "random"}
    trials = trials_of(check({**raw, "search": search}), {**raw, "search": search})
    assert [(one.seed, str(one.defense[0]["name"])) for one in trials] == [
        (0, "pixel_noise"),
        (1, "pixel_noise"),
        *[(seed, str(check(raw).defense[0]["name"])) for _ in range(2) for seed in (0, 1)],
    ]


def test_a_step_of_each_kind_is_timed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, setup = ready(tmp_path)
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    trained: list[int] = []

    def train(*given: Any, steps: int, **named: Any) -> None:
        trained.append(steps)
        now[0] += steps

    monkeypatch.setattr(module, "train_judge", train)
    watch = Stopwatch(setup, clock)
    assert watch.training(2) == watch.training(2) == 1.0
    assert now[0] == 8.0  # four steps, looked at before and after
    # 1 s of looking at the clock beside 1, 1 and 4 steps of a second each.
    assert watch.judge() == watch.judge() == 1.0
    assert trained == [1, 1, 4]
