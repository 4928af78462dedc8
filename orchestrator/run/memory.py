"""What a run or a sweep has to know of itself to be resumed, on disk twice: in its folder, and beside its checkpoints."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from ray import cloudpickle

from fedveil.fl.errors import FedveilError
from fedveil.fl.sealed import checksum, write_whole
from fedveil.orchestrator.cluster.progress import Say
from fedveil.orchestrator.config import Experiment
from fedveil.orchestrator.run.paths import ExperimentPaths
from fedveil.orchestrator.tracking import without_passwords

_CHECKSUM = "checksum"
_TIME, _TIME_IS = "%Y%m%d-%H%M%S", "20260101-000000"
_SEARCHER = ("basic-variant-state-*.json", "search_gen_state-*.json", "searcher-state-*.pkl")
"""What Tune keeps of a searcher; all three are pickles."""


@dataclass(frozen=True)
class Memory:
    """A sweep that may be resumed.

    Attributes:
        run_id: of its MLflow run.
        tune: name of Tune's storage.
        settings: its experiment, see `settings_to_keep`.
        starts: how often it was resumed.
    """

    run_id: str
    tune: str
    settings: Mapping[str, Any]
    starts: int = 0

    @property
    def storage(self) -> str:
        """Name of the folder of its checkpoints."""
        return self.tune


@dataclass(frozen=True)
class RunMemory:
    """A run that may be resumed; the MLflow runs of its trials are known by their checkpoints.

    Attributes:
        storage: name of the folder of its checkpoints.
        settings: its experiment, see `settings_to_keep`.
        trials: their names, one for each seed.
    """

    storage: str
    settings: Mapping[str, Any]
    trials: Sequence[str]


M = TypeVar("M", Memory, RunMemory)


@dataclass(frozen=True)
class Book(Generic[M]):
    """Where the sweeps of an experiment are remembered, or its runs.

    Attributes:
        what: ``sweep`` or ``run``.
        kind: of what is remembered.
        file: the last one's.
        storages: folder of their checkpoints, a folder for each.
        copy: see `ExperimentPaths`.
    """

    what: str
    kind: type[M]
    file: Path
    storages: Path
    copy: str | None

    def keep(self, memory: M) -> None:
        """Write the memory down."""
        plain = asdict(memory)
        text = json.dumps({_CHECKSUM: _check(plain), **plain}, indent=2) + "\n"
        for place in (self.storages / memory.storage / self.file.name, self.file):
            write_whole(place, [text.encode()])

    def recall(self) -> M:
        """Return what `keep` wrote last, from the copy where the file is damaged.

        Raises:
            FedveilError: there was none, or both are damaged.
        """
        if not self.file.exists():
            elsewhere = "" if self.copy is None else f", and nothing at {without_passwords(self.copy)}"
            raise FedveilError(
                f"--resume: there is nothing to resume, no {self.file}{elsewhere}; start the {self.what} without --resume"
            )
        copies: list[Path] = sorted(self.storages.glob(f"*/{self.file.name}"))
        for one in (self.file, *copies[-1:]):  # their folders' names begin with the time
            memory = self._read(one)
            if memory is not None:
                return memory
        raise FedveilError(
            f"--resume: {self.file} is damaged and so is its copy below {self.storages}; start anew without --resume"
        )

    def interrupted(self, settings: Mapping[str, Any]) -> M:
        """Return what is to be resumed.

        Args:
            settings: that it has to have.

        Raises:
            FedveilError: there was none, or it had other settings, or what is known of it is damaged.
        """
        before = self.recall()
        changed = _differing(before.settings, settings)
        if changed:
            raise FedveilError(
                f"--resume: the settings are not those of the {self.what} in {self.file}: {', '.join(changed)}; set them"
                " back, or start anew without --resume"
            )
        return before

    def earlier(self, settings: Mapping[str, Any]) -> Iterator[M]:
        """Yield those of these settings that were begun before the last one, the latest first."""
        try:
            last = self.recall().storage
        except FedveilError:
            return
        for place in sorted(self.storages.glob(f"*/{self.file.name}"), reverse=True):
            memory = self._read(place) if place.parent.name < last else None
            if memory is not None and not _differing(memory.settings, settings):
                yield memory

    def _read(self, place: Path) -> M | None:
        try:
            plain = json.loads(place.read_bytes())
            check = plain.pop(_CHECKSUM)
            return self.kind(**plain) if check == _check(plain) else None
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None


def sweeps(paths: ExperimentPaths) -> Book[Memory]:
    """Where an experiment's sweeps are remembered."""
    return Book("sweep", Memory, paths.root / "sweep.json", paths.tune, paths.copy)


def runs(paths: ExperimentPaths) -> Book[RunMemory]:
    """Where an experiment's runs are remembered."""
    return Book("run", RunMemory, paths.root / "run.json", paths.checkpoints, paths.copy)


def settings_to_keep(experiment: Experiment) -> dict[str, Any]:
    """Return what has to be the same where an experiment is resumed: all but passwords, and where its results lie."""
    return dict(without_passwords(experiment.model_dump(mode="json", exclude={"runs_dir"})))


def began(storage: str) -> float:
    """Return when what `new_storage` named began, in seconds since the epoch, whole ones."""
    return time.mktime(time.strptime(storage[: len(_TIME_IS)], _TIME))


def new_storage() -> str:
    """Return a name that begins with the time, and that nobody else has.

    It is not shared with an earlier one of the same experiment, whose trials a resumed one would take for its own.
    """
    return f"{time.strftime(_TIME)}-{uuid.uuid4().hex[:6]}"


def _differing(one: Any, other: Any, key: str = "") -> list[str]:
    """Return the dotted keys at which two nested mappings differ."""
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        return [] if one == other else [key]
    below = sorted(one.keys() | other.keys())
    return [line for k in below for line in _differing(one.get(k), other.get(k), f"{key}.{k}" if key else k)]


def _check(plain: Mapping[str, Any]) -> str:
    return checksum(json.dumps(plain, sort_keys=True).encode(), "sweep").hex()


def whole_states(folder: Path, say: Say) -> bool:
    """Set aside all states that Tune wrote of a part of a sweep but the last whole one; return whether there is one.

    Tune writes one file per start of the part, and takes the one whose name has the latest time: that of the clock, and in
    the zone, of the machine where the part was started. Where it cannot read what it or its searcher has written, it prints
    a traceback and begins anew.

    Args:
        folder: of the part.
        say: is told what is set aside.
    """
    searcher = [path for pattern in _SEARCHER for path in folder.glob(pattern) if not _is_pickle(path)]
    for path in searcher:
        _set_aside(path, "damaged")
        say(
            f"note: {path} is damaged and is set aside: the search begins anew, its trials go on from their checkpoints"
        )
    whole = False
    for state in sorted(folder.glob("experiment_state-*.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True):
        if whole or searcher:
            _set_aside(state, "earlier")
            continue
        trials = _trials_in(state)
        if trials is None:
            _set_aside(state, "damaged")
            say(
                f"note: {state} is damaged and is set aside: its trials go on from their checkpoints, or an older state's"
            )
        whole = bool(trials)
    return whole


def _set_aside(path: Path, why: str) -> None:
    path.rename(path.with_name(f"{why}-{path.name}"))


def _trials_in(state: Path) -> int | None:
    """Return how many trials a state of Tune's knows; None where it cannot be read."""
    try:
        trials = json.loads(state.read_bytes())["trial_data"]
        for trial, seen in trials:
            json.loads(trial, object_hook=_unpickled)
            json.loads(seen, object_hook=_unpickled)
    except Exception:  # unpickling what is damaged may raise anything
        return None
    return len(trials)


def _unpickled(found: dict[str, Any]) -> dict[str, Any]:
    """Try what Tune does next with a value for which JSON has no word."""
    if found.get("_type") == "CLOUDPICKLE_FALLBACK":
        cloudpickle.loads(bytes.fromhex(found["value"]))
    return found


def _is_pickle(path: Path) -> bool:
    try:
        cloudpickle.loads(path.read_bytes())  # as Tune does, next
    except Exception:
        return False
    return True
