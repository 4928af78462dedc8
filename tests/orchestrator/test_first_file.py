"""`fedveil init`: what it writes is valid whatever the data are called, and, shortened, runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft7Validator
from PIL import Image
from tiny import share_cache, write_bars

import fedveil as fv
from fedveil.fl.errors import FedveilError, FedveilWarning
from fedveil.orchestrator.cli import main
from fedveil.orchestrator.config import load_experiment
from fedveil.orchestrator.config.yaml import parse
from fedveil.orchestrator.first_file import FEW_IMAGES, _experiment_name, first_file
from fedveil.orchestrator.json_schema import experiment_schema


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDVEIL_DATA", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def test_it_is_valid_and_names_what_there_is(folder: Path) -> None:
    write_bars(folder / "my scans.npz", train=300)
    made = first_file("npz:my scans.npz", "first.yaml")
    assert made.experiment == "first-my-scans"
    assert (
        "# A first experiment on npz:my scans.npz: 300 training images of 16 x 16 px, grey, 3 classes (0, 1, 2)."
        in made.text
    )
    file = parse(made.text)
    experiment, _ = load_experiment(file)
    assert experiment.data.name == "npz:my scans.npz"
    assert experiment.data.limit is None
    assert experiment.fl.clients == 3  # 300 less .4 is 180, in fifties
    assert experiment.tracking.images == "none"  # images of your own
    assert experiment.search is not None
    assert experiment.search.panel[0] == {"defense": "none"}
    assert list(Draft7Validator(experiment_schema()).iter_errors(file)) == []


def test_many_images_are_cut_and_large_ones_made_small(folder: Path) -> None:
    write_bars(folder / "many.npz", train=FEW_IMAGES + 3)
    experiment, _ = load_experiment(parse(first_file("npz:many.npz", "f").text))
    assert (experiment.data.limit, experiment.data.size, experiment.fl.clients) == (FEW_IMAGES, None, 4)
    for name in ("a", "b"):
        (folder / "scans" / name).mkdir(parents=True)
        for number in range(150):
            Image.new("L", (40, 40), number).save(folder / "scans" / name / f"{number}.png")
    made = first_file("folder:scans", "f")
    experiment, _ = load_experiment(parse(made.text))
    assert experiment.data.size == 32
    assert "of 32 x 32 px" in made.text
    pixels = np.random.default_rng(0).integers(0, 256, (200, 64, 64), dtype=np.uint8)
    labels = {f"{split}_labels": np.arange(200) % 2 for split in ("train", "test")}
    np.savez(folder / "large.npz", train_images=pixels, test_images=pixels, **labels)
    large = first_file("npz:large.npz", "f").text
    experiment, _ = load_experiment(parse(large))
    resized = experiment.data.size == 32  # as far as archives can be
    assert experiment.audit.victims == (8 if resized else 2)
    assert ("4 times as many pixels" in large) is not resized
    embedded, _ = load_experiment(parse(first_file("mni152", "f").text))
    assert embedded.data.size is None
    assert embedded.tracking.images == "grid"  # published


def test_names_of_users_stay_text(folder: Path) -> None:
    place = folder / "a: {b}\n'\"#"
    for name in ("x\nfl: {rounds: 99}", "y"):
        (place / name).mkdir(parents=True)
        for number in range(150):
            Image.new("L", (12, 12), number).save(place / name / f"{number}.png")
    experiment, _ = load_experiment(parse(first_file(f"folder:{place.name}", "f\nseed: 3").text))
    assert experiment.data.name == f"folder:{place.name}"
    assert experiment.experiment == "first-a-b-"[:-1]
    assert experiment.fl.rounds == 8
    assert experiment.seed == 0


def test_images_that_the_network_is_too_deep_for_are_scaled(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 5, 5), dtype=np.uint8)
    labels = {f"{split}_labels": np.arange(200) % 2 for split in ("train", "test")}
    np.savez(folder / "tiny.npz", train_images=pixels, test_images=pixels, **labels)
    with pytest.warns(FedveilWarning, match="images of 5x5 px were scaled to 8x8"):
        made = first_file("npz:tiny.npz", "f")
    assert load_experiment(parse(made.text))[0].data.size == 8
    assert "of 8 x 8 px" in made.text


def test_experiments_on_files_of_different_names_are_told_apart(folder: Path) -> None:
    names = ["scans", "röntgen", "扫描", "图像", "扫描-2", "..", "...", "s" * 300]
    experiments = [_experiment_name(f"npz:{name}.npz") for name in names]
    assert experiments[:2] == ["first-scans", "first-rontgen"]
    assert len(set(experiments)) == len(names)
    assert all(re.fullmatch(r"first-[A-Za-z0-9_.-]{1,94}", name) for name in experiments)


def test_images_that_are_all_alike_are_named_as_such(folder: Path) -> None:
    pixels, labels = np.zeros((400, 12, 12), np.uint8), np.arange(400) % 2
    np.savez(folder / "black.npz", train_images=pixels, train_labels=labels, test_images=pixels, test_labels=labels)
    with pytest.raises(FedveilError, match=r"class 0 has 1 groups \(or distinct pictures\) among 200 images"):
        first_file("npz:black.npz", "f")


def test_too_few_images_are_refused_before_anything_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_bars(folder / "few.npz", train=166)  # two clients need 100 of them, 60 % of 167
    with pytest.raises(FedveilError, match=r"npz:few\.npz: has 166 training images; a first experiment needs 167"):
        first_file("npz:few.npz", "f")
    assert main(["init", "--data", "npz:few.npz"]) == 2
    assert not (folder / "first.yaml").exists()
    assert main(["init", "--data", "npz:no.npz"]) == 2
    assert main(["init", "--data", "nothing"]) == 2
    assert "unknown data set 'nothing'" in capsys.readouterr().err


def test_the_command_that_is_named_can_be_copied(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "o u't.yaml"]) == 0
    quoted = shlex.quote("o u't.yaml")
    assert capsys.readouterr().out == f"o u't.yaml is written. Run it with:  fedveil sweep {quoted}\n"
    assert f"#   fedveil sweep {quoted}\n" in (folder / "o u't.yaml").read_text(encoding="utf-8")


def test_the_command_never_overwrites(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init"]) == 0
    assert capsys.readouterr().out == "first.yaml is written. Run it with:  fedveil sweep first.yaml\n"
    before = (folder / "first.yaml").read_text(encoding="utf-8")
    assert 'data:\n  name: "mni152"\n' in before
    assert main(["init", "--data", "mni152"]) == 2
    assert capsys.readouterr().err == "fedveil: first.yaml: is there already; name another file, or move it away\n"
    assert (folder / "first.yaml").read_text(encoding="utf-8") == before
    assert main(["init", "no/such.yaml"]) == 2
    assert "there is no folder" in capsys.readouterr().err


@pytest.mark.slow
def test_shortened_it_runs(folder: Path, modules: Path, ray_cluster: None) -> None:
    write_bars(share_cache(folder, modules) / "bars.npz", train=200)
    file = parse(first_file("npz:bars.npz", "f").text)
    plain, adaptive = file["audit"]["attacks"]
    plain["steps"] = 20
    adaptive["inversion"], adaptive["inverse"] = plain, {"steps": 3, "batch_size": 8, "width": 8}
    file["audit"] |= {"victims": 4, "rounds": [0]}
    file["fl"]["rounds"] = 1
    file["search"]["panel"][1]["defense"] |= {"random_networks": 1, "trained_networks": 1, "steps": 2}
    result = fv.sweep({**file, "runs_dir": str(folder / "runs")})
    assert [row.status for row in result.rows] == ["FINISHED", "FINISHED"]
    assert all("privacy/mse" in row.metrics and row.complete for row in result.rows)
