"""A trial between two rounds, on disk: tensors and plain values only, so that loading runs no code."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from torch import Tensor

from fedveil.attacks.audit.report import AuditReport
from fedveil.fl.messages import PrivacyRecord, ThreatModel
from fedveil.fl.rounds import ServerState
from fedveil.fl.sealed import read_sealed, write_sealed, write_whole

FILE = "trial.pt"
FOLDER = "checkpoint_"
"""How the names of checkpoints' folders begin, here and in Tune; they are as long as each other, and end in a number."""


@dataclass(frozen=True)
class Pictures:
    """The first victims as a person would look at them, in the victims' order, each (n, C, H, W) in [0, 1].

    Attributes:
        originals: as in the data set.
        trained: what the client trained on.
        reconstructions: by attack, matched to the originals.
    """

    originals: Tensor
    trained: Tensor
    reconstructions: Mapping[str, Tensor]

    @classmethod
    def of(cls, report: AuditReport) -> Pictures | None:
        """Return those of an audit; None where it kept none."""
        if report.originals is None or report.trained is None:
            return None
        return cls(report.originals, report.trained, dict(report.reconstructions))

    def save(self, path: Path) -> None:
        """Write them to ``path``."""
        torch.save(self.plain(), path)

    @classmethod
    def load(cls, path: Path) -> Pictures:
        """Read what `save` wrote."""
        return cls(**torch.load(path, weights_only=True))

    def plain(self) -> dict[str, Any]:
        """Return tensors in plain mappings."""
        return {
            "originals": self.originals,
            "trained": self.trained,
            "reconstructions": dict(self.reconstructions),
        }


@dataclass(frozen=True)
class Progress:
    """All that a trial carries from round to round; everything else follows from the experiment and its seed.

    Attributes:
        state: of the server, before round ``state.round``.
        records: of the audits so far.
        pictures: of the first audit.
        past: the states of the rounds before ``state.round``, the newest first and without the strategy's own tensors, as
            far back as audits look (`audit.observations`).
    """

    state: ServerState
    records: tuple[PrivacyRecord, ...] = ()
    pictures: Pictures | None = None
    past: tuple[ServerState, ...] = ()

    def after_round(self, state: ServerState, *, look_back: int) -> Progress:
        """Return this progress with the server's new state, and the ``look_back`` states before that."""
        return replace(self, state=state, past=(replace(self.state, optimizer={}), *self.past)[:look_back])

    def after_audit(self, report: AuditReport) -> Progress:
        """Return this progress with an audit's records, and its pictures if it is the first."""
        return replace(self, records=(*self.records, *report.records), pictures=self.pictures or Pictures.of(report))


@dataclass(frozen=True)
class Saved:
    """A checkpoint of a setting's trials, which run under its seeds in turn.

    Attributes:
        finished: final metrics of the seeds that are done, in their order.
        progress: of the seed that runs; None between two seeds.
        run_id: of that seed's MLflow run, so that a resumed trial goes on in the same one.
        costs: of that seed so far, ``cost/<name>`` each.
    """

    finished: tuple[Mapping[str, float], ...] = ()
    progress: Progress | None = None
    run_id: str | None = None
    costs: Mapping[str, float] = field(default_factory=dict)


def save(saved: Saved, folder: Path) -> None:
    """Write ``saved`` into ``folder``."""
    plain = {
        "finished": [dict(metrics) for metrics in saved.finished],
        "progress": None if saved.progress is None else _progress_to_plain(saved.progress),
        "run_id": saved.run_id,
        "costs": dict(saved.costs),
    }
    whole = io.BytesIO()
    torch.save(plain, whole)
    write_sealed(folder / FILE, whole.getbuffer(), FILE)


def save_next(saved: Saved, below: Path, *, last: int) -> None:
    """Write ``saved`` into a new folder in ``below``, of whose checkpoints only the ``last`` ones are left then.

    Raises:
        OSError: the disk does not take it. The ones of before are still there.
    """
    before = sorted(below.glob(f"{FOLDER}*"))
    number = int(before[-1].name.removeprefix(FOLDER)) + 1 if before else 0
    save(saved, below / f"{FOLDER}{number:06d}")
    for old in before[: len(before) + 1 - last]:
        rmtree(old)


def load(folder: Path) -> Saved | None:
    """Read what `save` wrote; None where there is nothing, where it is damaged, or where another version wrote it."""
    content = read_sealed(folder / FILE, FILE)
    if content is None:
        return None
    plain: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
    try:
        progress = plain["progress"]
        return Saved(
            finished=tuple(plain["finished"]),
            progress=None if progress is None else _progress_from_plain(progress),
            run_id=plain["run_id"],
            costs=plain["costs"],
        )
    except (KeyError, TypeError):  # it has other fields
        return None


def _progress_to_plain(progress: Progress) -> dict[str, Any]:
    return {
        "state": _state_to_plain(progress.state),
        "records": [record_to_plain(record) for record in progress.records],
        "pictures": None if progress.pictures is None else progress.pictures.plain(),
        "past": [_state_to_plain(state) for state in progress.past],
    }


def _state_to_plain(state: ServerState) -> dict[str, Any]:
    return {
        "round": state.round,
        "weights": dict(state.weights),
        "optimizer": dict(state.optimizer),
        "memories": {client: dict(memory) for client, memory in state.memories.items()},
    }


def _progress_from_plain(plain: Mapping[str, Any]) -> Progress:
    pictures = plain["pictures"]
    return Progress(
        state=ServerState(**plain["state"]),
        records=tuple(record_from_plain(record) for record in plain["records"]),
        pictures=None if pictures is None else Pictures(**pictures),
        past=tuple(ServerState(**state) for state in plain["past"]),
    )


def save_records(records: tuple[PrivacyRecord, ...], path: Path) -> None:
    """Write records as JSON, whole or not at all, for their owner alone."""
    write_whole(path, [(json.dumps([record_to_plain(record) for record in records]) + "\n").encode()])


def load_records(path: Path) -> tuple[PrivacyRecord, ...]:
    """Read what `save_records` wrote."""
    return tuple(record_from_plain(plain) for plain in json.loads(path.read_text(encoding="utf-8")))


def record_to_plain(record: PrivacyRecord) -> dict[str, Any]:
    """Return a record as plain values; the threat model as a mapping of grants."""
    return dataclasses.asdict(record)


def record_from_plain(plain: Mapping[str, Any]) -> PrivacyRecord:
    """Return the record that `record_to_plain` was given."""
    return PrivacyRecord(**{**plain, "threat_model": ThreatModel(**plain["threat_model"])})
