"""What one defence costs and what it leaves: a small federation of blood cells in this process, attacked by gradients.

    FEDVEIL_DATA=... python -m benchmarks.single_defence '{"name": "none"}' '{"name": "bido", "strength": 0.1}'

Four clients of 300 cells at 28 px train a ConvNet of width 16 for 6 rounds of one epoch (Adam 0.003, batches of 32);
accuracy is that on 500 test cells, as a client sees them and untouched. Then 8 of the first client's cells, alone in their
update or in batches, are attacked in a LeNet at first weights, which gives most away, seen once or several times, by an
attacker with 600 cells of its own, 300 steps of deep leakage for an inversion and 150 for a small inverse. One seed and
one setting each, without a search for equal accuracy: a look at whether a defence does what it says, and no comparison. A
minute of one core each; a setting that is in the record already is left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from benchmarks.machine import about
from fedveil.attacks import Adaptive, Attack, DeepLeakage, InverseTraining, TrainedImages
from fedveil.attacks.adaptive.preparation import preparation_key, prepare_attacker
from fedveil.attacks.audit.capture import capture, together
from fedveil.attacks.audit.updates import Attacker, audit_updates
from fedveil.attacks.scoring import ClassMeanGuess, Scorer, mean_ci
from fedveil.attacks.scoring.victims import VictimBatch
from fedveil.attacks.target.model import target_model
from fedveil.defense import DEFENSES, Defense, DefenseContext, PreparedDefense
from fedveil.fl.data import load_data
from fedveil.fl.data.images import Images
from fedveil.fl.executor import SerialExecutor
from fedveil.fl.messages import UpdateKind
from fedveil.fl.models import ModelSpec, build_model, init_model
from fedveil.fl.optimizers import OPTIMIZERS
from fedveil.fl.rounds import Client, Federation, Simulation
from fedveil.fl.seeding import torch_stream
from fedveil.fl.strategies import STRATEGIES
from fedveil.fl.training import LocalTraining
from fedveil.orchestrator.config.options import build_named

RESULTS = Path(__file__).parent / "results" / "single-defence.json"
PROTOCOL: dict[str, Any] = {
    "data": "pbc_blood_28",
    "clients": 4,
    "images": 300,
    "public": 100,
    "auxiliary": 600,
    "test": 500,
    "rounds": 6,
    "victims": 8,
    "steps": 300,
    "inverse_steps": 150,
}
CPU = torch.device("cpu")
SEED = 0


def parts(protocol: Mapping[str, Any]) -> tuple[list[Images], Images, Images, Images, int]:
    """Return the clients', the public, the attacker's and the test images, and the number of classes."""
    name = protocol["data"]
    data = load_data(f"npz:{name}.npz" if name.startswith("pbc") else name)
    order = torch.randperm(len(data.train), generator=torch_stream(SEED, "single defence"))
    sizes = [protocol["images"]] * protocol["clients"] + [protocol["public"], protocol["auxiliary"]]
    *clients, public, auxiliary = (data.train.take(at) for at in order[: sum(sizes)].split(sizes))
    return (
        clients,
        public,
        auxiliary,
        data.test.take(torch.arange(min(protocol["test"], len(data.test)))),
        len(data.classes),
    )


def utility(
    prepared: list[PreparedDefense], clients: list[Images], test: Images, spec: ModelSpec, rounds: int
) -> dict[str, float]:
    executor = SerialExecutor()
    federation = Federation(
        model=spec,
        clients=tuple(
            Client(number, len(shard), executor.broadcast(shard), executor.broadcast(hooks))
            for number, (shard, hooks) in enumerate(zip(clients, prepared, strict=True))
        ),
        strategy=STRATEGIES["fedavg"](),
        training=LocalTraining(UpdateKind.DELTA, 1, 32, 3e-3, optimizer=OPTIMIZERS["adam"]()),
        cohort=len(clients),
        client_chunks=1,
        seed=SEED,
    )
    simulation = Simulation(federation, executor)
    begin = perf_counter()
    reports = [simulation.round() for _ in range(rounds)]
    seconds = perf_counter() - begin
    handle = executor.broadcast(test)
    return {
        "accuracy": simulation.evaluate(handle).accuracy,
        "clean_accuracy": simulation.evaluate_clean(handle).accuracy,
        "train_seconds": seconds,
        "update_bytes": reports[-1].update_bytes,
    }


def privacy(
    defense: Defense[Any],
    hooks: PreparedDefense,
    private: Images,
    context: DefenseContext,
    auxiliary: Images,
    *,
    batch: int,
    times: int,
    protocol: Mapping[str, Any],
) -> dict[str, float]:
    spec = defense.classifier(ModelSpec("lenet", context.model.image_shape, context.model.classes))
    context = replace(context, model=spec)
    inversion = DeepLeakage(steps=protocol["steps"])
    inverse = InverseTraining(steps=protocol["inverse_steps"], batch_size=32, width=8)
    attacks: tuple[Attack, ...] = (
        inversion,
        Adaptive(inversion=inversion, inverse=inverse, calibration=8),
        TrainedImages(inverse=inverse),
    )
    training = LocalTraining(UpdateKind.GRADIENT, 1, batch, 0.05)
    seen = []
    for number, ids in enumerate(torch.arange(protocol["victims"]).split(batch)):
        victims = VictimBatch(number, 0, tuple(ids.tolist()), private.take(ids))
        rounds = [
            capture(
                build_model(spec),
                init_model(spec, time),
                victims,
                hooks,
                training,
                local_steps=1,
                stream=torch_stream(SEED, "audit", number, time),
            )
            for time in range(times)
        ]
        seen.append(together(rounds))
    keys = {preparation_key(attack, defense.trained_on, 0, observations=times) for attack in attacks}
    mine = defense.shadow(auxiliary, replace(context, seed=5), defense.pretrain(context))
    attacker = Attacker(
        target=target_model(build_model(spec), image_shape=spec.image_shape, classes=spec.classes),
        attacks=attacks,
        auxiliary=auxiliary,
        preparations={
            key: prepare_attacker(
                hooks if key.modules else mine,
                auxiliary,
                key,
                classes=spec.classes,
                device=CPU,
                stream=torch_stream(5, "inverse"),
            )
            for key in keys
            if key is not None
        },
        trained_on=defense.trained_on,
        labels_known=True,
        seed=7,
        observations=times,
    )
    scorer = Scorer(None, None, ClassMeanGuess.of(auxiliary, classes=spec.classes), SEED)
    report = audit_updates(attacker, [o for o, _ in seen], [b for _, b in seen], scorer=scorer, device=CPU)
    found = {key: value for key, value in report.summary().items() if key.endswith("_mse") or key == "privacy/complete"}
    for name in sorted({record.attack for record in report.records}):
        own = mean_ci([record.mse for record in report.records if record.attack == name])
        found |= {f"{name}/mse": own.mean, f"{name}/mse_low": own.low or 0.0, f"{name}/mse_high": own.high or 0.0}
    return found


def measured(
    setting: Mapping[str, Any], audits: list[tuple[int, int]], protocol: Mapping[str, Any] = PROTOCOL
) -> dict[str, Any]:
    """Return the record of one defence; ``audits`` are pairs of images in an update and times that they are seen."""
    defense = build_named(DEFENSES, setting)
    clients, public, auxiliary, test, classes = parts(protocol)
    spec = defense.classifier(ModelSpec("convnet", public.shape, classes, width=16))
    context = DefenseContext(public, spec, CPU, SEED)
    learnt = defense.pretrain(context)
    prepared = [defense.prepare(shard, context, learnt, client=number) for number, shard in enumerate(clients)]
    row: dict[str, Any] = {"defense": dict(setting), "diagnostics": prepared[0].diagnostics()}
    row |= utility(prepared, clients, test, spec, protocol["rounds"])
    for batch, times in audits:
        own = {"batch": batch, "times": times, "protocol": protocol}
        row[f"batch {batch}, seen {times}"] = privacy(
            defense,
            prepared[0],
            clients[0],
            context,
            auxiliary,
            **own,  # type: ignore[arg-type]
        )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("defenses", nargs="+", type=json.loads, help="JSON: a name and options")
    parser.add_argument("--batch", nargs="+", type=int, default=[1], help="images in an update")
    parser.add_argument("--times", nargs="+", type=int, default=[1], help="rounds in which a victim is seen")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = (
        json.loads(args.out.read_text()) if args.out.exists() else {"protocol": PROTOCOL, "rows": []}
    )
    audits = [(batch, times) for batch in args.batch for times in args.times]
    for setting in args.defenses:
        if any(row["defense"] == setting and row["audits"] == [list(one) for one in audits] for row in record["rows"]):
            continue
        begin = perf_counter()
        row = measured(setting, audits)
        record["rows"].append({**row, "audits": audits, "seconds": perf_counter() - begin})
        record["machine"] = about()
        args.out.write_text(json.dumps(record, indent=1) + "\n")
        print(json.dumps({**row, "seconds": perf_counter() - begin}, indent=1), flush=True)


if __name__ == "__main__":
    main()
