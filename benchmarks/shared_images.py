"""What settings of `latent` are worth, without a federation: a quick look before the study.

    FEDVEIL_DATA=... python -m benchmarks.shared_images --data blood --settings '{"k": 10}' '{"k": 10, "spread": 1.0}'

For each setting, all clients' learnt images and the public ones are trained on in one place, and the attacker that is handed
the learnt images (tier ``trained_images``) is trained until flat on rehearsals with the auxiliary images. Found: how often,
of 1,000 images, the member is named, with whole groups in the gallery, and with one member of each group among strangers; by
the image nearest to the reconstruction, and by forward matching. A setting that the record holds is not measured again.
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
from benchmarks.study.cell import experiment
from benchmarks.study.protocols import PROTOCOLS
from fedveil.attacks.inverse.shared_law import SharedLaw
from fedveil.defense import DEFENSES, DefenseContext
from fedveil.defense.inverse.learnt import InverseTraining, LearntInverse, train_inverse
from fedveil.defense.inverse.lessons import rehearsed_lessons
from fedveil.defense.latent.shared import PreparedShared
from fedveil.defense.minimax import class_mean_error
from fedveil.fl.central import CentralTraining, train_classifier
from fedveil.fl.data.images import Images
from fedveil.fl.metrics import accuracy
from fedveil.fl.models import build_model
from fedveil.fl.seeding import torch_stream
from fedveil.fl.training import load_exchanged
from fedveil.orchestrator.config import check
from fedveil.orchestrator.run.setup import Setup, make_setup

CPU = torch.device("cpu")
GALLERY, VICTIMS = 1000, 512
TRAINING_STEPS = 750


class Groups:
    """All clients' images and the learnt ones, numbered through."""

    def __init__(self, prepared: list[PreparedShared]) -> None:
        kept = [one.private for one in prepared]
        self.members = Images(torch.cat([x.pixels for x in kept]), torch.cat([x.labels for x in kept]))
        starts = torch.tensor([0, *(len(one.shared.images) for one in prepared)]).cumsum(0)
        self.of = torch.cat([one.shared.grouping.of + at for one, at in zip(prepared, starts.tolist(), strict=False)])
        pixels = torch.cat([one.shared.images for one in prepared])
        labels = torch.zeros(len(pixels), dtype=torch.int64).index_copy_(0, self.of, self.members.labels)
        self.learnt = Images(pixels, labels)

    def seen(self, rows: Tensor) -> Tensor:
        """Return what was learnt for these members, (n, C, H, W) in [0, 1]."""
        return self.learnt.take(self.of[rows]).floats()


def central_accuracy(setup: Setup, learnt: Images, views: tuple[str, ...], seed: int) -> float:
    """Train on learnt and public images in one place, and return the accuracy on untouched test images."""
    both = Images(torch.cat([learnt.pixels, setup.public.pixels]), torch.cat([learnt.labels, setup.public.labels]))
    how = CentralTraining(steps=TRAINING_STEPS, augmentation=views)
    found = train_classifier(both, setup.model, how, validation=None, seed=seed, device=CPU)
    model = build_model(setup.model).eval()
    load_exchanged(model, found.weights)
    with torch.no_grad():
        answers = torch.cat([model(x) for x in setup.data.test.floats().split(256)])
    return accuracy(answers, setup.data.test.labels)


def found(groups: Groups, inverse: LearntInverse, law: SharedLaw, rows: Tensor, strangers: Images) -> dict[str, float]:
    """Return how often members are found in a gallery of themselves and strangers."""
    seen, originals = groups.seen(rows), groups.members.take(rows).floats()
    gallery = torch.cat([originals, strangers.floats()])
    right = torch.arange(len(rows))
    rebuilt = inverse(seen[None], groups.members.labels[rows])
    nearest = torch.cdist(rebuilt.flatten(1), gallery.flatten(1)).argmin(1)
    return {
        "nearest": round(float((nearest == right).double().mean()), 4),
        "forward": round(float((law(seen, gallery).argmax(1) == right).double().mean()), 4),
    }


def measured(data: str, name: str, settings: dict[str, Any], seed: int, inverse_steps: int) -> dict[str, Any]:
    """Return the row of a setting."""
    asked = check(experiment(data, seed, name, settings, {}))
    setup = make_setup(asked)
    context = DefenseContext(setup.public, setup.model, CPU, seed, None, tuple(asked.fl.augmentation))
    defense = DEFENSES[name](**settings)
    views = tuple(asked.fl.augmentation)
    began = time.process_time()
    public = defense.pretrain(context)
    pretrained = time.process_time()
    prepared = [defense.prepare(shard, context, public, client=at) for at, shard in enumerate(setup.shards)]
    learnt = time.process_time()
    groups = Groups([one for one in prepared if isinstance(one, PreparedShared)])
    stream = torch_stream(seed, "shared images")
    rehearse = prepared[0].surrogate().rehearse
    assert rehearse is not None
    lessons = rehearsed_lessons(setup.auxiliary, rehearse, artefacts=0.0, device=CPU, stream=stream)
    training = InverseTraining(steps=inverse_steps, artefacts=0.0)
    classes = len(setup.data.classes)
    inverse = train_inverse(lessons, training, classes=classes, device=CPU, stream=stream)
    law = SharedLaw.of(lessons)
    order = torch.randperm(len(groups.of), generator=stream)
    victims = order[:VICTIMS]
    x = groups.members.take(victims).floats()
    errors = (inverse(groups.seen(victims)[None], groups.members.labels[victims]) - x).square().mean((1, 2, 3))
    some = torch.randperm(len(groups.learnt), generator=stream)
    sizes = groups.of.bincount()[some].cumsum(0)
    whole = torch.isin(groups.of, some[sizes <= GALLERY]).nonzero()[:, 0]
    single = torch.stack([(groups.of == group).nonzero()[0, 0] for group in some[: GALLERY // 2]])
    strangers = torch.randperm(len(setup.data.test), generator=stream)[: GALLERY - len(single)]
    images = sum(len(shard) for shard in setup.shards)
    return {
        "data": data,
        "seed": seed,
        "defense": name,
        "settings": settings,
        "accuracy": [round(central_accuracy(setup, groups.learnt, views, at), 4) for at in (0, 1)],
        "groups": len(groups.learnt),
        "left_out": images - len(groups.of),
        "mse": round(float(errors.mean()), 6),
        "mse_deviation": round(float(errors.std() / len(errors) ** 0.5), 6),
        "guess_mse": round(class_mean_error(groups.members.take(victims), setup.auxiliary), 6),
        "trained_mse": round(float((groups.seen(victims) - x).square().mean()), 6),
        "inverse": {"steps": inverse.curve.steps[-1], "error": inverse.curve.error, "flat": inverse.curve.flat},
        "found_whole_groups": found(groups, inverse, law, whole, setup.data.test.take(torch.arange(0))),
        "found_one_of_each": found(groups, inverse, law, single, setup.data.test.take(strangers)),
        "pretrain_seconds": round(pretrained - began, 1),
        "seconds_per_1000_images": round(1000 * (learnt - pretrained) / images, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(PROTOCOLS), default="blood")
    parser.add_argument("--defense", default="latent")
    parser.add_argument("--settings", nargs="+", type=json.loads, default=[{}], help="JSON each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inverse-steps", type=int, default=1500)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/shared_images.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for settings in arguments.settings:
        record: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"rows": []}
        asked = {"data": arguments.data, "seed": arguments.seed, "defense": arguments.defense, "settings": settings}
        if any({key: row[key] for key in asked} == asked for row in record["rows"]):
            continue
        row = measured(arguments.data, arguments.defense, settings, arguments.seed, arguments.inverse_steps)
        record = {"machine": about(), "rows": [*record["rows"], row]}
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
