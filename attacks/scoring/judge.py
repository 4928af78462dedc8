"""The judge of class information: a classifier trained on public images that no defence has touched."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedveil.attacks.scoring.metrics import check_images
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.models import ModelSpec, build_model
from fedveil.fl.seeding import derive_seed, torch_stream

_CHUNK = 256


@dataclass(frozen=True, eq=False)
class Judge:
    """Reads classes in reconstructions. Train one with `train_judge`; it can be pickled and shared by all
    trials.

    Attributes:
        model: (n, C, H, W) in [0, 1] to (n, k) logits, in evaluation mode.
    """

    model: nn.Module

    @torch.no_grad()
    def labels(self, images: Tensor) -> Tensor:
        """Return the (n,) int64 classes that the classifier reads in ``images``, on the images' device.

        Args:
            images: (n, C, H, W) in [0, 1].

        Raises:
            FedveilError: the images are not in [0, 1].
        """
        check_images("images to classify", images)
        device = next(self.model.parameters()).device
        read = [self.model(chunk.to(device, torch.float32)).argmax(1) for chunk in torch.split(images, _CHUNK)]
        return torch.cat(read).to(images.device)

    def accuracy(self, images: Images) -> float:
        """Return the share of ``images`` whose label the classifier reads rightly."""
        return (self.labels(images.floats()) == images.labels).double().mean().item()


def train_judge(
    public: Images,
    *,
    classes: int,
    seed: int,
    model: str = "convnet",
    epochs: int = 20,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    max_shift: int = 2,
    device: torch.device | str = "cpu",
) -> Judge:
    """Train the evaluation classifier with Adam and cross-entropy on randomly shifted images.

    Args:
        public: images of no client, as they are in the data set. The caller must not pass clients' images: a
            judge who has seen the victims would recognise them in noise.
        classes: number of classes.
        seed: fixes weights, order and shifts.
        model: the classifier's name in `fl.models`.
        epochs: passes over ``public``.
        batch_size: images per step.
        learning_rate: Adam's, decayed to zero by a half cosine.
        max_shift: largest shift in pixels to each side, so that a reconstruction that is slightly off still
            reads.
        device: where to train, and where the classifier stays.

    Raises:
        FedveilError: ``public`` is empty, or the model does not fit the images.
    """
    if len(public) == 0:
        raise FedveilError("public data: the evaluation classifier needs images, got none")
    spec = ModelSpec(model, public.shape, classes)
    classifier = build_model(spec, derive_seed(seed, "judge")).to(device)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    stream = torch_stream(seed, "judge", "batches")
    for _ in range(epochs):
        for indices in torch.split(torch.randperm(len(public), generator=stream), batch_size):
            images, labels = public.batch(indices)
            shifted = _shift(images, max_shift, stream).to(device)
            loss = functional.cross_entropy(classifier(shifted), labels.to(device))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        schedule.step()
    return Judge(classifier.eval().requires_grad_(False))


def _shift(images: Tensor, most: int, stream: torch.Generator) -> Tensor:
    """Move each image by its own whole number of pixels, at most ``most`` each way, repeating the border."""
    n, _, height, width = images.shape
    corners = torch.randint(0, 2 * most + 1, (2, n, 1), generator=stream)
    rows = corners[0] + torch.arange(height)
    columns = corners[1] + torch.arange(width)
    padded = functional.pad(images, (most,) * 4, mode="replicate")
    moved = padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)
