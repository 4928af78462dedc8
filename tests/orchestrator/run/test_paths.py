from __future__ import annotations

from pathlib import Path

import pytest

from fedveil.fl.errors import FedveilError
from fedveil.orchestrator.run.alone import only_sweep
from fedveil.orchestrator.run.paths import ExperimentPaths
from fedveil.orchestrator.run.private import private_file, private_folder


def test_a_new_trial_takes_the_next_free_name(tmp_path: Path) -> None:
    files = ExperimentPaths(tmp_path / "runs" / "e")
    names = []
    for _ in range(3):
        name, places = files.new_trial("latent-seed0")
        assert places == files.trial(name)
        assert places.folder.is_dir()
        names.append(name)
    assert names == ["latent-seed0", "latent-seed0-2", "latent-seed0-3"]


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_trial_is_for_its_owner_only(tmp_path: Path) -> None:
    files = ExperimentPaths(tmp_path / "runs" / "e")
    _, places = files.new_trial("none")
    private_folder(places.folder)
    for folder in (files.root, places.folder.parent, places.folder):
        assert mode(folder) == 0o700
    places.grid.write_text("as an earlier version left it")
    assert mode(places.grid) == 0o644
    assert private_file(places.grid).read_text() == ""
    places.grid.write_text("written by name")
    assert mode(places.grid) == 0o600


def test_a_second_sweep_of_a_name_in_a_folder_is_refused(tmp_path: Path) -> None:
    first, other = (ExperimentPaths(tmp_path / "runs" / name) for name in ("first", "other"))
    said = (
        r"a sweep named 'first' runs in this folder already .*/runs/first: wait for its end, or give this one another"
    )
    with only_sweep(first), only_sweep(other):
        with pytest.raises(FedveilError, match=said), only_sweep(first):
            pass
        with pytest.raises(FedveilError, match=said), only_sweep(first):
            pass
    with only_sweep(first):
        assert mode(first.root) == 0o700
