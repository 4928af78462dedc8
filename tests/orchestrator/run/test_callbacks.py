from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tiny import tiny_experiment, write_bars

from fedveil.attacks.audit.report import AuditReport
from fedveil.fl.rounds import RoundReport, ServerState
from fedveil.orchestrator.config import check
from fedveil.orchestrator.run.callbacks import Costs, Phase, Speech, TrialResult
from fedveil.orchestrator.run.checkpoint import Pictures, Progress
from fedveil.orchestrator.run.recording import victim_images
from fedveil.orchestrator.run.setup import make_setup

AFTER_ONE = Progress(ServerState(round=1, weights={}))


def test_the_time_of_a_phase_goes_to_training_or_to_attacking() -> None:
    lengths = [1.0, 2.0, 4.0, 16.0, 8.0, 32.0, 64.0, 900.0]  # the last: shared by trials
    times = iter([moment for at, length in enumerate(lengths) for moment in (1000.0 * at, 1000.0 * at + length)])
    costs = Costs(2, {"cost/train_seconds": 0.5, "cost/update_bytes": 30.0}, clock=lambda: next(times))
    for phase in Phase:
        costs.on_begin(phase, 0)
        costs.on_end(phase)
    costs.on_round(AFTER_ONE, RoundReport(loss=1.0, failed_clients=0, update_bytes=50.0), {})
    # Two preparations, one audit, membership, one round, the release and attacks on it take 1, 2, 4, 16, 8, 32 and 64
    # seconds; 30 bytes are half of the first round's 60.
    assert costs.scores() == {
        "cost/train_seconds": 0.5 + 1 + 8 + 32,
        "cost/attack_seconds": 2.0 + 4 + 16 + 64,
        "cost/update_bytes": 30.0 + 25,
    }


def test_a_trial_says_that_answers_are_guarded_and_attacked(tmp_path: Path) -> None:
    audit = {"model_inversion": ["gmi", "gmi"]}
    experiment = check(tiny_experiment(write_bars(tmp_path / "bars.npz"), audit=audit, defense={"name": "lpa"}))
    setup, said = make_setup(experiment), list[str]()
    speech = Speech(said.append, experiment, setup)
    for phase in (Phase.RELEASE, Phase.INVERSION):
        speech.on_begin(phase, 1)
    assert said == [
        "learning from 9 public images what the finished model's answers are to pass",
        "attacking the released model with 9 images: gmi, gmi_2",
    ]


def test_what_a_trial_says(tmp_path: Path) -> None:
    experiment = check(tiny_experiment(write_bars(tmp_path / "bars.npz")))
    setup = make_setup(experiment)
    said: list[str] = []
    setup = replace(setup, data=replace(setup.data, notes=("seen twice",)))
    speech = Speech(said.append, experiment, setup, clock=iter(range(0, 10_000, 100)).__next__)
    for phase in Phase:
        speech.on_begin(phase, 1)
    speech.on_prepared({"defense/collapsed": 0.25, "defense/adversary_gap": 0.9})
    for notes in (("brightness is a guess", "seen twice"), ("brightness is a guess",)):
        speech.on_audit(AuditReport(reconstructions={}, victims=(), notes=notes))
    running = {"fl/accuracy": 0.5}
    speech.on_round(AFTER_ONE, RoundReport(loss=1.5, failed_clients=0, update_bytes=1.0), running)
    speech.on_round(AFTER_ONE, RoundReport(loss=1.5, failed_clients=2, update_bytes=1.0), running)
    speech.on_final(TrialResult(AFTER_ONE, {"utility/accuracy": 0.75, "privacy/mse": 0.0123}))
    assert said[:4] == [
        "note: seen twice",
        "preparing the defence on 9 public images and with 3 clients",
        "the attacker prepares with 18 auxiliary images: baseline, inverting_gradients, adaptive_modules",
        "audit of round 1: 4 victims",
    ]
    assert said[4].startswith("the minimax training collapsed for 25% of the clients")
    assert said[5:] == [
        "note: brightness is a guess",
        "round 1/2: accuracy 0.500, loss 1.500",
        "round 1/2: accuracy 0.500, loss 1.500, 2 client turn(s) replayed",
        "done: accuracy 0.750, worst-case MSE 0.0123",
    ]


def test_quick_rounds_are_told_now_and_then_with_what_happened_between_and_what_is_left(tmp_path: Path) -> None:
    overrides = {"fl": {"clients": 3, "rounds": 9}}
    experiment = check(tiny_experiment(write_bars(tmp_path / "bars.npz"), **overrides))
    experiment = experiment.model_copy(update={"audit": experiment.audit.model_copy(update={"rounds": [0, 8]})})
    now, said = [0.0], list[str]()
    speech = Speech(said.append, experiment, make_setup(experiment), clock=lambda: now[0])

    def phase(kind: Phase, number: int, seconds: float) -> None:
        speech.on_begin(kind, number)
        now[0] += seconds
        speech.on_end(kind)

    phase(Phase.AUDIT, 0, 30.0)
    for number in range(9):
        if number == 8:
            phase(Phase.AUDIT, number, 30.0)
        phase(Phase.ROUND, number, 3.0)
        state = Progress(ServerState(round=number + 1, weights={}))
        report = RoundReport(loss=1.0, failed_clients=int(number == 2), update_bytes=1.0)
        speech.on_round(state, report, {"fl/accuracy": 0.5})
    # Ten seconds after the first line four rounds of 3 s are over; a round and an audit take 3 s and 30 s on average.
    assert said == [
        "audit of round 0: 4 victims",
        "round 1/9: accuracy 0.500, loss 1.000, rounds and audits: about 54 s left",
        "round 5/9: accuracy 0.500, loss 1.000, 1 client turn(s) replayed, rounds and audits: about 42 s left",
        "audit of round 8: 4 victims",
        "round 9/9: accuracy 0.500, loss 1.000",
    ]


@pytest.mark.parametrize(("gap", "word"), [(0.89, "less"), (0.91, None), (1.11, None), (1.12, "more")])
def test_an_adversary_that_is_no_measure_of_attackers_is_said(tmp_path: Path, gap: float, word: str | None) -> None:
    experiment = check(tiny_experiment(write_bars(tmp_path / "bars.npz")))
    said: list[str] = []
    Speech(said.append, experiment, make_setup(experiment)).on_prepared({"defense/adversary_gap": gap})
    assert len(said) == (word is not None)
    assert all(f"errs by {word} than an attacker that starts afresh, {gap:.2f} times" in line for line in said)


@pytest.mark.parametrize(("channels", "shape"), [(1, (4, 5)), (3, (4, 5, 3))])
def test_each_victims_images_have_a_key_of_their_own(channels: int, shape: tuple[int, ...]) -> None:
    images = torch.rand((3, 2, channels, 4, 5), generator=torch.Generator().manual_seed(0))
    found = victim_images(Pictures(images[0], images[1], {"adaptive_2": images[2]}))
    kinds = ("original", "trained_on", "adaptive_2")
    assert set(found) == {f"victim/{number}_{kind}" for number in range(2) for kind in kinds}
    assert {array.shape for array in found.values()} == {shape}
    expected = cast(Any, images[2][1].movedim(0, -1)).reshape(shape)
    assert torch.equal(torch.from_numpy(found["victim/1_adaptive_2"].copy()), expected)
