from __future__ import annotations

from pathlib import Path

from fedveil.orchestrator.run.paths import ExperimentPaths


def test_a_new_trial_takes_the_next_free_name(tmp_path: Path) -> None:
    files = ExperimentPaths(tmp_path / "runs" / "e")
    names = []
    for _ in range(3):
        name, places = files.new_trial("latent-seed0")
        assert places == files.trial(name)
        assert places.folder.is_dir()
        names.append(name)
    assert names == ["latent-seed0", "latent-seed0-2", "latent-seed0-3"]
