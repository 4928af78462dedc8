from __future__ import annotations

import errno
import io
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedveil.attacks.audit.report import AuditReport
from fedveil.fl.messages import PrivacyRecord, ThreatModel
from fedveil.fl.rounds import ServerState
from fedveil.fl.sealed import write_sealed
from fedveil.orchestrator.run import checkpoint
from fedveil.orchestrator.run.checkpoint import Pictures, Progress, Saved, load_records, save_records
from fedveil.orchestrator.run.setting import newest

RECORD = PrivacyRecord(
    attack="adaptive",
    threat_model=ThreatModel(labels=False, auxiliary_data=True, defense_algorithm=True),
    seed=3,
    round=1,
    client=2,
    victim=5,
    label=1,
    mse=0.25,
    psnr=6.0206,
    ssim=0.5,
    mse_to_perturbed=0.125,
    trained_mse=0.2,
    baseline_mse=0.3,
    attacker_label=0,
    identified=False,
    label_recovered=True,
)


def pictures() -> Pictures:
    images = torch.rand((4, 2, 1, 6, 6), generator=torch.Generator().manual_seed(0))
    return Pictures(images[0], images[1], {"baseline": images[2], "adaptive": images[3]})


def progress() -> Progress:
    stream = torch.Generator().manual_seed(0)
    weights = {
        "head.weight": torch.randn((3, 4), generator=stream),
        # What no text format would bring back: a signed zero, subnormals, NaN.
        "head.bias": torch.tensor([-0.0, 1e-42, float("nan")]),
        "norm.running_mean": torch.randn(4, generator=stream),
    }
    return Progress(
        state=ServerState(
            round=2,
            weights=weights,
            optimizer={"m.head.weight": torch.ones(3, 4) / 3},
            memories={7: {"head.bias": weights["head.bias"] - 1}},
        ),
        records=(RECORD, replace(RECORD, victim=6, mse=1 / 3, baseline_mse=None, attacker_label=None, identified=None)),
        pictures=pictures(),
        past=(
            ServerState(1, {name: weight + 1 for name, weight in weights.items()}, memories={3: weights}),
            ServerState(0, weights),
        ),
    )


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    before = progress()
    checkpoint.save(Saved(({"privacy/mse": 0.1},), before, "abc", {"cost/train_seconds": 1.5}), tmp_path)
    saved = checkpoint.load(tmp_path)
    assert saved is not None
    assert [p.name for p in tmp_path.iterdir()] == [checkpoint.FILE]
    assert (saved.finished, saved.run_id, saved.costs) == (({"privacy/mse": 0.1},), "abc", {"cost/train_seconds": 1.5})
    after = saved.progress
    assert after is not None
    for old, new in (
        (before.state.weights, after.state.weights),
        (before.state.optimizer, after.state.optimizer),
        (before.state.memories[7], after.state.memories[7]),
        (before.past[0].memories[3], after.past[0].memories[3]),
        *((old.weights, new.weights) for old, new in zip(before.past, after.past, strict=True)),
    ):
        assert list(old) == list(new)
        assert all(bits(old[name]) == bits(new[name]) for name in old)
    assert [state.round for state in (after.state, *after.past)] == [2, 1, 0]
    assert after.records == before.records
    assert after.pictures is not None
    same_pictures(after.pictures, pictures())


def test_a_damaged_checkpoint_is_none_whichever_byte_is_flipped_and_wherever_it_is_cut(tmp_path: Path) -> None:
    checkpoint.save(Saved(({"privacy/mse": 0.1},), progress()), tmp_path)
    file = tmp_path / checkpoint.FILE
    whole = file.read_bytes()
    for at in [*range(0, 40), *range(40, len(whole), len(whole) // 50), len(whole) - 1]:
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        assert checkpoint.load(tmp_path) is None
        file.write_bytes(whole[:at])
        assert checkpoint.load(tmp_path) is None
    file.unlink()
    assert checkpoint.load(tmp_path) is None


def test_a_checkpoint_that_the_disk_does_not_take_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(Saved(({"privacy/mse": 0.1},)), tmp_path)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(Saved(({"privacy/mse": 0.2},)), tmp_path)
    assert checkpoint.load(tmp_path) == Saved(({"privacy/mse": 0.1},))
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.FILE]


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_checkpoint_with_other_fields_is_none(tmp_path: Path) -> None:
    whole = io.BytesIO()
    torch.save({"finished": [], "progress": {"state": {"round": 1, "weights": {}}}, "run_id": None, "costs": {}}, whole)
    write_sealed(tmp_path / checkpoint.FILE, whole.getbuffer(), checkpoint.FILE)
    assert checkpoint.load(tmp_path) is None


def test_as_many_states_are_kept_as_audits_look_back() -> None:
    weights = {"w": torch.zeros(1)}
    states = [ServerState(round=number, weights=weights, optimizer=weights) for number in range(4)]
    after = Progress(states[0])
    for state in states[1:]:
        after = after.after_round(state, look_back=2)
    assert (after.state, [state.round for state in after.past]) == (states[3], [2, 1])
    assert [state.optimizer for state in after.past] == [{}, {}]
    assert Progress(states[0]).after_round(states[1], look_back=0).past == ()


def same_pictures(one: Pictures, other: Pictures) -> None:
    assert bits(one.originals) == bits(other.originals)
    assert bits(one.trained) == bits(other.trained)
    assert list(one.reconstructions) == list(other.reconstructions)
    assert all(bits(one.reconstructions[name]) == bits(other.reconstructions[name]) for name in one.reconstructions)


@pytest.mark.parametrize("before", [None, Progress(ServerState(round=0, weights={}))])
def test_a_checkpoint_between_two_seeds_and_one_before_the_first_audit(before: Progress | None, tmp_path: Path) -> None:
    checkpoint.save(Saved(({"a": 1.0}, {"a": 2.0}), before), tmp_path)
    assert checkpoint.load(tmp_path) == Saved(({"a": 1.0}, {"a": 2.0}), before)


def test_the_pictures_of_the_first_audit_are_kept_and_the_records_of_all() -> None:
    images = pictures()
    first = AuditReport((RECORD,), images.reconstructions, images.originals, images.trained, victims=(0, 1))
    second = AuditReport((replace(RECORD, round=2),), {}, images.trained, images.originals, victims=(0, 1))
    after = Progress(ServerState(round=0, weights={})).after_audit(first).after_audit(second)
    assert [record.round for record in after.records] == [1, 2]
    assert after.pictures is not None
    same_pictures(after.pictures, images)


class Booby:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch stolen",)


def test_loading_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even of one who knows how to seal it."""
    monkeypatch.chdir(tmp_path)
    forged = io.BytesIO()
    torch.save({"state": Booby()}, forged)
    write_sealed(tmp_path / checkpoint.FILE, forged.getvalue(), checkpoint.FILE)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        checkpoint.load(tmp_path)
    assert not (tmp_path / "stolen").exists()


def test_records_survive_json(tmp_path: Path) -> None:
    records = progress().records
    save_records(records, tmp_path / "records.json")
    assert load_records(tmp_path / "records.json") == records
    assert json.loads((tmp_path / "records.json").read_text())[0]["threat_model"]["auxiliary_data"] is True


def test_pictures_survive_a_file(tmp_path: Path) -> None:
    pictures().save(tmp_path / "pictures.pt")
    same_pictures(Pictures.load(tmp_path / "pictures.pt"), pictures())


def test_the_checkpoint_that_is_farthest_on_is_taken_and_a_damaged_last_one_is_said(tmp_path: Path) -> None:
    folders = [tmp_path / f"checkpoint_{number}" for number in range(3)]
    for finished, folder in zip((2, 1, 2), folders, strict=True):
        folder.mkdir()
        checkpoint.save(Saved(finished=tuple({"at": float(folder.name[-1])} for _ in range(finished))), folder)
    told: list[str] = []
    assert newest([], told.append) == Saved()
    assert newest(folders, told.append).finished[0] == {"at": 2.0}  # of equals the latest
    assert newest(folders[:2], told.append).finished[0] == {"at": 0.0}
    assert told == []
    (folders[2] / checkpoint.FILE).write_bytes(b"torn")
    assert newest(folders, told.append).finished[0] == {"at": 0.0}
    assert newest(folders[2:], told.append) == Saved()
    assert told == [
        f"note: {folders[2]} is damaged: the trial goes on from checkpoint_0",
        f"note: {folders[2]} is damaged, and there is none before it: the trial begins anew",
    ]
