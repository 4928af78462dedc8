from __future__ import annotations

from pathlib import Path

import pytest
from resuming import numbers, stumbling_experiment, sweep
from tiny import share_cache

from fedveil.orchestrator.report.recorded import rows_from_mlflow
from fedveil.orchestrator.run import checkpoint

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.slow]


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x40
    file.write_bytes(content)


def test_a_sweep_resumes_from_damaged_files_to_the_same_numbers(
    tmp_path: Path, modules: Path, undisturbed: dict[str, dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    raw = stumbling_experiment(tmp_path)
    damaged = share_cache(tmp_path / "damaged", modules)
    (damaged / "stone").touch()
    before, _ = sweep(raw, damaged, monkeypatch)
    assert [row.status for row in before.rows] == ["FAILED", "FAILED"]
    (damaged / "stone").unlink()

    memory = damaged / "runs/tiny/sweep.json"
    memory.write_bytes(memory.read_bytes()[:-30])
    (tuner,) = damaged.glob("runs/tiny/tune/*/panel/tuner.pkl")
    tuner.write_bytes(tuner.read_bytes()[:100])
    first, second = sorted(path for path in tuner.parent.iterdir() if path.is_dir())
    kept = [sorted(trial.glob(f"*/{checkpoint.FILE}")) for trial in (first, second)]
    assert [len(files) for files in kept] == [2, 2]
    flip(kept[0][1])  # the last one of the first trial
    kept[1][1].write_bytes(kept[1][1].read_bytes()[:1000])  # and both of the second
    flip(kept[1][0])

    after, said = sweep(raw, damaged, monkeypatch, resume=True)
    assert [row.status for row in after.rows] == ["FINISHED", "FINISHED"]
    assert numbers(after) == undisturbed
    assert f"{kept[0][1].parent} is damaged: the trial goes on from {kept[0][0].parent.name}" in said
    assert f"{kept[1][1].parent} is damaged, and there is none before it: the trial begins anew" in said
    recorded = rows_from_mlflow(f"sqlite:///{damaged / 'mlflow.db'}", "tiny")
    assert {row.name: row.status for row in recorded} == dict.fromkeys(numbers(after), "FINISHED")
    assert len(recorded) == 2

    # Once more, where Tune knows of no trial any more: all are found finished, under their names and in their runs.
    latest = max(tuner.parent.glob("experiment_state-*.json"), key=lambda path: path.stat().st_mtime_ns)
    latest.write_bytes(latest.read_bytes()[:-40])
    for older in set(tuner.parent.glob("experiment_state-*.json")) - {latest}:
        older.unlink()
    again, said = sweep(raw, damaged, monkeypatch, resume=True)
    assert numbers(again) == undisturbed
    assert f"{latest} is damaged and is set aside" in said
    assert "round 3/3" not in said
    recorded = rows_from_mlflow(f"sqlite:///{damaged / 'mlflow.db'}", "tiny")
    assert {row.name: row.status for row in recorded} == dict.fromkeys(numbers(after), "FINISHED")
    assert len(recorded) == 2
