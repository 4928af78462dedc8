from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedveil.fl.data import Images
from fedveil.fl.errors import FedveilError
from fedveil.orchestrator.config import check
from fedveil.orchestrator.report import TrialRow
from fedveil.orchestrator.run.outcome import summarise_sweep
from fedveil.orchestrator.run.paths import ExperimentPaths, tracking_settings
from fedveil.orchestrator.run.setup import Setup, make_setup
from fedveil.orchestrator.tracking import ImagePolicy


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    """120 training images of two classes, no two alike, 12 px; 20 for testing."""
    stream = np.random.default_rng(0)
    file = tmp_path / "two.npz"
    arrays: dict[str, Any] = {}
    for split, count in (("train", 120), ("val", 10), ("test", 20)):
        arrays[f"{split}_images"] = stream.integers(0, 256, (count, 12, 12), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 2).reshape(-1, 1)
    np.savez(file, **arrays)
    return file


def staged(npz: Path, **sections: Any) -> Setup:
    data = {"name": f"npz:{npz}", **sections.pop("data", {})}
    audit = {"victims": 8, "clients": 2, "gallery": 30, **sections.pop("audit", {})}
    fl = {"clients": 4, **sections.pop("fl", {})}
    return make_setup(check({"experiment": "x", "data": data, "audit": audit, "fl": fl, **sections}))


def keys(images: Images) -> list[bytes]:
    return [pixels.numpy().tobytes() for pixels in images.pixels]


def test_each_training_image_has_one_owner(npz: Path) -> None:
    setup = staged(npz)
    everyone = [setup.public, *setup.shards]
    owned = [key for images in everyone for key in keys(images)]
    assert len(owned) == len(set(owned)) == 120
    assert set(owned) == set(keys(setup.data.train))
    assert len(setup.public) == 24
    assert [len(shard) for shard in setup.shards] == [24, 24, 24, 24]
    assert not set(owned) & set(keys(setup.data.test))


def test_settings_are_chosen_on_images_that_are_not_tested_on(npz: Path, tmp_path: Path) -> None:
    setup = staged(npz)
    assert keys(setup.validation) == keys(setup.data.val)
    with np.load(npz) as arrays:
        np.savez(tmp_path / "no_val.npz", **{key: arrays[key] for key in arrays if not key.startswith("val_")})
    without = staged(tmp_path / "no_val.npz")
    assert keys(without.validation) == keys(without.public)


def test_images_too_small_to_score_are_refused_before_the_work(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 12, 10), dtype=np.uint8)
    splits = {f"{split}_images": images for split in ("train", "val", "test")}
    np.savez(tmp_path / "small.npz", **splits, **{f"{s}_labels": np.arange(60) % 2 for s in ("train", "val", "test")})
    with pytest.raises(FedveilError, match=r"images of 12x10 px; at least 11x11 are needed"):
        staged(tmp_path / "small.npz")


def test_victims_are_private_images_and_stand_in_the_gallery(npz: Path) -> None:
    setup = staged(npz, audit={"batch_size": 2})
    assert [target.client for target in setup.targets] == [0, 1, 0, 1]
    assert [v for target in setup.targets for v in target.victims] == list(range(8))
    assert len(setup.gallery.pixels) == 30
    for target in setup.targets:
        for index, place in zip(target.indices, target.gallery, strict=True):
            assert torch.equal(setup.gallery.pixels[place], setup.shards[target.client].pixels[index])


def test_the_stage_depends_on_the_seed_and_not_on_the_defence(npz: Path) -> None:
    one = staged(npz)
    same = staged(npz, defense="pixel_noise", fl={"rounds": 3, "strategy": "median"}, model={"name": "lenet"})
    other = staged(npz, seed=1)
    assert one.targets == same.targets
    assert torch.equal(one.gallery.pixels, same.gallery.pixels)
    assert [keys(shard) for shard in one.shards] == [keys(shard) for shard in same.shards]
    assert keys(one.public) != keys(other.public)
    assert one.targets != other.targets


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"data": {"name": "npz:nowhere.npz"}}, r"there is no 'nowhere\.npz'"),
        ({"data": {"name": "folder:nowhere"}}, "there is no 'nowhere'"),
        ({"data": {"name": "nothing"}}, r"unknown data set 'nothing'; allowed: .*mni152.*npz:PATH"),
        ({"data": {"name": "npz:"}}, "unknown data set 'npz:'"),
        ({"data": {"name": "mni152", "size": 20}}, "mni152: size 20 is not available; allowed: 28 to 64"),
        ({"fl": {"clients": 100}}, "partition: 100 clients for 96 examples; allowed: 1 to 96"),
        ({"fl": {"clients": 10**9}}, "partition: 1000000000 clients for 96 examples"),
        (
            {"audit": {"victims": 64}},
            r"audit\.victims: 64 in batches of 1; the 2 audited client\(s\) have images for 48",
        ),
        ({"model": {"name": "resnet20", "width": 16}, "data": {"size": 8}}, "size 8"),
    ],
)
def test_what_does_not_fit_is_one_line(npz: Path, sections: dict[str, Any], said: str) -> None:
    with pytest.raises(FedveilError, match=said) as refusal:
        staged(npz, **sections)
    assert "\n" not in str(refusal.value)


def test_where_an_experiment_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    experiment = check({"experiment": "mine"})
    files = ExperimentPaths.of(experiment)
    assert files.root == tmp_path / "runs" / "mine"
    assert files.trial("t").folder == tmp_path / "runs" / "mine" / "trials" / "t"
    assert files.trial("t").cache == files.cache == tmp_path / "runs" / "cache"
    published = tracking_settings(experiment, files, published=True, deliver=False)
    assert published.uri == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert published.spool_folder == tmp_path / "runs" / "mine" / "spool"
    assert published.deliver is False
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking_settings(experiment, files, published=True, deliver=True).uri == "http://server:5000"
    own = check({"experiment": "mine", "tracking": {"uri": "sqlite:///own.db"}})
    assert tracking_settings(own, files, published=True, deliver=True).uri == f"sqlite:///{tmp_path / 'own.db'}"


@pytest.mark.parametrize(
    ("published", "asked", "policy"),
    [
        (True, None, ImagePolicy.GRID),
        (False, None, ImagePolicy.NONE),
        (False, "all", ImagePolicy.ALL),
        (True, "none", ImagePolicy.NONE),
    ],
)
def test_images_of_people_stay_here_unless_asked_for(published: bool, asked: str | None, policy: ImagePolicy) -> None:
    experiment = check({"experiment": "x", "tracking": {"images": asked, "uri": "http://server"}})
    settings = tracking_settings(experiment, ExperimentPaths(Path("/r/x")), published=published, deliver=True)
    assert settings.images is policy


def row(name: str, accuracy: float, mse: float, status: str = "FINISHED", **extra: float) -> TrialRow:
    metrics = {"utility/accuracy": accuracy, "privacy/mse": mse, "privacy/complete": 1.0, **extra}
    return TrialRow(name, status, {"defense.name": "latent"}, metrics)


def test_the_outcome_of_a_sweep(tmp_path: Path) -> None:
    rows = [row("a", 0.9, 0.01), row("b", 0.8, 0.02), row("c", 0.7, 0.015), TrialRow("d", "FAILED", error="boom")]
    outcome = summarise_sweep("x", rows, {"utility/accuracy": "max", "privacy/mse": "max"}, tmp_path)
    assert [r.name for r in outcome.front] == ["a", "b"]  # b beats c in both
    assert outcome.metrics == {
        "sweep/trials": 4.0,
        "sweep/failed": 1.0,
        "sweep/pareto_front": 2.0,
        "sweep/hypervolume": pytest.approx(0.9 * 0.01 + 0.8 * 0.01),
    }
    assert outcome.failed == 1
    assert outcome.files == (tmp_path / "pareto.png",)
    assert outcome.files[0].read_bytes().startswith(b"\x89PNG")


def test_a_collapsed_or_incomplete_trial_is_on_no_front(tmp_path: Path) -> None:
    rows = [row("a", 0.9, 0.01), row("b", 0.95, 0.02, **{"defense/collapsed": 1.0})]
    rows.append(row("c", 0.95, 0.02, **{"privacy/complete": 0.0}))
    outcome = summarise_sweep("x", rows, {"utility/accuracy": "max", "privacy/mse": "max"}, tmp_path)
    assert [r.name for r in outcome.front] == ["a"]


def test_a_sweep_of_failures_draws_nothing(tmp_path: Path) -> None:
    rows = [TrialRow("d", "FAILED", error="boom")]
    outcome = summarise_sweep("x", rows, {"utility/accuracy": "max"}, tmp_path)
    assert (outcome.front, outcome.files, list(tmp_path.iterdir())) == ((), (), [])
