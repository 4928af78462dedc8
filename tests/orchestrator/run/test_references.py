from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedveil.fl import central
from fedveil.fl.central import CentralTraining, train_centrally
from fedveil.fl.data import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.executor import SerialExecutor
from fedveil.fl.metrics import accuracy
from fedveil.fl.models import build_model, init_model
from fedveil.fl.rounds import RoundReport
from fedveil.fl.seeding import derive_seed
from fedveil.orchestrator.cluster.executor import RayExecutor
from fedveil.orchestrator.config import ConfigError, check
from fedveil.orchestrator.run import references as module
from fedveil.orchestrator.run import trial as trial_module
from fedveil.orchestrator.run.callbacks import TrialCallback
from fedveil.orchestrator.run.checkpoint import Progress
from fedveil.orchestrator.run.references import drawn_clients, together
from fedveil.orchestrator.run.setup import Setup, make_setup
from fedveil.orchestrator.run.trial import Trial
from tests.tiny import tiny_experiment, write_bars

CPU = torch.device("cpu")
SHORT = {"measure": True, "steps": 12}
NAMES = {"utility/public_accuracy", "utility/public_auc", "utility/local_accuracy", "utility/local_auc"}


class Kept(TrialCallback):
    """Keeps the state after each round."""

    def __init__(self) -> None:
        self.progress: list[Progress] = []

    def on_round(self, progress: Progress, report: RoundReport, running: Mapping[str, float]) -> None:
        self.progress.append(progress)


class Idle:
    """An audit that attacks nothing: it would take most of the time here."""

    def audit(self, *arguments: object) -> SimpleNamespace:
        return SimpleNamespace(records=(), originals=None, trained=None)

    def summary(self, records: object) -> dict[str, float]:
        return {}


@pytest.fixture(autouse=True)
def unattacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_module, "prepare_audits", lambda *arguments, **options: Idle())


def run(bars: Path, executor: Any, resumed: Progress | None = None, cache: Path | None = None, **sections: Any) -> Any:
    """Return the setup, what was kept, and the result of a trial that attacks nothing."""
    raw = tiny_experiment(bars, **{"references": SHORT, **sections})
    experiment, kept = check(raw), Kept()
    setup = make_setup(experiment)
    return setup, kept.progress, Trial(experiment, setup, executor, cache=cache, callbacks=[kept]).run(resumed)


def scored(weights: dict[str, Tensor], setup: Setup) -> float:
    model = build_model(setup.model)
    model.load_state_dict(weights, strict=False)
    x, y = setup.data.test.batch(torch.arange(len(setup.data.test)))
    with torch.no_grad():
        return accuracy(model.eval()(x), y)


def trained(images: Images, setup: Setup) -> dict[str, Tensor]:
    training = CentralTraining(steps=12)
    return train_centrally(images, setup.model, training, seed=derive_seed(0, "references"), device=CPU)


def test_a_trial_reports_what_direct_calls_give(bars: Path) -> None:
    setup, _, result = run(bars, SerialExecutor())
    assert result.metrics["utility/public_accuracy"] == scored(trained(setup.public, setup), setup)
    local = [scored(trained(together(shard, setup.public), setup), setup) for shard in setup.shards]
    assert result.metrics["utility/local_accuracy"] == pytest.approx(fmean(local))
    assert result.metrics.keys() > NAMES
    assert result.metrics["utility/test_images"] == len(setup.data.test)


def test_trials_with_other_defences_take_them_from_the_cache(
    bars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(bars, SerialExecutor(), cache=tmp_path)[2].metrics
    monkeypatch.setattr(module, "train_centrally", lambda *arguments, **options: pytest.fail("trained again"))
    noise = {"name": "pixel_noise", "strength": 0.3}
    second = run(bars, SerialExecutor(), cache=tmp_path, defense=noise)[2].metrics
    assert {name: first[name] for name in NAMES} == {name: second[name] for name in NAMES}


def test_they_can_be_left_out(bars: Path) -> None:
    assert not NAMES & run(bars, SerialExecutor(), references={"measure": False})[2].metrics.keys()


def test_of_many_clients_some_are_drawn_by_seed() -> None:
    drawn = drawn_clients(100, 8, seed=1)
    assert len(set(drawn)) == 8
    assert drawn == sorted(drawn) == drawn_clients(100, 8, seed=1)
    assert drawn != drawn_clients(100, 8, seed=2)
    assert drawn_clients(3, 8, seed=1) == [0, 1, 2]


def test_a_clients_own_come_before_the_public_ones_and_keep_their_groups() -> None:
    def images(level: int, groups: Tensor | None) -> Images:
        return Images(torch.full((2, 1, 2, 2), level, dtype=torch.uint8), torch.tensor([level, 0]), groups)

    both = together(images(1, torch.tensor([5, 6])), images(2, torch.tensor([7, 7])))
    assert both.labels.tolist() == [1, 0, 2, 0]
    assert both.pixels[:, 0, 0, 0].tolist() == [1, 1, 2, 2]
    assert both.groups is not None
    assert both.groups.tolist() == [5, 6, 7, 7]
    assert together(images(1, torch.tensor([5, 6])), images(2, None)).groups is None


def started(bars: Path, start: str, seen: list[dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a trial; ``seen`` gets the weights that round 0 began with."""

    class Spy(trial_module.Simulation):
        def __init__(self, federation: Any, executor: Any, state: Any) -> None:
            seen.append(state.weights)
            super().__init__(federation, executor, state)

    with monkeypatch.context() as patch:
        patch.setattr(trial_module, "Simulation", Spy)
        return run(bars, SerialExecutor(), fl={"start": start})


def test_a_federation_starts_from_the_public_classifier(bars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Tensor]] = []
    setup, _, _ = started(bars, "public", seen, monkeypatch)
    expected = trained(setup.public, setup)
    assert seen[0].keys() == expected.keys() == init_model(setup.model, 0).keys()
    assert all(torch.equal(seen[0][name], expected[name]) for name in expected)
    started(bars, "random", seen, monkeypatch)
    assert all(torch.equal(seen[1][name], tensor) for name, tensor in init_model(setup.model, 0).items())


def test_a_resumed_trial_that_started_from_it_ends_with_the_same_bits(
    bars: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, progress, whole = run(bars, SerialExecutor(), fl={"start": "public"})
    # The weights are in the checkpoint: nothing is trained for the start.
    monkeypatch.setattr("fedveil.orchestrator.run.federation.public_weights", lambda *a, **o: pytest.fail("trained"))
    _, _, resumed = run(bars, SerialExecutor(), progress[0], fl={"start": "public"})
    for name, tensor in whole.progress.state.weights.items():
        assert torch.equal(resumed.progress.state.weights[name], tensor)
    assert resumed.metrics == whole.metrics


@pytest.mark.slow
def test_ray_workers_give_the_bits_of_the_serial_executor(bars: Path, ray_cluster: None) -> None:
    _, _, serial = run(bars, SerialExecutor(), fl={"start": "public"})
    with RayExecutor(2, cpus_per_worker=0.5) as executor:
        _, _, other = run(bars, executor, fl={"start": "public"})
    for name, tensor in serial.progress.state.weights.items():
        assert torch.equal(other.progress.state.weights[name], tensor)
    assert {name: other.metrics[name] for name in NAMES} == {name: serial.metrics[name] for name in NAMES}


@pytest.mark.parametrize(
    ("clients", "own", "expected"),
    [([], None, ("shift",)), (["flip"], None, ("flip",)), (["flip"], ["shift"], ("shift",)), (["flip"], [], ())],
)
def test_unasked_the_images_are_varied_as_clients_vary_theirs(
    clients: list[str], own: list[str] | None, expected: tuple[str, ...], bars: Path
) -> None:
    experiment = check(tiny_experiment(bars, fl={"augmentation": clients}, references={"augmentation": own}))
    assert experiment.central_training().augmentation == expected


def test_views_that_are_taken_over_are_refused_once_and_where_they_stand(bars: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        check(tiny_experiment(bars, fl={"augmentation": ["turn"]}))
    assert str(refusal.value).count("turn") == 1
    assert "fl.augmentation.0" in str(refusal.value)


def test_an_augmentation_that_does_not_exist_is_refused_with_its_key(bars: Path) -> None:
    with pytest.raises(ConfigError, match=r"^references\.augmentation: unknown augmentation 'turn'; allowed: flip"):
        check(tiny_experiment(bars, references={"augmentation": ["turn"]}))
    assert central.CentralTraining(steps=7, augmentation=("flip",)) == (
        check(tiny_experiment(bars, references={"steps": 7, "augmentation": ["flip"]})).central_training()
    )


def test_views_that_the_images_do_not_allow_are_refused_before_anything_runs(tmp_path: Path) -> None:
    with np.load(write_bars(tmp_path / "square.npz")) as square:
        np.savez(tmp_path / "wide.npz", **{k: v[:, :12] if k.endswith("images") else v for k, v in square.items()})
    transposed = {"measure": True, "augmentation": ["transpose"]}
    with pytest.raises(
        FedveilError, match=r"^references\.augmentation: .* transpose needs square images, given 12x16 px"
    ):
        make_setup(check(tiny_experiment(tmp_path / "wide.npz", references=transposed)))
    make_setup(check(tiny_experiment(tmp_path / "wide.npz", references={**transposed, "measure": False})))
