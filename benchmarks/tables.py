"""Write docs/benchmarks.md from the records in benchmarks/results/.

    python -m benchmarks.tables

A test holds the page to the records: no number in it is written by hand.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.markdown import MISSING, Row, machine, ratio, read, table
from benchmarks.peers.cells import DATA, NETWORKS, VICTIMS, WEIGHTS
from benchmarks.training_tables import FEDERATED, LAYOUTS, OVERHEAD, federated, layouts, overhead

RESULTS = Path("benchmarks/results")
PAGE = Path("docs/benchmarks.md")


def best(rows: Sequence[Row]) -> dict[tuple[Any, ...], Row]:
    """Return by setting the record with the highest mean PSNR, of those of all victims."""
    found: dict[tuple[Any, ...], Row] = {}
    for one in rows:
        key = tuple(one[name] for name in ("evaluations", "network", "local_steps", "batch", "data", "weights"))
        if one["victims"] == VICTIMS and (key not in found or found[key]["psnr_mean"] < one["psnr_mean"]):
            found[key] = one
    return found


def _pair(theirs: Row | None, ours: Row | None) -> str:
    """Return peer / ours, ours in bold where it is no worse."""
    left = "-" if theirs is None else f"{theirs['psnr_mean']:.1f} {theirs['attack'][0]}"
    if ours is None:
        return f"{left} / -"
    right = f"{ours['psnr_mean']:.1f}"
    ahead = theirs is not None and ours["psnr_mean"] >= theirs["psnr_mean"]
    return f"{left} / **{right}**" if ahead else f"{left} / {right}"


def quality(results: Path) -> str:
    """Return the section on reconstructions of undefended updates."""
    sides = {name: read(results, f"quality/{name}.json") for name in ("breaching", "fedveil")}
    theirs, ours = (best(record["rows"]) if record else {} for record in sides.values())
    if not theirs and not ours:
        return MISSING
    both = theirs.keys() & ours.keys()
    ahead = sum(ours[key]["psnr_mean"] >= theirs[key]["psnr_mean"] for key in both)
    summary = (
        f"Both sides have attacked {len(both)} settings in full; in {ahead} of them our mean PSNR is at least that of the "
        "peer's best configuration."
    )
    if record := sides["fedveil"]:
        levels = " and ".join(f"{value:.1f} dB on {data}" for data, value in record["guess"].items())
        below = sum(
            max(theirs[key]["psnr_mean"], ours[key]["psnr_mean"]) < record["guess"][key[4]]
            for key in both
            if ours[key]["psnr_mean"] < theirs[key]["psnr_mean"]
        )
        summary += (
            f"\nThe class mean of auxiliary images, which takes no update, is at {levels}: in {below} of the other"
            f" {len(both) - ahead}, both sides are worse than that."
        )
    parts = [summary]
    for evaluations in sorted({key[0] for key in theirs | ours}):
        lines = []
        for network, steps, batch in product(NETWORKS, (1, 5), (1, 4, 8)):
            keys = [
                (evaluations, str(network), steps, batch, data, weights) for data, weights in product(DATA, WEIGHTS)
            ]
            if any(key in theirs or key in ours for key in keys):
                pairs = [_pair(theirs.get(key), ours.get(key)) for key in keys]
                lines.append([str(network), str(steps), str(batch), *pairs])
        head = ["network", "local steps", "batch", *(f"{data}, {weights}" for data, weights in product(DATA, WEIGHTS))]
        parts.append(f"### {evaluations} gradient evaluations\n\n{table(head, lines)}")
    parts += [f"{name}: {machine(record)}" for name, record in sides.items() if record]
    return "\n\n".join(parts)


def speed(results: Path) -> str:
    """Return the section on time per step."""
    record = read(results, "speed.json")
    if record is None:
        return MISSING
    head = [
        "device",
        "network",
        "victims",
        "peer / our step",
        "peer / our loop",
        "our step / floor",
        "ms: peer, step, floor",
    ]
    lines = []
    for row in record["rows"]:
        taken = row["milliseconds"]
        milliseconds = ", ".join(
            f"{taken[name]:.3g}" if name in taken else "-" for name in ("inverting_gradients", "step", "floor")
        )
        found = [ratio(row.get(name)) for name in ("peer_over_step", "peer_over_loop", "step_over_floor")]
        lines.append([row["device"], row["network"], str(row["victims"]), *found, milliseconds])
    return f"{table(head, lines)}\n\n{machine(record)}"


def memory(results: Path) -> str:
    """Return the section on peak memory."""
    record = read(results, "memory.json")
    if record is None:
        return MISSING
    lines = [
        [
            row["network"],
            str(row["victims"]),
            f"`{row['attack'].split('(')[0]}`",
            f"{row['before_gib']:.2f}",
            f"{row['peak_gib']:.2f}",
        ]
        for row in record["rows"]
    ]
    within = all(row["peak_gib"] <= record["limit_gib"] for row in record["rows"])
    verdict = (
        f"All within {record['limit_gib']:g} GiB." if within else f"Not all are within {record['limit_gib']:g} GiB."
    )
    head = ["network", "victims", "attack", "before, GiB", "peak, GiB"]
    return f"{verdict}\n\n{table(head, lines)}\n\n{machine(record)}"


def _by_attack(metrics: dict[str, float], metric: str) -> dict[str, float]:
    found = {key.split("/")[1]: value for key, value in metrics.items() if key.startswith("attack/")}
    return {name: metrics[f"attack/{name}/{metric}"] for name in found if f"attack/{name}/{metric}" in metrics}


def strength(results: Path) -> str:
    """Return the section on defences under plain and strongest attackers."""
    record = read(results, "strength.json")
    if record is None:
        return MISSING
    head = [
        "defence",
        "seed",
        "accuracy",
        "guess",
        "x'",
        "plain Inverting Gradients",
        "best attacker",
        "identified: plain, best",
    ]
    lines = []
    for row in record["rows"]:
        metrics = row["metrics"]
        errors = {name: value for name, value in _by_attack(metrics, "mse").items() if name != "baseline"}
        named = _by_attack(metrics, "identification_rate")
        strongest = min(errors, key=lambda name: errors[name])
        options = ", ".join(f"{key} {value}" for key, value in row["defense"].items() if key != "name")
        lines.append(
            [
                f"`{row['defense']['name']}` {options}".strip(),
                str(row["seed"]),
                f"{metrics['utility/accuracy']:.3f}",
                f"{metrics['privacy/baseline_mse']:.4f}",
                f"{metrics['privacy/trained_mse']:.4f}",
                f"{errors['inverting_gradients']:.4f}",
                f"{errors[strongest]:.4f} (`{strongest}`)",
                f"{named['inverting_gradients']:.2f}, {metrics['privacy/identification_rate']:.2f}",
            ]
        )
    return f"{table(head, lines)}\n\n{machine(record)}"


def cores(results: Path) -> str:
    """Return the section on how busy a sweep keeps the machine."""
    record = read(results, "cores.json")
    if record is None:
        return MISSING
    lines = [
        [
            ", ".join(f"`{one}`" for one in row["overrides"]) or "as shipped",
            str(row["trials"]),
            f"{row['wall_seconds']:.0f}",
            f"{row['slot_cpu_seconds']:.0f}",
            f"{row['other_cpu_seconds']:.0f}",
            f"{row['busy']:.2f}",
        ]
        for row in record["rows"]
    ]
    head = ["settings", "trials", "wall, s", "workers' CPU, s", "other CPU, s", "busy"]
    return f"{table(head, lines)}\n\n{machine(record)}"


def update_defenses(results: Path) -> str:
    """Return the section on what defences of the update cost."""
    record = read(results, "update_defenses.json")
    if record is None:
        return MISSING
    by_defense: dict[str, list[Row]] = {}
    for row in record["rows"]:
        by_defense.setdefault(json.dumps(row["defense"]), []).append(row)
    plain = {row["seed"]: row for row in record["rows"] if row["defense"] == {"name": "none"}}
    lines = []
    for rows in by_defense.values():
        name, *options = rows[0]["defense"].items()
        pairs = [(row, plain[row["seed"]]) for row in rows if row["seed"] in plain]
        gains = [100 * (row["accuracy"] - bare["accuracy"]) for row, bare in pairs]
        lines.append(
            [
                f"`{name[1]}` {', '.join(f'{key} {value}' for key, value in options)}".strip(),
                str(len(rows)),
                f"{fmean(row['accuracy'] for row in rows):.3f}",
                f"{fmean(gains):+.1f} ({min(gains):+.1f} to {max(gains):+.1f})" if gains else "-",
                f"{fmean(row['update_bytes'] for row in rows):,.0f}",
                f"{fmean(row['update_bytes'] / bare['update_bytes'] for row, bare in pairs):.2f}" if pairs else "-",
            ]
        )
    head = ["defence", "seeds", "accuracy", "points over none, same seed", "bytes of an update", "of none's"]
    return f"{table(head, lines)}\n\n{machine(record)}"


INTRODUCTION = """# Benchmarks

Generated from the records in `benchmarks/results/` by `python -m benchmarks.tables`. The peer is breaching 0.1.2 (Geiping et
al.), as it is in the package registry, in an environment of its own (`benchmarks/peers/setup.sh`)."""

QUALITY = f"""## Reconstruction of undefended updates

Mean PSNR in dB over {VICTIMS} victims, peer / ours, ours in bold where it is at least the peer's. Both sides attack the same
updates at the same weights, with labels known, one start per update and the same number of gradient evaluations, start and
final check aside. What ours knows beside: behind normalisation, which hides how bright an image is, `strongest` takes its
0.995 quantile for 0.92, a round value between those of auxiliary images of both sets. The letter names the best of the
peer's configurations: `deepleakage` (squared distance, L-BFGS), `invertinggradients`, `modern`. All three ran on the first
4 victims; those that lay more than 1.5 dB behind there were dropped. Five local steps have the rate 0.1, and the peer
unrolls them. Trained weights come from 400 steps of Adam on private images. How the peer was made to read our cells stands
in `benchmarks/peers/breaching_side.py`."""

SPEED = """## Time per victim-step

On images of 3x32x32. Peer: a step of its Inverting Gradients as it runs, one victim at a time. Our step: cosine distance and
total variation of all victims with their gradient; our loop: signed Adam around it. Floor: one forward and backward pass of
the batch. Median of the rounds, with the least and the largest ratio within one."""

MEMORY = """## Peak memory

Resident set of a fresh process, images of 3x32x32, one per update; before: PyTorch, the model and all updates."""

STRENGTH = """## Defences under plain and strongest attackers

Mean squared error of the reconstruction (lower leaks more) at the leakiest audit; guess: the class mean; x': what the client
trained on. One setting per defence: compare attackers within a row, not defences between rows."""

UPDATES = """## Defences of the update: accuracy and bytes

The study's federation on blood cells (32 clients, 8 of them in each of 24 rounds, 50 steps of Adam) behind defences that act
on the update alone; test accuracy on untouched images, mean over seeds. Bytes of an update: the smallest of three encodings
(`ClientUpdate.nbytes`)."""

CORES = """## Cores that work

A sweep from `tune_configs/pneumonia-minimax.yaml` with two fixed trials and six of its search, from the start of Python to
its end. Busy: CPU seconds of the worker processes, which train and attack, over wall seconds times cores."""


def page(results: Path) -> str:
    """Return the whole page."""
    sections = [
        (QUALITY, quality(results)),
        (SPEED, speed(results)),
        (MEMORY, memory(results)),
        (STRENGTH, strength(results)),
        (UPDATES, update_defenses(results)),
        (CORES, cores(results)),
        (FEDERATED, federated(results)),
        (LAYOUTS, layouts(results)),
        (OVERHEAD, overhead(results)),
    ]
    return "\n\n".join([INTRODUCTION, *(part for section in sections for part in section)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    PAGE.write_text(page(RESULTS))


if __name__ == "__main__":
    main()
