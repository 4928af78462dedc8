from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedveil.orchestrator.tracking import TrackingSettings, TrialTracker, logins
from fedveil.orchestrator.tracking.delivery import Sender
from fedveil.orchestrator.tracking.operations import Tags
from fedveil.orchestrator.tracking.spool import Spool


def test_a_journal_holds_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "postgresql://me:hunter2@host/db?password=hunter2"
    where = TrackingSettings(experiment="e", uri=uri, spool=tmp_path / "spool")
    params = {"data.name": "npz:https://me:hunter2@host/x.npz"}
    tags = {"mlflow.note.content": "swept at ?token=hunter2"}
    tracker = TrialTracker(where, parent_run_id=None, name="trial", params=params, tags=tags)
    tracker.set_tags({"note": "DRIVER=x;PWD=hunter2"})
    tracker.fail(RuntimeError(f"{uri} does not answer"))
    (journal,) = Spool(where.spool_folder).journals()
    lines = (journal.folder / "journal.jsonl").read_text().splitlines()
    bare = "postgresql://host/db?password=***"
    assert json.loads(lines[0])["uri"] == bare
    assert len(lines) == 5
    assert [path for path in tmp_path.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()] == []
    assert Sender(journal).uri == uri
    # Another process has its own, or none, and then the store refuses it until one comes that has.
    monkeypatch.setattr(logins, "_given", {})
    assert Sender(journal).uri == bare
    logins.remember("postgresql://you:hunter3@host/db?password=hunter3")
    assert Sender(journal).uri == "postgresql://you:hunter3@host/db?password=hunter3"
    journal.reject(Tags({}), RuntimeError(f"{uri} does not take it"))
    assert "hunter2" not in (journal.folder / "rejected.jsonl").read_text()
