"""The sections of docs/benchmarks.md on federated training."""

from __future__ import annotations

from pathlib import Path

from benchmarks.markdown import MISSING, machine, ratio, read, table


def overhead(results: Path) -> str:
    """Return the section on what a trial costs beside its work."""
    record = read(results, "trial_overhead.json")
    if record is None:
        return MISSING
    taken = record["per_trial"]
    head = ["wall, s", "CPU s: sweep's process", "trials' processes", "workers", "rest"]
    line = [f"{taken[part]:.2f}" for part in ("wall", "driver", "trials", "slots", "rest")]
    trials = f"Of {record['many']} trials, less one of {record['few']}, per trial:"
    return f"{trials}\n\n{table(head, [line])}\n\n{machine(record)}"


FEDERATED = """## Federated training

CIFAR-10's subset on 100 clients of 83 or 84 images, 10 of them in a round, ConvNet of width 16, plain SGD on batches of 10,
one thread per process (`benchmarks/fl_speed.py`). Plain loop: PyTorch alone, written as simply as it can be; the same in
two processes shows what two busy cores make of the same work on this machine. pfl-research is 0.6.0, Flower 1.41.0 with two
client processes; each peer has an environment of its own (`benchmarks/peers/federated.sh`). The sides take turns round by
round. CPU seconds are those of all processes of a side; the first round counts from the start of the command. Medians;
ratios are taken round by round, with the least and the largest. The loss of the trained models on test images shows that all
do the same work: they draw other cohorts. The machine was shared with other work meanwhile, so walls are rough."""

LAYOUTS = """## Several clients on one core

A step of ten clients, each with own weights and ten own images, per client (`benchmarks/layouts.py`): in milliseconds one by
one, and the other ways as ratios to that. What a training does is channels last, one by one. `vmap` is slower, and what is
faster, clients as groups of channels, means to write each model twice."""


def federated(results: Path) -> str:
    """Return the section on federated training."""
    record = read(results, "fl_speed.json")
    if record is None:
        return MISSING
    parts = []
    head = [
        "side",
        "CPU s a round",
        "/ plain loop",
        "driver, workers, rest",
        "wall, s",
        "first round: wall, CPU s",
        "loss",
    ]
    for row in record["rows"]:
        lines = [
            [
                name,
                f"{side['cpu']['median']:.2f}",
                ratio(side["cpu_over_plain"]),
                ", ".join(f"{side[part]:.2f}" for part in ("driver", "workers", "rest")),
                f"{side['wall']['median']:.2f}",
                f"{side['first_wall']['median']:.1f}, {side['first_cpu']['median']:.1f}",
                f"{side['loss']['median']:.2f}",
            ]
            for name, side in row["sides"].items()
        ]
        settings = row["settings"]
        often = f"started {row['repetitions']} time(s), {settings['rounds']} rounds each"
        title = f"### {settings['epochs']} local epoch(s) a round; {often}"
        parts.append(f"{title}\n\n{table(head, lines)}")
    if record["memory"]:
        head = ["side", "round 1", *(f"{at}" for at in range(10, 51, 10))]
        lines = [
            [one["side"], *(str(one["mebibytes"][at - 1]) for at in (1, 10, 20, 30, 40, 50))]
            for one in record["memory"]
        ]
        title = "### Memory of 1,000 clients, 100 in a round, MiB after a round\n\nShared pages count in each process."
        parts.append(f"{title}\n\n{table(head, lines)}")
    return "\n\n".join([*parts, machine(record)])


def layouts(results: Path) -> str:
    """Return the section on ways to train several clients on one core."""
    record = read(results, "layouts.json")
    if record is None:
        return MISSING
    names = list(record["rows"][0]["ratios"])
    lines = [
        [
            str(row["width"]),
            f"{row['milliseconds'][names[0]]:.2f}",
            *(f"{ratio(row['ratios'][name])}" for name in names[1:]),
        ]
        for row in record["rows"]
    ]
    head = ["width", f"{names[0]}, ms", *names[1:]]
    return f"{table(head, lines)}\n\n{machine(record)}"


OVERHEAD = """## A trial's cost beside its work

Of a sweep of trials that do next to nothing (`benchmarks/trial_overhead.py`): what every trial of a sweep costs,
with Ray Tune, its checkpoint, its files and its run in MLflow."""
