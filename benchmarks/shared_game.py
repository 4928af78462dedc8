"""What the game of `latent` adds to its groups of k: mismatch, and the error of an attacker that is trained afresh.

    FEDVEIL_DATA=... python -m benchmarks.shared_game --weights 0 0.5 2

Two clients hold 300 images of blood cells each, and there are 60 public ones. The attacker is handed the learnt images (tier
``trained_images``) and trains until flat on rehearsals with 1,000 images of its own. Mismatch is what is minimised beside
the game: squared distance of the learnt image's features to the target in units of the public images' scatter, over both
stages, mean over networks. A weight that the record holds is not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import about
from fedveil.attacks.scoring.baseline import ClassMeanGuess
from fedveil.defense import DefenseContext, LatentPerturbation
from fedveil.defense.inverse.learnt import InverseTraining, train_inverse
from fedveil.defense.inverse.lessons import rehearsed_lessons
from fedveil.defense.latent.condense import spread_out
from fedveil.defense.latent.game import Stake
from fedveil.defense.latent.learner import Networks
from fedveil.defense.latent.shared import PreparedShared
from fedveil.defense.latent.targets import group_means
from fedveil.fl.data import load_data
from fedveil.fl.data.images import Images
from fedveil.fl.models import ModelSpec
from fedveil.fl.seeding import torch_stream

CPU = torch.device("cpu")
DATA, CLASSES, VIEWS = "npz:pbc_blood_28.npz", 8, ("flip", "transpose", "shift")
PUBLIC, PRIVATE, CLIENTS, AUXILIARY = 60, 300, 2, 1000


def mismatch(settings: LatentPerturbation, networks: Networks, one: PreparedShared, public: Images) -> Tensor:
    """Return that of each group's learnt image, (G,)."""
    pool, grouping = networks.pool, one.shared.grouping
    readers = pool.readers(public.shape, CPU)
    labels = grouping.labels(one.private.labels)
    means = group_means(one.private, grouping, readers)
    learnt = Images(one.shared.images, labels)
    total = torch.zeros(len(labels))
    for stages, reader, scales in zip(means, readers, pool.scales, strict=True):
        for own, known, found, scale in zip(stages, reader.of(public), reader.of(learnt), scales, strict=True):
            wanted = spread_out(own, labels, known, public.labels, settings.spread)
            total += (found - wanted).square().sum(1) / scale
    return total / len(readers)


def measured(weight: float, seed: int) -> dict[str, Any]:
    """Return the row of a privacy weight."""
    train = load_data(DATA).train
    order = torch.randperm(len(train), generator=torch_stream(seed, "split"))
    sizes = [PUBLIC, AUXILIARY, *[PRIVATE] * CLIENTS]
    public, auxiliary, *shards = (train.take(at) for at in order[: sum(sizes)].split(sizes))
    context = DefenseContext(public, ModelSpec("convnet", public.shape, CLASSES, width=16), CPU, seed, None, VIEWS)
    settings = LatentPerturbation(k=10, privacy_weight=weight)
    began = time.process_time()
    networks = settings.pretrain(context)
    pretrained = time.process_time()
    assert networks is not None
    prepared = [settings.prepare(shard, context, networks, client=at) for at, shard in enumerate(shards)]
    learnt = time.process_time()
    clients = [one for one in prepared if isinstance(one, PreparedShared)]
    rehearse = clients[0].surrogate().rehearse
    assert rehearse is not None
    stream = torch_stream(seed, "attacker")
    lessons = rehearsed_lessons(auxiliary, rehearse, artefacts=0.0, device=CPU, stream=stream)
    inverse = train_inverse(lessons, InverseTraining(artefacts=0.0), classes=CLASSES, device=CPU, stream=stream)
    errors, of, guessed, fooled = [], [], [], []
    guess = ClassMeanGuess.of(auxiliary, classes=CLASSES)
    for one in clients:
        x, labels, grouping = one.private.floats(), one.private.labels, one.shared.grouping
        seen = one.shared.images.float()[grouping.of] / 255
        errors.append((inverse(seen[None], labels) - x).square().mean((1, 2, 3)))
        guessed.append((guess.guess(labels) - x).square().mean((1, 2, 3)))
        of.append(grouping.of + sum(len(o.unique()) for o in of))
        if networks.adversary is not None:
            stake = Stake.of(one.private, grouping, networks.adversary)
            fooled.append(stake(one.shared.images.float() / 255, torch.arange(len(grouping))))
    wrong, group = torch.cat(errors), torch.cat(of)
    by_group = torch.zeros(int(group.max()) + 1).index_add(0, group, wrong) / group.bincount()
    row = {
        "privacy_weight": weight,
        "seed": seed,
        "k": settings.k,
        "groups": len(by_group),
        "mismatch": round(float(torch.cat([mismatch(settings, networks, one, public) for one in clients]).mean()), 4),
        "mse": round(float(wrong.mean()), 6),
        "mse_deviation": round(float(by_group.std() / len(by_group) ** 0.5), 6),
        "guess_mse": round(float(torch.cat(guessed).mean()), 6),
        "inverse": {"steps": inverse.curve.steps[-1], "error": inverse.curve.error, "flat": inverse.curve.flat},
        "pretrain_seconds": round(pretrained - began, 1),
        "learn_seconds": round(learnt - pretrained, 1),
    }
    if networks.adversary is not None:
        numbers = {name: round(value, 4) for name, value in networks.adversary.diagnostics().items()}
        row |= {**numbers, "adversary_baseline": round(networks.adversary.baseline, 6)}
        row["adversary_mse"] = round(float(torch.cat(fooled).mean()) * networks.adversary.baseline, 6)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="+", type=float, default=[0.0, 0.5, 2.0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/shared_game.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for weight in arguments.weights:
        record: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"rows": []}
        if any((row["privacy_weight"], row["seed"]) == (weight, arguments.seed) for row in record["rows"]):
            continue
        record = {"machine": about(), "rows": [*record["rows"], measured(weight, arguments.seed)]}
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
        print(json.dumps(record["rows"][-1]), flush=True)


if __name__ == "__main__":
    main()
