from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from fedveil.attacks.scoring import scorer, train_judge

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_leaves_its_figure(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        scorer,
        "cached_judge",
        lambda images, *, classes, seed, **_: train_judge(images, classes=classes, seed=seed, steps=2),
    )
    report = example.main(steps=2)
    assert report.records
    assert "mean squared error" in capsys.readouterr().out
    assert [found.suffix for found in tmp_path.iterdir()] == [".png"]


def test_there_is_an_example_for_each_way_in() -> None:
    assert [path.stem for path in EXAMPLES] == [
        "audit_flower_update",
        "audit_opacus_update",
        "audit_own_defense",
        "audit_own_gradient",
    ]
    for path in EXAMPLES:
        used = [line for line in path.read_text().splitlines() if "fedveil" in line and "import" in line]
        assert used == ["import fedveil as fv"]
