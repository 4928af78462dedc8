from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedveil.fl import data as fl_data
from fedveil.fl.data import Images
from fedveil.fl.errors import FedveilError
from fedveil.orchestrator.config import check
from fedveil.orchestrator.run.paths import ExperimentPaths, tracking_settings
from fedveil.orchestrator.run.setup import Setup, check_setups, make_setup
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


def made(npz: Path, **sections: Any) -> Setup:
    data = {"name": f"npz:{npz}", **sections.pop("data", {})}
    audit = {"victims": 8, "clients": 2, "gallery": 30, **sections.pop("audit", {})}
    fl = {"clients": 4, **sections.pop("fl", {})}
    return make_setup(check({"experiment": "x", "data": data, "audit": audit, "fl": fl, **sections}))


def keys(images: Images) -> list[bytes]:
    return [pixels.numpy().tobytes() for pixels in images.pixels]


def test_each_training_image_has_one_owner(npz: Path) -> None:
    setup = made(npz)
    everyone = [setup.public, setup.auxiliary, *setup.shards]
    owned = [key for images in everyone for key in keys(images)]
    assert len(owned) == len(set(owned)) == 120
    assert set(owned) == set(keys(setup.data.train))
    assert (len(setup.public), len(setup.auxiliary)) == (6, 24)
    assert [len(shard) for shard in setup.shards] == [23, 23, 22, 22]
    private = {key for shard in setup.shards for key in keys(shard)}
    assert set(keys(setup.untouched)) == private
    assert not set(owned) & set(keys(setup.data.test))


def test_settings_are_chosen_on_images_that_are_not_tested_on(npz: Path, tmp_path: Path) -> None:
    setup = made(npz)
    assert keys(setup.validation) == keys(setup.data.val)
    with np.load(npz) as arrays:
        np.savez(tmp_path / "no_val.npz", **{key: arrays[key] for key in arrays if not key.startswith("val_")})
    without = made(tmp_path / "no_val.npz")
    assert keys(without.validation) == keys(without.auxiliary)  # clients may train on public ones


def test_what_small_images_are_scored_by_is_said(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 12, 10), dtype=np.uint8)
    splits = {f"{split}_images": images for split in ("train", "val", "test")}
    np.savez(tmp_path / "small.npz", **splits, **{f"{s}_labels": np.arange(60) % 2 for s in ("train", "val", "test")})
    assert made(tmp_path / "small.npz").data.notes == (
        "images of 12x10 px: SSIM's window takes 11, so it is measured on repeated pixels",
    )


def test_victims_are_private_images_and_stand_in_the_gallery(npz: Path) -> None:
    setup = made(npz, audit={"batch_size": 2})
    assert sorted(batch.client for batch in setup.victims) == [0, 0, 1, 1]
    assert [victim for batch in setup.victims for victim in batch.victims] == list(range(8))
    assert sum(int(batch.labels.sum()) for batch in setup.victims) == 4
    assert len(setup.gallery.pixels) == 30
    for batch in setup.victims:
        assert set(keys(batch.images)) <= set(keys(setup.shards[batch.client]))
        assert torch.equal(setup.gallery.pixels[batch.gallery_index], batch.images.pixels)


def test_the_setup_depends_on_the_seed_and_not_on_the_defence(npz: Path) -> None:
    one = made(npz)
    same = made(npz, defense="pixel_noise", fl={"rounds": 3, "strategy": "median"}, model={"name": "lenet"})
    other = made(npz, seed=1)

    def victims(setup: Setup) -> list[bytes]:
        return [key for batch in setup.victims for key in keys(batch.images)]

    assert victims(one) == victims(same)
    assert torch.equal(one.gallery.pixels, same.gallery.pixels)
    assert [keys(shard) for shard in one.shards] == [keys(shard) for shard in same.shards]
    assert keys(one.public) != keys(other.public)
    assert victims(one) != victims(other)


def test_the_images_are_loaded_once_for_all_variants(npz: Path) -> None:
    raw = {"experiment": "x", "data": {"name": f"npz:{npz}"}, "audit": {"victims": 8}}
    search = {"panel": [{"defense": "none"}, {"fl.clients": 3}], "space": {"audit.victims": {"choice": [4, 8]}}}
    experiment = check({**raw, "search": search})
    loaded = fl_data._loaded.cache_info().misses
    setup = check_setups(experiment, {**raw, "search": search})
    assert make_setup(experiment).data is setup.data
    assert fl_data._loaded.cache_info().misses == loaded + 1


def test_a_variant_that_does_not_fit_is_named_before_the_sweep(npz: Path) -> None:
    raw = {
        "experiment": "x",
        "data": {"name": f"npz:{npz}"},
        "audit": {"victims": 8, "clients": 1},
        "fl": {"clients": 2},
    }
    search = {"panel": [{"defense": "none"}, {"audit.victims": 64}]}
    experiment = check({**raw, "search": search})
    with pytest.raises(FedveilError, match=r"search\.panel\.1: audit\.victims: 64 in batches of 1"):
        check_setups(experiment, {**raw, "search": search})


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"data": {"name": "npz:nowhere.npz"}}, r"there is no 'nowhere\.npz'"),
        ({"data": {"name": "folder:nowhere"}}, "there is no 'nowhere'"),
        ({"data": {"name": "nothing"}}, r"unknown data set 'nothing'; allowed: .*mni152.*npz:PATH"),
        ({"data": {"name": "npz:"}}, "unknown data set 'npz:'"),
        ({"data": {"name": "mni152", "size": 20}}, "data.size: given 20; allowed: 28 to 64"),
        ({"fl": {"clients": 100}}, "fl.clients: given 100; allowed: 1 to 90"),
        ({"fl": {"clients": 10**9}}, "fl.clients: given 1000000000; allowed: 1 to 90"),
        (
            {"audit": {"victims": 64}},
            r"audit\.victims: 64 in batches of 1; the 2 audited client\(s\) have images for 46",
        ),
        ({"data": {"name": "mni152", "fit": "pad"}}, "data.fit: given 'pad'; it is for folder: and npz: alone"),
    ],
)
def test_what_does_not_fit_is_one_line(npz: Path, sections: dict[str, Any], said: str) -> None:
    with pytest.raises(FedveilError, match=said) as refusal:
        made(npz, **sections)
    assert "\n" not in str(refusal.value)


def test_where_an_experiment_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    experiment = check({"experiment": "mine"})
    files = ExperimentPaths.of(experiment)
    assert files.root == tmp_path / "runs" / "mine"
    assert files.trial("t").folder == tmp_path / "runs" / "mine" / "trials" / "t"
    assert files.trial("t").cache == files.cache == tmp_path / "runs" / "cache"
    published = tracking_settings(experiment, files, published=True)
    assert published.uri == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert published.spool_folder == tmp_path / "runs" / "mine" / "spool"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking_settings(experiment, files, published=True).uri == "http://server:5000"
    own = check({"experiment": "mine", "tracking": {"uri": "sqlite:///own.db"}})
    assert tracking_settings(own, files, published=True).uri == f"sqlite:///{tmp_path / 'own.db'}"


def test_who_says_where_runs_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    silent, told = check({"experiment": "mine"}), check({"experiment": "mine", "runs_dir": "beside"})
    monkeypatch.setenv("FEDVEIL_RUNS", str(tmp_path / "shared"))
    assert ExperimentPaths.of(silent).root == tmp_path / "shared" / "mine"
    assert ExperimentPaths.of(told).root == tmp_path / "beside" / "mine"
    monkeypatch.setenv("FEDVEIL_RUNS", "s3://bucket/runs/?region=x")
    assert ExperimentPaths.of(silent) == ExperimentPaths(tmp_path / "runs" / "mine", "s3://bucket/runs/mine?region=x")


@pytest.mark.parametrize("place", ["http://server/runs", "file:///runs", "s3://", " ", "a\0b"])
def test_a_place_where_no_runs_can_lie_is_refused(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FedveilError, match=r"runs_dir: given .*; allowed: a folder, or s3://BUCKET/FOLDER"):
        check({"experiment": "mine", "runs_dir": place})
    if "\0" not in place:
        monkeypatch.setenv("FEDVEIL_RUNS", place)
        with pytest.raises(FedveilError, match=r"FEDVEIL_RUNS: given .*; allowed: a folder, or s3://BUCKET/FOLDER"):
            ExperimentPaths.of(check({"experiment": "mine"}))


@pytest.mark.parametrize("place", ["~nobodyknows/x", "/etc/passwd/x", "/dev/null/x"])
def test_a_folder_that_cannot_be_is_refused(place: str) -> None:
    with pytest.raises(FedveilError, match="runs_dir: ") as refusal:
        ExperimentPaths.of(check({"experiment": "mine", "runs_dir": place}))
    assert "\n" not in str(refusal.value)


def test_a_job_keeps_no_runs_in_its_temporary_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    with pytest.raises(FedveilError, match=r"runs_dir: .* temporary copy .* \(runs\) would be lost; by --runs-dir"):
        ExperimentPaths.of(check({"experiment": "mine"}))
    monkeypatch.setenv("FEDVEIL_RUNS", "kept")
    with pytest.raises(FedveilError, match=r"FEDVEIL_RUNS: .*\(kept\) would be lost"):
        ExperimentPaths.of(check({"experiment": "mine"}))
    for outlives in (str(tmp_path / "kept"), "s3://bucket/runs"):
        monkeypatch.setenv("FEDVEIL_RUNS", outlives)
        ExperimentPaths.of(check({"experiment": "mine"}))
    with pytest.raises(
        FedveilError, match=r"there is no 'mine.npz'.*a Ray job leaves out of its upload what \.gitignore"
    ):
        make_setup(check({"experiment": "mine", "data": {"name": "npz:mine.npz"}}))


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
    settings = tracking_settings(experiment, ExperimentPaths(Path("/r/x")), published=published)
    assert settings.images is policy


def test_a_defence_may_change_the_model(npz: Path) -> None:
    assert made(npz).model.bottleneck is None
    assert made(npz, defense=["sign", {"name": "precode", "size": 5}]).model.bottleneck == 5
