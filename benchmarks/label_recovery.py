"""Which rule recovers the labels behind an update? Hit rates per rule, over batches drawn evenly and unevenly.

    FEDVEIL_DATA=... python benchmarks/label_recovery.py --data mni152 npz:pbc_blood_28.npz

The hit rate is the share of a batch's labels that are recovered, order aside. Every second batch is drawn as the images
come, the others with class shares from a Dirichlet distribution of concentration 1/2, with replacement. "trained" weights
have seen 150 steps of SGD (learning rate 0.05, momentum 0.9, batches of 32) on public images. Settings of the default were
chosen on batches of one half of the auxiliary images, which the attacker of that trial did not hold (--choose).
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fedveil as fv
from fedveil.attacks.labels import recover_labels
from fedveil.attacks.labels.last_layer import LastGradient, find_last_layer, last_gradient
from fedveil.attacks.labels.rules import geng, llg, yin
from fedveil.attacks.labels.rules import idlg as idlg_rule
from fedveil.attacks.target.model import TargetModel, target_model
from fedveil.fl.data import split_train
from fedveil.fl.data.images import Images
from fedveil.fl.messages import ClientUpdate
from fedveil.fl.seeding import torch_stream
from fedveil.fl.training import exchanged


def draw(images: Images, size: int, number: int) -> Images:
    stream = torch_stream(0, "batch", size, number)
    if number % 2 == 0 and size <= len(images):
        return images.take(torch.randperm(len(images), generator=stream)[:size])
    present = images.labels.unique()
    gamma = torch._standard_gamma(torch.full((len(present),), 0.5), generator=stream)
    picked = torch.multinomial(gamma + 1e-9, size, replacement=True, generator=stream)
    by_class = [(images.labels == present[c]).nonzero().flatten() for c in picked.tolist()]
    return images.take(torch.stack([own[torch.randint(len(own), (), generator=stream)] for own in by_class]))


def train(model: nn.Module, images: Images) -> None:
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(150):
        x, y = images.batch(torch.randint(len(images), (32,), generator=torch_stream(1, "training", step)))
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()


def counts_of(labels: Tensor, classes: int) -> Tensor:
    return torch.bincount(labels, minlength=classes)


def rules(
    target: TargetModel, weights: dict[str, Tensor], update: ClientUpdate, size: int, auxiliary: Images
) -> dict[str, Callable[[], Tensor]]:
    layer = find_last_layer(target)
    gradient = last_gradient(update, layer)
    assert gradient.weight is not None
    assert gradient.bias is not None
    some = auxiliary.take(torch.randperm(len(auxiliary), generator=torch_stream(0, "softmax"))[:256])
    classes = target.classes
    grey = torch.linspace(0, 1, 32).view(-1, 1, 1, 1).expand(-1, *target.image_shape)

    def softmax(images: Tensor) -> Tensor:
        with torch.no_grad():
            return target.logits(target.known(weights), images).double().softmax(dim=1)

    def recovered(held: Images | None, sent: ClientUpdate = update) -> Tensor:
        labels = recover_labels(sent, batch_size=size, target=target, weights=weights, auxiliary=held)
        return counts_of(labels, classes)

    no_bias = ClientUpdate(
        {n: t for n, t in update.tensors.items() if n != layer.bias},
        update.examples,
        update.kind,
        update.local_steps,
        update.learning_rate,
    )
    guess = auxiliary.labels[torch.randint(len(auxiliary), (size,), generator=torch_stream(0, "guess", size))]
    found: dict[str, Callable[[], Tensor]] = {
        "guess": lambda: counts_of(guess, classes),
        "llg": lambda: llg(gradient.rows, size),
        "geng, grey": lambda: geng(gradient.bias, softmax(grey), size),
        "geng, auxiliary": lambda: geng(gradient.bias, softmax(some.floats()), size),
        "default": lambda: recovered(None),
        "default, auxiliary": lambda: recovered(auxiliary),
        "default, auxiliary, no bias": lambda: recovered(auxiliary, no_bias),
    }
    if size == 1:
        found["idlg"] = lambda: idlg_rule(LastGradient(gradient.weight, None))
    if size <= classes:
        found["yin"] = lambda: yin(gradient.weight, size)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["mni152"])
    parser.add_argument("--models", nargs="+", default=["lenet", "convnet"])
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 4, 8, 16, 64])
    parser.add_argument(
        "--choose", action="store_true", help="victims from half of the auxiliary images, not private ones"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/label_recovery.json"))
    arguments = parser.parse_args()
    rows = []
    for name in arguments.data:
        data = fv.load_data(name)
        classes = len(data.classes)
        split = split_train(data.train, public_fraction=0.05, auxiliary_fraction=0.2, seed=0)
        victims, auxiliary = split.private, split.auxiliary
        if arguments.choose:
            order = torch.randperm(len(auxiliary), generator=torch_stream(0, "halves"))
            victims, auxiliary = (auxiliary.take(half) for half in order.chunk(2))
        for kind in arguments.models:
            for trained in (False, True):
                model = fv.build_model(kind, image_shape=auxiliary.shape, classes=classes)
                if trained:
                    train(model, split.public)
                weights = {n: w.clone() for n, w in exchanged(model).items()}
                target = target_model(model, image_shape=auxiliary.shape, classes=classes)
                for steps in (1, 5):
                    for size in arguments.sizes:
                        hits: dict[str, list[float]] = defaultdict(list)
                        for number in range(arguments.batches):
                            batch = draw(victims, size, number)
                            update, _ = fv.client_update(model, batch, None, local_steps=steps)
                            truth = counts_of(batch.labels, classes)
                            for rule, counts in rules(target, weights, update, size, auxiliary).items():
                                hits[rule].append(float(torch.minimum(counts(), truth).sum()) / size)
                        rates = {rule: round(fmean(values), 4) for rule, values in hits.items()}
                        about = {"data": Path(name).stem.removeprefix("npz:"), "classes": classes, "model": kind}
                        about |= {"trained": trained, "local_steps": steps, "batch_size": size}
                        rows.append({**about, "batches": arguments.batches, "hit_rate": rates})
                        print(*about.values(), rates, flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
