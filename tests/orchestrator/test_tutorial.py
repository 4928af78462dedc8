"""The tutorial's commands, run in their order with a shorter training and shorter attacks; the file that it shows."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from pages import TUTORIAL, blocks_of, write_files

from fedveil.orchestrator.cli import main
from fedveil.orchestrator.config import load_experiment
from fedveil.orchestrator.config.yaml import parse

PLAIN = "{name: inverting_gradients, steps: 3}"
SHORT = [
    "data.limit=150",
    "fl.clients=2",
    "fl.rounds=1",
    "audit.rounds=[0]",
    "audit.victims=3",
    "audit.gallery=20",
    f"audit.attacks=[{PLAIN}, {{name: adaptive, inversion: {PLAIN}, inverse: {{steps: 3, width: 8}}, calibration: 0}}]",
]
PANEL = "search.panel=[{defense: none}, {defense: {name: pixel_noise, strength: 0.1}}]"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDVEIL_DATA", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_files(block for block in blocks_of(TUTORIAL) if block.language == "python")
    return tmp_path


@pytest.mark.long
def test_it_leads_to_a_report(folder: Path, ray_cluster: None) -> None:
    ran = []
    for words in (words for block in blocks_of(TUTORIAL) for words in block.commands()):
        if words[0] == "python":
            runpy.run_path(words[1], run_name="__main__")
        elif words[0] == "fedveil" and words[1] != "ui":  # it runs until it is ended: see test_ui.py
            short = [*SHORT, PANEL] if words[1] == "sweep" else SHORT if words[1] == "run" else []
            assert main([*words[1:], *(part for one in short for part in ("--set", one))]) == 0
            ran.append(words[1])
    assert ran == ["init", "run", "sweep", "report"]
    assert len(list((folder / "scans").rglob("*.png"))) == 689
    assert (folder / "runs" / "first-look" / "trials" / "none-seed0" / "reconstruction.png").exists()
    assert (folder / "runs" / "first-scans" / "comparison.png").exists()
    assert (folder / "runs" / "first-scans" / "pareto.png").exists()
    assert "The answer" in (folder / "first-scans.html").read_text(encoding="utf-8")


def test_it_shows_what_init_writes(folder: Path) -> None:
    runpy.run_path("scans.py", run_name="__main__")
    assert main(["init", "--data", "folder:scans"]) == 0
    comment, line = "    # - defense: {name: pixel_noise", "    - defense: {name: pixel_noise"
    written = (folder / "first.yaml").read_text(encoding="utf-8")
    assert comment in written
    written = written.replace(comment, line)
    (panel, _) = (block.text for block in blocks_of(TUTORIAL) if block.language == "yaml")
    assert panel in written
    experiment, _ = load_experiment(parse(written))
    assert (experiment.experiment, experiment.fl.clients, experiment.fl.rounds) == ("first-scans", 4, 8)
    assert (experiment.audit.victims, experiment.audit.gallery, experiment.tracking.images) == (8, 60, "none")
