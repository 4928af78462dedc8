from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedveil.attacks.audit import Picture
from fedveil.fl.messages import PrivacyRecord, ThreatModel
from fedveil.fl.rounds import ServerState
from fedveil.orchestrator.run import checkpoint
from fedveil.orchestrator.run.checkpoint import Progress, record_from_plain, record_to_plain, tensors_of

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


def picture(victim: int) -> Picture:
    images = torch.rand((4, 1, 6, 6), generator=torch.Generator().manual_seed(victim))
    return Picture(victim, images[0], images[1], {"baseline": images[2], "adaptive": images[3]})


def progress() -> Progress:
    stream = torch.Generator().manual_seed(0)
    weights = {
        "head.weight": torch.randn((3, 4), generator=stream),
        # What no text format would bring back: a signed zero, subnormals, NaN.
        "head.bias": torch.tensor([-0.0, 1e-42, float("nan")]),
        "norm.running_mean": torch.randn(4, generator=stream),
    }
    return Progress(
        state=ServerState(round=2, weights=weights, optimizer={"m.head.weight": torch.ones(3, 4) / 3}),
        records=(RECORD, replace(RECORD, victim=6, mse=1 / 3)),
        pictures=(picture(1), picture(0)),
        audited=(0, 1),
        run_id="abc",
        train_seconds=1.5,
        attack_seconds=0.1,
        update_bytes=1234.5,
    )


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    before = progress()
    checkpoint.save(before, tmp_path)
    after = checkpoint.load(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [checkpoint.FILE]
    for old, new in (
        (before.state.weights, after.state.weights),
        (before.state.optimizer, after.state.optimizer),
    ):
        assert list(old) == list(new)
        assert all(bits(old[name]) == bits(new[name]) for name in old)
    assert after.state.round == 2
    assert after.records == before.records
    for p, q in zip(before.pictures, after.pictures, strict=True):
        assert (p.victim, list(p.rebuilt)) == (q.victim, list(q.rebuilt))
        assert bits(p.original) == bits(q.original)
        assert bits(p.trained) == bits(q.trained)
        assert all(bits(p.rebuilt[name]) == bits(q.rebuilt[name]) for name in p.rebuilt)
    rest = ("audited", "run_id", "train_seconds", "attack_seconds", "update_bytes")
    assert [getattr(after, name) for name in rest] == [(0, 1), "abc", 1.5, 0.1, 1234.5]


def test_the_first_checkpoint_of_a_trial_has_no_audit(tmp_path: Path) -> None:
    checkpoint.save(Progress(state=ServerState(round=0, weights={"w": torch.zeros(1)})), tmp_path)
    after = checkpoint.load(tmp_path)
    assert (after.records, after.pictures, after.audited, after.run_id) == ((), (), (), None)


class Booby:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch stolen",)


def test_loading_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state": Booby()}, tmp_path / checkpoint.FILE)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        checkpoint.load(tmp_path)
    assert not (tmp_path / "stolen").exists()


def test_records_survive_json() -> None:
    text = json.dumps(record_to_plain(RECORD))
    assert record_from_plain(json.loads(text)) == RECORD
    assert json.loads(text)["threat_model"]["auxiliary_data"] is True


def test_pictures_are_stacked_by_victim() -> None:
    originals, trained, rebuilt = tensors_of((picture(1), picture(0)))
    assert originals.shape == trained.shape == (2, 1, 6, 6)
    assert torch.equal(originals[0], picture(0).original)
    assert torch.equal(trained[1], picture(1).trained)
    assert list(rebuilt) == ["baseline", "adaptive"]
    assert torch.equal(rebuilt["adaptive"][0], picture(0).rebuilt["adaptive"])
