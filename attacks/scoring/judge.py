"""The judge of class information: a classifier trained on auxiliary images that no defence has touched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fedveil.attacks.scoring.augment import augment, class_keeping_mirrors
from fedveil.attacks.scoring.metrics import check_images
from fedveil.fl.cache import State, cached, fingerprint
from fedveil.fl.data.images import Images
from fedveil.fl.data.subsets import stratified
from fedveil.fl.errors import FedveilError
from fedveil.fl.models import ModelSpec, build_model
from fedveil.fl.progress import Pace
from fedveil.fl.seeding import derive_seed, torch_stream
from fedveil.fl.stepping import Adam

_CHUNK = 256
_SIDE = 32
_HELD_OUT = 0.2
_MOST_HELD_OUT = 500
_DECAY = 0.98
_FLAT = 0.01


@dataclass(frozen=True, eq=False)
class Judge:
    """Reads classes in reconstructions. Train one with `train_judge`; it can be pickled and shared by all
    trials.

    Attributes:
        model: (n, C, H, W) in [0, 1] to (n, k) logits, in evaluation mode.
    """

    model: nn.Module

    def labels(self, images: Tensor) -> Tensor:
        """Return the (n,) int64 classes that the classifier reads in ``images``, on the images' device.

        Args:
            images: (n, C, H, W) in [0, 1].

        Raises:
            FedveilError: the images are not in [0, 1].
        """
        return self.logits(images).argmax(1)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return the (n, k) logits of ``images``, on the images' device. Arguments and errors are those of `labels`."""
        check_images("images to classify", images)
        device = next(self.model.parameters()).device
        read = [self.model(chunk.to(device, torch.float32)) for chunk in torch.split(images, _CHUNK)]
        return torch.cat(read).to(images.device)


class _Reader(nn.Module):
    """A ConvNet that sees at most 32 px a side: classes are read from shapes, and time does not grow with the images."""

    def __init__(self, shape: tuple[int, int, int], classes: int, seed: int) -> None:
        super().__init__()
        channels, height, width = shape
        size = (min(height, _SIDE), min(width, _SIDE))
        self.shrink = nn.AdaptiveAvgPool2d(size)
        spec = ModelSpec("convnet", (channels, *size), classes, norm="batch")
        self.network = build_model(spec, seed).to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Return (n, classes) logits."""
        small = self.shrink(images).contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.network(small)
        return logits


def train_judge(
    auxiliary: Images,
    *,
    classes: int,
    seed: int,
    steps: int = 600,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    weight_decay: float = 0.05,
    check_every: int = 50,
    patience: int = 4,
    device: torch.device | str = "cpu",
) -> Judge:
    """Train with AdamW on augmented images, all classes equally often, until a held-out curve is flat.

    A fifth of the images is held out, by which the end of the training is chosen. The judge is the running mean of
    the weights (Polyak averaging): it stands in for a decay of the learning rate, which has to know the end beforehand.

    Args:
        auxiliary: images of no client, as they are in the data set. The caller must not pass clients' images: a
            judge that has seen the victims would recognise them in noise.
        classes: number of classes.
        seed: fixes weights, batches and augmentation.
        steps: at most so many; 600 of 64 images of 32 px take about 25 s on one core.
        batch_size: images per step, but at most a quarter of those there are, and at least 16.
        learning_rate: AdamW's.
        weight_decay: AdamW's.
        check_every: steps between two looks at the held-out images.
        patience: looks in a row that end the training if none finds the loss lower by 0.01.
        device: where to train, and where the classifier stays.

    Raises:
        FedveilError: ``auxiliary`` is empty, or the images are smaller than 8 px.
    """
    if len(auxiliary) == 0:
        raise FedveilError("auxiliary data: the judge of classes needs images, got none")
    reader = _Reader(auxiliary.shape, classes, derive_seed(seed, "judge")).to(device)
    mean = AveragedModel(reader, multi_avg_fn=get_ema_multi_avg_fn(_DECAY), use_buffers=True).eval()
    optimizer = Adam(reader.parameters(), learning_rate=learning_rate, weight_decay=weight_decay)
    stream = torch_stream(seed, "judge", "batches")
    pixels = torch.cat([reader.shrink(chunk.float()) for chunk in auxiliary.pixels.split(_CHUNK)]).round()
    train, held_out = _split(Images(pixels.to(torch.uint8), auxiliary.labels), stream)
    mirrored = class_keeping_mirrors(train, held_out)
    images, labels = held_out.floats().to(device), held_out.labels.to(device)
    weights = _per_class(labels, classes)
    shares = _per_class(train.labels, classes)[train.labels]
    batch_size = min(batch_size, max(16, len(train) // 4))
    least, idle = float("inf"), 0
    pace = Pace()
    for step in range(1, steps + 1):
        x, y = train.batch(torch.multinomial(shares, batch_size, replacement=True, generator=stream))
        loss = functional.cross_entropy(reader(augment(x, stream, mirrored=mirrored).to(device)), y.to(device))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        mean.update_parameters(reader)
        pace.say(step / steps, f"judge of classes: step {step} of at most {steps}", most=True)
        if step % check_every == 0:
            with torch.no_grad():
                error = float(functional.cross_entropy(mean(images), labels, weights))
            least, idle = (error, 0) if error < least - _FLAT else (least, idle + 1)
            if idle == patience:
                break
    return Judge(mean.module.requires_grad_(False))


def cached_judge(
    auxiliary: Images, *, classes: int, seed: int, device: torch.device, cache: Path | None = None
) -> Judge:
    """Return the judge that `train_judge` trains, on the CPU, from the cache if it is there.

    Raises:
        FedveilError: as `train_judge`.
    """

    def build() -> State:
        return train_judge(auxiliary, classes=classes, seed=seed, device=device).model.cpu().state_dict()

    state = cached(cache, ("judge", classes, fingerprint(auxiliary), seed, device.type), build)
    reader = _Reader(auxiliary.shape, classes, seed)
    reader.load_state_dict(state)
    return Judge(reader.eval().requires_grad_(False))


def _split(images: Images, stream: torch.Generator) -> tuple[Images, Images]:
    """Return the images to train on and those to hold out; the same twice where a fifth is fewer than the classes."""
    count = min(_MOST_HELD_OUT, int(_HELD_OUT * len(images)))
    if count < len(torch.unique(images.labels)):
        return images, images
    held_out = stratified(images.labels, count, stream)
    train = torch.ones(len(images), dtype=torch.bool).index_fill(0, held_out, False)
    return images.take(train.nonzero()[:, 0]), images.take(held_out)


def _per_class(labels: Tensor, classes: int) -> Tensor:
    """Return (k,) float32 weights under which all classes among ``labels`` count alike."""
    return 1.0 / torch.bincount(labels, minlength=classes).clamp(min=1)
