"""Not federating: a classifier trained as well as can be on images that lie in one place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedveil.fl.augmentation import augment, check_augmentations
from fedveil.fl.cache import State, cached, fingerprint
from fedveil.fl.data.images import Images
from fedveil.fl.errors import SettingError
from fedveil.fl.metrics import accuracy
from fedveil.fl.models import ModelSpec, model_on
from fedveil.fl.seeding import derive_seed, seeded_globals, torch_stream
from fedveil.fl.stepping import Adam
from fedveil.fl.training import exchanged
from fedveil.fl.until_flat import Curve, hold_out, train_for, train_until_flat

BATCH = 64
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05
TOLERANCE = 0.05
"""Flat is a share of wrong answers that the last doubling of the steps brought down by less than this, relative."""
ENOUGH = 500
"""Images from which on a fifth is held out; of fewer, an end chosen by some tens of them would be chosen by chance."""
PER_IMAGE = 25
"""Steps per image where none are held out: each image is then seen 1,600 times."""
FEWEST, MOST_FOR_FEW = 100, 1500
"""And between so many steps."""
_CHUNK = 256


@dataclass(frozen=True, kw_only=True)
class CentralTraining:
    """How a classifier is trained on images in one place.

    >>> CentralTraining(augmentation=("flip", "shift")).steps
    2000

    Attributes:
        steps: at most so many of 64 images, at least 1.
        augmentation: see `fedveil.fl.augmentation.augment`; without any, few images are soon learnt by heart.

    Raises:
        FedveilError: a setting is not allowed.
    """

    steps: int = 2000
    augmentation: tuple[str, ...] = ("shift",)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise SettingError("central training", "steps", self.steps, "allowed: at least 1")
        check_augmentations(self.augmentation)


@dataclass(frozen=True)
class CentralModel:
    """What came of it.

    Attributes:
        weights: parameters and floating-point buffers by name, on the CPU; see `fedveil.fl.training.exchanged`.
        curve: on n validation images: steps, the share (wrong answers + 1) / (n + 1), and whether that was flat at the end;
            None where there were none. The one more makes the curve of a flawless classifier flat.
    """

    weights: State
    curve: Curve | None = None


def train_classifier(
    images: Images,
    spec: ModelSpec,
    training: CentralTraining,
    *,
    validation: Images | None,
    seed: int,
    device: torch.device,
) -> CentralModel:
    """Train with AdamW (Loshchilov and Hutter 2019) on augmented batches, which are drawn with replacement.

    With validation images the rate is constant until the accuracy on them is flat, or ``training.steps`` are nearly over,
    then it falls, and the weights are the best by it (`fedveil.fl.until_flat.train_until_flat`). Without, exactly
    ``training.steps`` are taken, and the rate rises and falls over them. Cross-entropy would be no measure of the end: for
    classes that are easily told it falls for ever.

    Args:
        images: to train on, at least one.
        spec: of the classifier.
        training: see `CentralTraining`.
        validation: other images, at least one, and no test images; None for a length that is known.
        seed: of first weights, batches and augmentation.
        device: where to train.
    """
    stream = torch_stream(seed, "central")
    optimizer = partial(Adam, weight_decay=WEIGHT_DECAY)

    def loss(model: nn.Module) -> Tensor:
        x, y = images.batch(torch.randint(len(images), (BATCH,), generator=stream))
        x = augment(x, training.augmentation, stream)
        return F.cross_entropy(model(x.to(device)), y.to(device))

    def error(model: nn.Module) -> float:
        logits = torch.cat([model(some.to(device)) for some in shown.floats().split(_CHUNK)])
        wrong = (1 - accuracy(logits.cpu(), shown.labels)) * len(shown)
        return (wrong + 1) / (len(shown) + 1)

    model = model_on(device, spec, seed).train()
    with seeded_globals(derive_seed(seed, "central", "dropout"), device):
        if validation is None:
            train_for(model, loss, steps=training.steps, learning_rate=LEARNING_RATE, optimizer=optimizer)
            return CentralModel(_on_cpu(model))
        shown = validation
        trained = train_until_flat(
            model,
            loss,
            error,
            steps=training.steps,
            tolerance=TOLERANCE,
            learning_rate=LEARNING_RATE,
            optimizer=optimizer,
        )
    return CentralModel(_on_cpu(trained.module), trained.curve)


def train_centrally(
    images: Images,
    spec: ModelSpec,
    training: CentralTraining,
    *,
    seed: int,
    device: torch.device,
    cache: Path | None = None,
) -> State:
    """Return the weights of a classifier that makes the most of ``images``, whatever their number, on the CPU.

    From `ENOUGH` images on, a fifth is held out to find after how many steps the training is flat, and then all of them are
    trained on for so many: a fifth of the images is worth more than the best of several looks. Of fewer, too few could be
    held out to choose an end by, and the length is `steps_for_few`. No other images are looked at, neither test nor the
    validation images of anyone else: whoever has these images alone can do the same.

    Args:
        images: at least one.
        spec: of the classifier.
        training: see `CentralTraining`.
        seed: of all randomness.
        device: where to train.
        cache: folder where the weights are kept for the next call with the same arguments; None for no cache.
    """

    def build() -> State:
        if len(images) < ENOUGH:
            steps = steps_for_few(len(images), most=training.steps)
        else:
            train, held_out = hold_out(images, torch_stream(seed, "central", "held out"))
            found = train_classifier(train, spec, training, validation=held_out, seed=seed, device=device)
            steps = found.curve.steps[-1] if found.curve else training.steps
        known = replace(training, steps=steps)
        return train_classifier(images, spec, known, validation=None, seed=seed, device=device).weights

    return cached(cache, ("central", fingerprint(images), spec, training, seed, device.type), build)


def steps_for_few(count: int, *, most: int) -> int:
    """Return the length of a training on so few images that none of them can be held out.

    >>> [steps_for_few(count, most=2000) for count in (1, 23, 60, 400)]
    [100, 575, 1500, 1500]
    """
    return min(most, max(FEWEST, min(MOST_FOR_FEW, PER_IMAGE * count)))


def _on_cpu(model: nn.Module) -> State:
    return {name: value.cpu().clone(memory_format=torch.contiguous_format) for name, value in exchanged(model).items()}
