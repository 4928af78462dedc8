from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedveil.attacks.inverse.reader import train_reader
from fedveil.defense import PixelNoise
from fedveil.defense.inverse.learnt import InverseTraining, train_inverse
from fedveil.defense.inverse.lessons import DefendedLessons, Draws
from fedveil.fl.data.images import Images
from fedveil.fl.seeding import torch_stream

CPU = torch.device("cpu")
QUICK = InverseTraining(steps=40, batch_size=16, width=4)

Blobs = Callable[..., Images]


def test_it_reads_classes_from_several_draws_and_what_the_inverse_makes_of_them(blobs: Blobs) -> None:
    auxiliary, victims, noise = blobs(80, 2, side=16), blobs(40, 9, side=16), PixelNoise(strength=0.3)
    stream = torch_stream(1, "reader")
    draws = Draws(noise.data, 2, 1, 0.0)
    lessons = DefendedLessons(auxiliary, draws, device=CPU, stream=stream)
    inverse = train_inverse(lessons, QUICK, classes=2, device=CPU, stream=stream)
    told: list[Tensor | None] = []

    def watched(seen: Tensor, labels: Tensor | None) -> Tensor:
        told.append(labels)
        return inverse(seen, labels)

    watched.observations = 2  # type: ignore[attr-defined]
    reader = train_reader(lessons, watched, QUICK, classes=2, device=CPU, stream=stream)  # type: ignore[arg-type]
    x, y = victims.floats(), victims.labels
    seen = draws(x, y, torch_stream(3, "client"), clean=True)
    read = reader(seen)
    assert float((read == y).float().mean()) > 0.8
    # No label is ever told.
    assert told
    assert all(labels is None for labels in told)
    assert 0.7 < reader.accuracy <= 1
    assert reader.curve.steps[-1] == QUICK.steps


def test_rare_classes_count_alike(blobs: Blobs) -> None:
    many = blobs(60, 2, side=16)
    kept = torch.tensor([at for at in range(60) if at % 2 == 0 or at < 12])
    draws = Draws(lambda x, y, stream: torch.full_like(x, 0.5), 1, 1, 0.0)
    stream = torch_stream(1, "reader")
    quick = InverseTraining(steps=2, batch_size=8, width=4)
    lessons = DefendedLessons(many.take(kept), draws, device=CPU, stream=stream)
    reader = train_reader(lessons, None, quick, classes=3, device=CPU, stream=stream)
    # Nothing can be read from grey: whichever class it answers is one of the two that there are.
    assert reader.accuracy == 0.5
    assert reader(torch.full((1, 2, 1, 16, 16), 0.5)).shape == (2,)
