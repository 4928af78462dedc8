"""How often a victim is found among 1,000 images, by forward matching, when it was seen R times behind fresh noise.

PneumoniaMNIST, all images pooled: 400 public, 1,800 of the attacker, 1,100 of one client, of which the first are the victims
and the first thousand the gallery. The attacker holds the client's modules. ``images``: it holds what the client trained on.
``updates``: only gradients of a ConvNet of width 16 at its initial weights, and it inverts nothing. ``nearest``: without the
defence's law, the gallery's nearest image to the mean of what the client trained on. Run from the repository's root:

    FEDVEIL_DATA=... python -m benchmarks.identification
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import about
from fedveil.attacks.adaptive.forward_matching import from_images, from_updates
from fedveil.attacks.audit.capture import capture, together
from fedveil.attacks.base import Knowledge, Observation
from fedveil.attacks.scoring import Gallery
from fedveil.attacks.scoring.victims import VictimBatch
from fedveil.attacks.target.model import target_model
from fedveil.defense import Defense, DefenseContext, LatentAutoencoder, PixelNoise
from fedveil.defense.base import PreparedDefense
from fedveil.fl.data import load_data
from fedveil.fl.data.images import Images
from fedveil.fl.messages import Likeness, ThreatModel, UpdateKind
from fedveil.fl.models import ModelSpec, build_model, init_model
from fedveil.fl.seeding import torch_stream
from fedveil.fl.training import LocalTraining

RESULTS = Path(__file__).parent / "results" / "identification.json"
SIZES = {"public": 400, "auxiliary": 1800, "client": 1100}
GALLERY = 1000
TIMES = (1, 4)
DEFENSES: dict[str, Defense[Any]] = {
    "latent_autoencoder 1.68": LatentAutoencoder(strength=1.68, privacy_weight=1.75, steps=150, client_steps=40),
    **{f"pixel_noise {strength}": PixelNoise(strength=strength) for strength in (0.2, 0.4, 0.6)},
}


def split() -> list[Images]:
    """Return the public, the auxiliary, the client's and the other private images."""
    data = load_data("pneumoniamnist", pool=True)
    everything = Images(
        torch.cat([data.train.pixels, data.val.pixels, data.test.pixels]),
        torch.cat([data.train.labels, data.val.labels, data.test.labels]),
    )
    order = torch.randperm(len(everything), generator=torch_stream(0, "identification"))
    sizes = [*SIZES.values(), len(everything) - sum(SIZES.values())]
    return [everything.take(part) for part in order.split(sizes)]


def observed(
    private: Images, hooks: PreparedDefense, spec: ModelSpec, count: int
) -> list[tuple[Observation, VictimBatch]]:
    """What each of the first images, alone in its batch, sends in as many rounds as the longest series has."""
    model, weights = build_model(spec), init_model(spec, 0)
    training = LocalTraining(UpdateKind.DELTA, 1, 1, 0.05)
    seen = []
    for number in range(count):
        batch = VictimBatch(number, 0, (number,), private.take(torch.tensor([number])))
        rounds = [
            capture(model, weights, batch, hooks, training, local_steps=1, stream=torch_stream(0, number, time))
            for time in range(max(TIMES))
        ]
        observation, truth = together(rounds)
        first, *others = (replace(one, labels=truth.labels) for one in observation.series)
        seen.append((replace(first, repeats=tuple(others)), truth))
    return seen


def rate(likenesses: Sequence[Likeness], candidates: Tensor) -> float:
    scores = torch.cat([likeness(candidates) for likeness in likenesses])
    return float((scores.argmax(1) == torch.arange(len(scores))).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--victims", type=int, default=256, help="whose images are compared")
    parser.add_argument("--updates", type=int, default=48, help="of these, whose updates are compared too")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    public, auxiliary, private, others = split()
    spec = ModelSpec("convnet", private.shape, 2, width=16)
    gallery = Gallery(torch.cat([private.pixels, others.pixels])[:GALLERY])
    candidates = gallery.floats
    target = target_model(build_model(spec), image_shape=spec.image_shape, classes=2)
    granted = ThreatModel(auxiliary_data=True, defense_algorithm=True, defense_modules=True)
    knowledge = Knowledge(granted, target, torch.device("cpu"), seed=0, auxiliary=auxiliary)
    rows: list[dict[str, Any]] = []
    for name, settings in DEFENSES.items():
        context = DefenseContext(public, spec, torch.device("cpu"), seed=0)
        hooks = settings.prepare(private, context, settings.pretrain(context), client=0)
        surrogate = hooks.surrogate()
        seen = observed(private, hooks, spec, args.victims)
        for times in TIMES:
            draws = [torch.stack(truth.draws[:times]) for _, truth in seen]
            by_images = from_images(draws, [truth.labels for _, truth in seen], surrogate, knowledge, exact=True)
            sent = [replace(one, repeats=one.repeats[: times - 1]) for one, _ in seen[: args.updates]]
            nearest = gallery.nearest(torch.cat([own.mean(0) for own in draws]))
            row = {
                "defense": name,
                "observations": times,
                "nearest": float((nearest == torch.arange(len(nearest))).double().mean()),
                "images": rate(by_images, candidates),
                "updates": rate(from_updates(sent, surrogate, knowledge), candidates),
            }
            print(json.dumps(row), flush=True)
            rows.append(row)
    protocol = {"gallery": GALLERY, "victims": args.victims, "victims_by_updates": args.updates, **SIZES}
    args.out.write_text(json.dumps({"machine": about(), "protocol": protocol, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
