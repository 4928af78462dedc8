"""Files that are damaged, and a disk that takes no more."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.faults.kinds.processes import resumed
from benchmarks.faults.stage import Stage, fault

_GARBAGE = (b"5\n", b"{}\n", b"null\n", b"\xff\xfe\n", b'{"operation": "Later", "x": 1}\n', b'{"operation": "Poin')
"""Lines that no journal has, the last one without its end."""


def tear(file: Path, chance: random.Random) -> None:
    """Leave a part of a file."""
    content = file.read_bytes()
    file.write_bytes(content[: chance.randrange(len(content))])


def flip(file: Path, chance: random.Random) -> None:
    """Change one bit of a file."""
    content = bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)


def _newest_checkpoint(stage: Stage) -> list[Path]:
    found = stage.runs.glob("faults/tune/*/*/*/checkpoint_*/trial.pt")
    return sorted(found, key=lambda path: path.stat().st_mtime_ns)[-1:]


@fault("checkpoint-torn", "a sweep killed, its last checkpoint torn, resumed", "sweep")
def checkpoint_torn(stage: Stage) -> None:
    """The trial goes on from the one before, or begins anew."""
    stage.kill_anywhen(stage.start("sweep"))
    for file in _newest_checkpoint(stage):
        tear(file, stage.chance)
    resumed(stage)


@fault("checkpoint-flipped", "a sweep killed, a bit of its last checkpoint flipped, resumed", "sweep")
def checkpoint_flipped(stage: Stage) -> None:
    """No weight is believed that was not written."""
    stage.kill_anywhen(stage.start("sweep"))
    for file in _newest_checkpoint(stage):
        flip(file, stage.chance)
    resumed(stage)


@fault("state-torn", "a sweep killed, what it or Tune knows of it torn, resumed", "sweep")
def state_torn(stage: Stage) -> None:
    """One file: of settings, of trials, or of the searcher."""
    stage.kill_anywhen(stage.start("sweep"))
    kept = [stage.runs / "faults" / "sweep.json"]
    for pattern in ("experiment_state-*.json", "tuner.pkl", "basic-variant-state-*.json"):
        kept += stage.runs.glob(f"faults/tune/*/*/{pattern}")
    there = sorted(path for path in kept if path.exists())
    if there:
        file = stage.chance.choice(there)
        stage.moment += f", {file.name.partition('-')[0]}"
        tear(file, stage.chance)
    resumed(stage)


@fault("journal", "a sweep killed, garbage in its journals, resumed", "sweep")
def journal_garbage(stage: Stage) -> None:
    """Between whole lines, and at the end."""
    stage.kill_anywhen(stage.start("sweep"))
    for file in stage.runs.glob("faults/spool/*/journal.jsonl"):
        lines = file.read_bytes().splitlines(keepends=True)
        lines.insert(stage.chance.randrange(1, len(lines) + 1), stage.chance.choice(_GARBAGE[:-1]))
        file.write_bytes(b"".join([*lines, stage.chance.choice(_GARBAGE)]))
    resumed(stage)


@fault("cache", "what is learnt on public images kept, and damaged", "run")
def cache_damaged(stage: Stage) -> None:
    """The next run learns it anew."""
    first = stage.start("run")
    stage.finish(first)
    stage.given_up["none-seed0"] = "none-seed0-2"
    stage.strike(moment="between two runs")
    for file in sorted(path for path in (stage.runs / "cache").rglob("*") if path.is_file()):
        stage.chance.choice([tear, flip])(file, stage.chance)
    stage.finish(stage.start("run"))


@contextmanager
def _small_disk(stage: Stage, folder: Path, megabytes: int) -> Iterator[list[str]]:
    """Put a disk of this size at a folder, for those alone that are run by the command line that is yielded."""
    folder.mkdir(parents=True)
    script = f"mount -t tmpfs -o mode=700,size={megabytes}m tmpfs '{folder}' && echo ready && exec sleep 3600"
    space = subprocess.Popen(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", script], stdout=subprocess.PIPE, text=True
    )
    try:
        assert space.stdout is not None
        if space.stdout.readline() != "ready\n":
            raise RuntimeError("a disk of its own needs Linux with user name spaces")
        stage.runs = Path(f"/proc/{space.pid}/root{stage.folder}/runs")
        enter = ["nsenter", "--target", str(space.pid), "--user", "--preserve-credentials", "--mount"]
        yield [*enter, "sh", "-c", f"cd '{stage.folder}' && exec \"$@\"", "sh"]
        whole = stage.folder / "whole"
        subprocess.run(["cp", "-a", str(stage.runs), str(whole)], check=True)
        stage.runs = whole
    finally:
        space.kill()
        space.wait()


def _full_for(ballast: Path, seconds: float) -> None:
    """Fill the disk for so long."""
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            pass
        try:
            while True:
                file.write(b"\0")
        except OSError:
            pass
    time.sleep(seconds)
    os.unlink(ballast)


@fault("disk-runs", "the disk of runs/ full for a while, resumed", "sweep")
def disk_of_runs(stage: Stage) -> None:
    """Trials that cannot keep a checkpoint fail by a sentence, and are resumed once there is room."""
    with _small_disk(stage, stage.folder / "runs", 24) as before:
        command = stage.start("sweep", before=before)
        stage.anywhen(command)
        _full_for(stage.runs / "ballast", stage.chance.uniform(2, 6))
        stage.finish(command, 0, 1)
        resumed(stage, before=before)


@fault("disk-spool", "the disk of the spool full for a while", "sweep")
def disk_of_spool(stage: Stage) -> None:
    """What is recorded meanwhile waits in memory."""
    with _small_disk(stage, stage.folder / "runs" / "faults" / "spool", 4) as before:
        command = stage.start("sweep", before=before)
        stage.anywhen(command)
        _full_for(stage.runs / "faults" / "spool" / "ballast", stage.chance.uniform(2, 6))
        stage.finish(command)
