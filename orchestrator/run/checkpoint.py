"""A trial between two rounds, on disk: tensors and plain values only, so that loading runs no code."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedveil.attacks.audit import Picture
from fedveil.fl.messages import PrivacyRecord, ThreatModel
from fedveil.fl.rounds import ServerState

FILE = "trial.pt"


@dataclass(frozen=True)
class Progress:
    """All that a trial carries from round to round; everything else follows from the experiment and its seed.

    Attributes:
        state: of the server, before round ``state.round``.
        records: of the audits so far.
        pictures: of the latest audit.
        audited: rounds whose audit is done.
        run_id: of the MLflow run, so that a resumed trial goes on in the same one.
        train_seconds: spent on rounds and preparation.
        attack_seconds: spent on audits.
        update_bytes: mean bytes per client and round, summed over rounds.
    """

    state: ServerState
    records: tuple[PrivacyRecord, ...] = ()
    pictures: tuple[Picture, ...] = ()
    audited: tuple[int, ...] = ()
    run_id: str | None = None
    train_seconds: float = 0.0
    attack_seconds: float = 0.0
    update_bytes: float = 0.0


def save(progress: Progress, folder: Path) -> None:
    """Write ``progress`` into ``folder``."""
    plain: dict[str, Any] = {f.name: getattr(progress, f.name) for f in dataclasses.fields(progress)}
    plain["state"] = {
        "round": progress.state.round,
        "weights": dict(progress.state.weights),
        "optimizer": dict(progress.state.optimizer),
    }
    plain["records"] = [record_to_plain(record) for record in progress.records]
    plain["pictures"] = [
        {"victim": p.victim, "original": p.original, "trained": p.trained, "rebuilt": dict(p.rebuilt)}
        for p in progress.pictures
    ]
    torch.save(plain, folder / FILE)


def load(folder: Path) -> Progress:
    """Read what `save` wrote."""
    plain: dict[str, Any] = torch.load(folder / FILE, weights_only=True)
    plain["state"] = ServerState(**plain["state"])
    plain["records"] = tuple(record_from_plain(record) for record in plain["records"])
    plain["pictures"] = tuple(Picture(**picture) for picture in plain["pictures"])
    plain["audited"] = tuple(plain["audited"])
    return Progress(**plain)


def record_to_plain(record: PrivacyRecord) -> dict[str, Any]:
    """Return a record as plain values; the threat model as a mapping of grants."""
    return dataclasses.asdict(record)


def record_from_plain(plain: Mapping[str, Any]) -> PrivacyRecord:
    """Return the record that `record_to_plain` was given."""
    return PrivacyRecord(**{**plain, "threat_model": ThreatModel(**plain["threat_model"])})


def tensors_of(pictures: tuple[Picture, ...]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Stack pictures into originals, trained-on images and reconstructions by attack, (n, C, H, W) each."""
    ordered = sorted(pictures, key=lambda p: p.victim)
    names = list(ordered[0].rebuilt)
    return (
        torch.stack([p.original for p in ordered]),
        torch.stack([p.trained for p in ordered]),
        {name: torch.stack([p.rebuilt[name] for p in ordered]) for name in names},
    )
