"""How well does the learnt inverse undo each data defence? Held-out and victim error, by the number of draws it is shown.

    FEDVEIL_DATA=DIR python benchmarks/adaptive_inverse.py --out benchmarks/results/adaptive_inverse.json

The protocol is that of the sweep files beside it, with a fifth of the training images public and a fifth the attacker's. The
victims are 256 images of the client that holds most; the attacker holds that client's modules and is handed what was trained
on (a perfect inversion). A row that the record holds already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from fedveil.attacks.adaptive.preparation import PreparationKey, prepare_attacker
from fedveil.defense import DEFENSES, Defense, DefenseContext
from fedveil.defense.inverse.learnt import InverseTraining
from fedveil.defense.minimax import class_mean_error
from fedveil.fl.seeding import torch_stream
from fedveil.orchestrator.config import load_experiment
from fedveil.orchestrator.run.setup import make_setup

CPU = torch.device("cpu")
VICTIMS = 256
LEARNT = {"steps": 150, "client_steps": 40}
ROWS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("pneumonia", "pixel_noise", {"strength": 0.4}),
    ("pneumonia", "latent_autoencoder", {"strength": 1.68, "privacy_weight": 1.75, **LEARNT}),
    ("blood", "pixel_noise", {"strength": 0.1}),
    ("pneumonia", "pixel_noise", {"strength": 0.2}),
    ("pneumonia", "pixel_noise", {"strength": 0.6}),
    ("pneumonia", "latent_noise", {"strength": 2.0}),
    ("blood", "latent_autoencoder", {"strength": 1.07, **LEARNT}),
    ("pneumonia", "latent_autoencoder", {"strength": 2.22, "privacy_weight": 1.69, **LEARNT}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--steps", type=int, default=InverseTraining().steps)
    parser.add_argument("--rows", type=int, nargs="+", default=list(range(len(ROWS))))
    parser.add_argument("--cache", type=Path, default=Path("runs/adaptive_inverse"))
    parser.add_argument("--out", type=Path, default=Path("runs/adaptive_inverse.json"))
    arguments = parser.parse_args()
    record: list[dict[str, Any]] = json.loads(arguments.out.read_text()) if arguments.out.exists() else []
    training = InverseTraining(steps=arguments.steps)
    done = {(row["data"], row["defense"], row["draws"], row["training"]) for row in record}
    for draws in arguments.draws:
        for at in arguments.rows:
            data, name, options = ROWS[at]
            defense = DEFENSES[name](**options)
            if (data, repr(defense), draws, repr(training)) in done:
                continue
            record.append(measured(data, defense, draws, training, arguments.cache))
            arguments.out.write_text(json.dumps(record, indent=2) + "\n")
            print({key: value for key, value in record[-1].items() if key != "curve"}, flush=True)


def measured(data: str, defense: Defense[Any], draws: int, training: InverseTraining, cache: Path) -> dict[str, Any]:
    """Train an inverse for so many draws and return its row."""
    protocol = Path(__file__).parent.parent / "tune_configs" / f"{data}-minimax.yaml"
    experiment, _ = load_experiment(protocol, ["data.public_fraction=0.2", "data.auxiliary_fraction=0.2"])
    setup = make_setup(experiment)
    context = DefenseContext(setup.public, setup.model, CPU, 0, cache)
    client = max(range(len(setup.shards)), key=lambda at: len(setup.shards[at]))
    shard = setup.shards[client]
    prepared = defense.prepare(shard, context, defense.pretrain(context), client=client)
    victims = shard.take(torch.randperm(len(shard), generator=torch_stream(0, "victims"))[:VICTIMS])
    key = PreparationKey(True, client, training, observations=draws)
    classes = len(setup.data.classes)
    began = time.process_time()
    attacker = prepare_attacker(
        prepared, setup.auxiliary, key, classes=classes, device=CPU, stream=torch_stream(0, "inverse")
    )
    seconds = time.process_time() - began
    assert attacker.inverse is not None
    assert attacker.reader is not None
    x, y, noise = victims.floats(), victims.labels, torch_stream(0, "client")
    seen = torch.stack([prepared.data(x, y, noise) for _ in range(draws)])
    curve, reader = attacker.inverse.curve, attacker.reader
    return {
        "data": data,
        "defense": repr(defense),
        "draws": draws,
        "training": repr(training),
        "steps": curve.steps[-1],
        "flat": curve.flat,
        "held_out_mse": curve.error,
        "victim_mse": float((attacker.inverse(seen, y) - x).square().mean()),
        "victim_mse_untold": float((attacker.inverse(seen, None) - x).square().mean()),
        "trained_mse": float((seen[0] - x).square().mean()),
        "guess_mse": class_mean_error(victims, setup.auxiliary),
        "reader_held_out_accuracy": reader.accuracy,
        "reader_victim_accuracy": float((reader(seen) == y).double().mean()),
        "reader_steps": reader.curve.steps[-1],
        "victims": len(victims),
        "auxiliary": len(setup.auxiliary),
        "cpu_seconds": seconds,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "curve": dict(zip(curve.steps, curve.errors, strict=True)),
    }


if __name__ == "__main__":
    main()
