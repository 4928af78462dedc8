from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedveil.attacks.audit.report import AuditReport
from fedveil.attacks.audit.updates import audit_updates
from fedveil.attacks.base import Observation
from fedveil.attacks.scoring.victims import VictimBatch
from fedveil.defense import DPSGD
from fedveil.fl.errors import FedveilError
from fedveil.fl.executor import SerialExecutor
from fedveil.fl.rounds import Exposure, RoundReport, ServerState
from fedveil.orchestrator.config import check
from fedveil.orchestrator.run import audit as audit_module
from fedveil.orchestrator.run import checkpoint
from fedveil.orchestrator.run.audit import observed_rounds
from fedveil.orchestrator.run.callbacks import TrialCallback
from fedveil.orchestrator.run.checkpoint import Progress, Saved
from fedveil.orchestrator.run.setup import make_setup
from fedveil.orchestrator.run.trial import Trial
from tests.tiny import share_cache, tiny_experiment, write_bars

Seen = dict[int, tuple[Sequence[Observation], Sequence[VictimBatch]]]


class Kept(TrialCallback):
    """Keeps what a checkpoint after each round would hold."""

    def __init__(self) -> None:
        self.progress: list[Progress] = []

    def on_round(self, progress: Progress, report: RoundReport, running: Mapping[str, float]) -> None:
        self.progress.append(progress)


class Notes(TrialCallback):
    """Keeps what audits say of their numbers."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def on_audit(self, report: AuditReport) -> None:
        self.said += report.notes


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """What the attackers of each audited round were shown, and the truth behind it."""
    shown: Seen = {}

    def spy(attacker: Any, observations: Any, victims: Any, **options: Any) -> AuditReport:
        shown[options["round"]] = (observations, victims)
        return audit_updates(attacker, observations, victims, **options)

    monkeypatch.setattr(audit_module, "audit_updates", spy)
    return shown


@pytest.fixture
def bars(tmp_path: Path, modules: Path) -> Path:
    return write_bars(share_cache(tmp_path, modules) / "bars.npz")


def cache_of(bars: Path) -> Path:
    return bars.parent / "runs" / "cache"


def run(
    bars: Path, observations: int, defense: str | dict[str, Any], resumed: Progress | None = None
) -> list[Progress]:
    raw = tiny_experiment(
        bars,
        fl={"rounds": 4},
        defense={"name": defense} if isinstance(defense, str) else defense,
        audit={"rounds": [0, 2, 3], "observations": observations, "attacks": ["baseline"], "chunks": 1},
    )
    experiment, kept = check(raw), Kept()
    Trial(experiment, make_setup(experiment), SerialExecutor(), cache=cache_of(bars), callbacks=[kept]).run(resumed)
    return kept.progress


def test_rounds_are_gone_through_again_where_there_were_fewer() -> None:
    two, one, zero = (ServerState(number, {}) for number in (2, 1, 0))
    assert observed_rounds([two, one, zero], 2) == [two, one]
    assert observed_rounds([two, one, zero], 5) == [two, one, zero, two, one]
    assert observed_rounds([zero], 3) == [zero, zero, zero]


def test_a_batch_is_observed_in_the_rounds_up_to_the_audited_one(bars: Path, seen: Seen) -> None:
    progress = run(bars, 3, "pixel_noise")
    sent = {0: seen[0][0][0].weights, **{p.state.round: p.state.weights for p in progress}}
    assert {*seen} == {0, 2, 3}
    for audited, rounds in {0: (0, 0, 0), 2: (2, 1, 0), 3: (3, 2, 1)}.items():
        observations, victims = seen[audited]
        assert len(observations) == len(victims) == 4
        for observation, truth in zip(observations, victims, strict=True):
            assert len(observation.series) == len(truth.draws) == 3
            for one, number in zip(observation.series, rounds, strict=True):
                assert (one.number, one.client, one.batch_size) == (observation.number, observation.client, 1)
                assert all(torch.equal(weight, sent[number][name]) for name, weight in one.weights.items())
            # The same image, noise drawn afresh each time.
            first, second, third = truth.draws
            assert not torch.equal(first, second)
            assert not torch.equal(second, third)
            assert truth.trained is not None
            torch.testing.assert_close(truth.trained, (first + second + third) / 3)
            errors = [float((draw - truth.originals).square().mean()) for draw in (truth.trained, *truth.draws)]
            assert errors[0] < min(errors[1:])


def test_without_noise_all_draws_are_the_same(bars: Path, seen: Seen) -> None:
    run(bars, 2, "none")
    for observations, victims in seen.values():
        for truth in victims:
            assert torch.equal(*truth.draws)
        same_weights = [o.weights is o.repeats[0].weights for o in observations]
        assert same_weights == [observations is seen[0][0]] * 4


def test_what_a_client_kept_of_its_last_turn_goes_into_what_is_audited(bars: Path, seen: Seen) -> None:
    after_two = run(bars, 1, "dgp")[1]
    assert set(after_two.state.memories) == {0, 1, 2}
    kept = [observation.update.tensors for observation in seen[2][0]]
    forgetful = replace(after_two, state=replace(after_two.state, memories={}))
    for resumed, same in ((after_two, True), (forgetful, False)):
        seen.clear()
        run(bars, 1, "dgp", resumed)
        again = [observation.update.tensors for observation in seen[2][0]]
        for left, right in zip(kept, again, strict=True):
            assert all(torch.equal(left[name], right[name]) for name in left) is same


def test_under_secure_aggregation_sums_are_attacked(bars: Path, seen: Seen) -> None:
    run(bars, 2, {"name": "secure_aggregation", "clients": 2})
    sums, truths = seen[2]
    run(bars, 2, "none")
    singles, alone = seen[2]
    victims = {batch.victims[0]: (one, batch) for one, batch in zip(singles, alone, strict=True)}
    assert len(sums) == 2
    assert sorted(victim for truth in truths for victim in truth.victims) == sorted(victims)
    for observation, truth in zip(sums, truths, strict=True):
        (first, one), (second, other) = (victims[victim] for victim in truth.victims)
        assert one.client != other.client
        assert observation.batch_size == 2
        assert torch.equal(truth.originals, torch.cat([one.originals, other.originals]))
        for at, together in enumerate(observation.series):
            for name, tensor in together.update.tensors.items():
                mean = (first.series[at].update.tensors[name] + second.series[at].update.tensors[name]) / 2
                torch.testing.assert_close(tensor, mean)


@pytest.mark.parametrize(
    ("steps", "norm", "reasons"),
    [(1, "group", None), (3, "group", "clients take 3 steps each"), (1, "batch", "is BatchNorm, whose statistics are")],
)
def test_where_a_sum_is_no_batchs_the_reader_is_told(bars: Path, steps: int, norm: str, reasons: str | None) -> None:
    raw = tiny_experiment(
        bars,
        fl={"rounds": 1},
        model={"name": "resnet20", "norm": norm, "width": 4},
        defense={"name": "secure_aggregation", "clients": 2},
        audit={"rounds": [0], "attacks": ["baseline"], "chunks": 1, "local_steps": steps},
    )
    experiment, notes = check(raw), Notes()
    Trial(experiment, make_setup(experiment), SerialExecutor(), cache=cache_of(bars), callbacks=[notes]).run()
    told = [note for note in notes.said if note.startswith("the sum of 2 clients is attacked as if")]
    assert len(told) == (1 if reasons else 0)
    assert all(str(reasons) in note for note in told)


def test_images_are_counted_that_make_no_whole_sum(bars: Path, seen: Seen) -> None:
    """Three clients with ten images in batches of two: two sums of two batches each, and two images are left."""
    raw = tiny_experiment(
        bars,
        fl={"rounds": 1},
        defense={"name": "secure_aggregation", "clients": 2},
        audit={"rounds": [0], "victims": 10, "batch_size": 2, "attacks": ["baseline"], "chunks": 1},
    )
    experiment = check(raw)
    metrics = Trial(experiment, make_setup(experiment), SerialExecutor(), cache=cache_of(bars)).run().metrics
    assert sum(len(truth) for truth in seen[0][1]) == 8
    assert metrics["privacy/left_out_victims"] == 2


def test_what_is_proved_of_victims_that_share_an_image(bars: Path) -> None:
    def proved(*parts: Any, batch_size: int = 1) -> dict[str, float]:
        raw = tiny_experiment(
            bars,
            fl={"rounds": 1},
            defense=list(parts),
            audit={"rounds": [0], "attacks": ["baseline"], "chunks": 1, "batch_size": batch_size, "victims": 8},
        )
        experiment = check(raw)
        metrics = Trial(experiment, make_setup(experiment), SerialExecutor(), cache=cache_of(bars)).run().metrics
        return {name: value for name, value in metrics.items() if name in ("privacy/proved_mse", "privacy/trained_mse")}

    shared = {"name": "group_mean", "k": 3}
    alone = proved(shared)
    # A group's mean is the answer that comes nearest, but for its rounding to grey values.
    assert alone["privacy/proved_mse"] == pytest.approx(alone["privacy/trained_mse"], rel=0.35)
    assert alone["privacy/proved_mse"] > 0
    # What adds noise alone cannot tell the images of a group apart; what has learnt from each of them may.
    noisy = proved(shared, {"name": "pixel_noise", "strength": 0.1})
    assert noisy["privacy/proved_mse"] == alone["privacy/proved_mse"]
    assert "privacy/proved_mse" not in proved("none")
    # Several answers are matched by the truth: two of one group can be told apart that way, and so can a sum's.
    assert "privacy/proved_mse" not in proved(shared, batch_size=2)
    assert "privacy/proved_mse" not in proved(shared, {"name": "secure_aggregation", "clients": 2})


def test_epsilon_is_that_of_the_client_whose_images_were_drawn_most(bars: Path) -> None:
    raw = tiny_experiment(
        bars,
        fl={"rounds": 2, "sampling": "poisson", "local_epochs": 3},
        defense={"name": "dp_sgd", "strength": 2.0},
        audit={"attacks": ["baseline"], "chunks": 1},
    )
    experiment = check(raw)
    setup = make_setup(experiment)
    metrics = Trial(experiment, setup, SerialExecutor(), cache=cache_of(bars)).run().metrics
    sizes = {len(shard) for shard in setup.shards}
    spent = [DPSGD(strength=2.0).guarantee([Exposure(8 / n, 2 * 3 * -(-n // 8))])["epsilon"] for n in sizes]
    assert metrics["privacy/epsilon"] == max(spent) > 0


def test_where_no_epsilon_is_found_nothing_is_trained(bars: Path, seen: Seen) -> None:
    raw = tiny_experiment(
        bars,
        fl={"rounds": 20, "sampling": "poisson", "batch_size": 64},
        defense={"name": "dp_sgd", "strength": 0.1, "accountant": "gdp"},
        audit={"attacks": ["baseline"], "chunks": 1},
    )
    experiment = check(raw)
    with pytest.raises(FedveilError, match="accountant gdp finds no epsilon"):
        Trial(experiment, make_setup(experiment), SerialExecutor()).run()
    assert not seen


@pytest.mark.parametrize("defense", ["pixel_noise", "dgp"])
def test_a_resumed_trial_looks_back_over_the_same_rounds(bars: Path, tmp_path: Path, seen: Seen, defense: str) -> None:
    progress = run(bars, 3, defense)
    whole = dict(seen)
    seen.clear()
    checkpoint.save(Saved(progress=progress[0]), tmp_path)
    saved = checkpoint.load(tmp_path)
    assert saved is not None
    again = run(bars, 3, defense, saved.progress)
    assert again[-1].records == progress[-1].records
    assert {*seen} == {2, 3}
    for number, (_, victims) in seen.items():
        for old, new in zip(whole[number][1], victims, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(old.draws, new.draws, strict=True))
