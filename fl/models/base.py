"""What every classifier shares: its specification, its base class and the table of names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from fedveil.fl.registry import Registry


@dataclass(frozen=True)
class ModelSpec:
    """Which classifier, for which images.

    Attributes:
        name: of `MODELS`: ``lenet``, ``convnet``, ``mlp``, ``resnet18``, ``resnet20`` or one of a plug-in.
        image_shape: (C, H, W).
        classes: number of classes.
        norm: ``none``, ``group`` or ``batch``; None for the model's own default.
        width: channels of the first layer; None for the model's own default.
        bottleneck: values in a variational bottleneck before the last linear layer (`fedveil.fl.models.bottleneck`); None
            without one.
    """

    name: str
    image_shape: tuple[int, int, int]
    classes: int
    norm: str | None = None
    width: int | None = None
    bottleneck: int | None = None


class Classifier(nn.Module):
    """Base of the classifiers of this package: (n, C, H, W) images in [0, 1] to (n, classes) logits.

    They are constructed from keywords: ``image_shape`` (C, H, W), ``classes``, ``norm`` and ``width``.
    All of them run under ``torch.func``: no in-place activation, no control flow that depends on data.
    (BatchNorm in training mode needs ``torch.func.replace_all_batch_norm_modules_`` first, as everywhere.)

    Attributes:
        norms: the normalisations that this model allows; the first is its default.
        default_width: channels of the first layer where the specification leaves them open.
        smallest_side: the least height and width in pixels.
        any_layout: it runs whatever the layout of images and features in memory, so it may be trained in the one that is
            fastest. A model that says ``view`` where ``flatten`` or ``reshape`` would do cannot.
    """

    norms: ClassVar[tuple[str, ...]]
    default_width: ClassVar[int]
    smallest_side: ClassVar[int]
    any_layout: ClassVar[bool] = False


MODELS: Registry[type[nn.Module]] = Registry("model")
"""Any module class with the keywords ``image_shape`` and ``classes``; `Classifier` says what else one may declare."""
