from __future__ import annotations

import json
from pathlib import Path

from fedveil.orchestrator.tracking import TrackingSettings, TrialTracker
from fedveil.orchestrator.tracking.operations import Tags
from fedveil.orchestrator.tracking.spool import Spool


def test_only_the_address_in_the_journal_holds_its_password(tmp_path: Path) -> None:
    """It has to: another process delivers the journal."""
    uri = "postgresql://me:hunter2@host/db?password=hunter2"
    where = TrackingSettings(experiment="e", uri=uri, spool=tmp_path / "spool")
    params = {"data.name": "npz:https://me:hunter2@host/x.npz"}
    tags = {"mlflow.note.content": "swept at ?token=hunter2"}
    tracker = TrialTracker(where, parent_run_id=None, name="trial", params=params, tags=tags)
    tracker.set_tags({"note": "DRIVER=x;PWD=hunter2"})
    tracker.fail(RuntimeError(f"{uri} does not answer"))
    (journal,) = Spool(where.spool_folder).journals()
    lines = (journal.folder / "journal.jsonl").read_text().splitlines()
    opening = json.loads(lines[0])
    assert opening.pop("uri") == uri
    assert len(lines) == 5
    assert "hunter2" not in json.dumps([opening, lines[1:]])
    journal.reject(Tags({}), RuntimeError(f"{uri} does not take it"))
    assert "hunter2" not in (journal.folder / "rejected.jsonl").read_text()
