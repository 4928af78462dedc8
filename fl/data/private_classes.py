"""Some classes of a data set for those who train, the others for whoever attacks what they have trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from fedveil.fl.data.images import ImageData, Images
from fedveil.fl.errors import FedveilError


def with_classes(data: ImageData, private: Sequence[int]) -> tuple[ImageData, Images]:
    """Keep the images of some classes, and return the training images of all others beside them.

    >>> import fedveil as fv
    >>> kept, others = with_classes(fv.load_data('mni152'), [0, 2])
    >>> kept.classes, sorted(set(kept.test.labels.tolist())), set(others.labels.tolist())
    (('sagittal', 'axial'), [0, 1], {0})

    Args:
        data: with K classes.
        private: the numbers of the classes to keep, each once.

    Returns:
        The data set with these classes alone, numbered anew in ascending order, and the other classes' training images,
        numbered anew likewise.

    Raises:
        FedveilError: there is no such class, or none is left beside them.
    """
    count = len(data.classes)
    if not all(0 <= label < count for label in private):
        raise FedveilError(f"data.private_classes: given {list(private)}; allowed: 0 to {count - 1}")
    others = [label for label in range(count) if label not in private]
    if not others:
        raise FedveilError(f"data.private_classes: given all {count} classes; allowed: at most {count - 1}")
    kept = sorted(private)
    train, val, test = (_of(images, kept) for images in (data.train, data.val, data.test))
    classes = tuple(data.classes[label] for label in kept)
    return replace(data, train=train, val=val, test=test, classes=classes), _of(data.train, others)


def _of(images: Images, classes: Sequence[int]) -> Images:
    """The images of some classes, which are numbered by their place in ``classes``."""
    labels = torch.tensor(classes)
    chosen = images.take(torch.isin(images.labels, labels).nonzero()[:, 0])
    return Images(chosen.pixels, torch.searchsorted(labels, chosen.labels), chosen.groups)
