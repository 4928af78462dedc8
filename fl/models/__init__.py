"""Classifiers by name. `ModelSpec` says which one; it is hashable: a worker keeps one model per spec."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from fedveil.fl.errors import FedveilError
from fedveil.fl.models import convnet, lenet, mlp, resnet
from fedveil.fl.models.base import MODELS, Classifier, ModelSpec
from fedveil.fl.models.bottleneck import insert_bottleneck
from fedveil.fl.seeding import derive_seed, seeded_globals

__all__ = [
    "MODELS",
    "Classifier",
    "ModelSpec",
    "build_model",
    "convnet",
    "init_model",
    "lenet",
    "mlp",
    "model_on",
    "resnet",
]


def build_model(spec: ModelSpec, seed: int = 0) -> nn.Module:
    """Build the classifier that ``spec`` names, on the CPU and in training mode.

    Its first weights are drawn from the stream "model" of ``seed``. The global random generators stay as they
    were.

    Raises:
        FedveilError: the name, the norm, the width, the number of classes or the image size is not allowed, the model's
            constructor does not take what it has to, or it has no place for a bottleneck.
    """
    model = MODELS[spec.name]
    what = f"model {spec.name!r}"
    norms: tuple[str, ...] = getattr(model, "norms", ())
    if norms and spec.norm not in (None, *norms):
        raise FedveilError(f"{what}: norm {spec.norm!r} is not allowed; allowed: {', '.join(norms)}")
    width = getattr(model, "default_width", None) if spec.width is None else spec.width
    if width is not None and width < 1:
        raise FedveilError(f"{what}: width {width} is not allowed; it must be at least 1")
    if spec.classes < 2:
        raise FedveilError(f"{what}: {spec.classes} classes are not allowed; at least 2")
    channels, height, side = spec.image_shape
    smallest = getattr(model, "smallest_side", 1)
    if channels < 1 or min(height, side) < smallest:
        raise FedveilError(
            f"{what}: image shape {spec.image_shape} is not allowed; at least 1 channel and {smallest}x{smallest} pixels (in"
            " an experiment, data.size scales images)"
        )
    norm = norms[0] if norms and spec.norm is None else spec.norm
    keywords: dict[str, object] = {"image_shape": spec.image_shape, "classes": spec.classes}
    keywords |= {key: value for key, value in {"norm": norm, "width": width}.items() if value is not None}
    try:
        inspect.signature(model).bind(**keywords)
    except TypeError as error:
        raise FedveilError(f"{what}: {model.__name__} does not take {', '.join(keywords)} ({error})") from error
    with seeded_globals(derive_seed(seed, "model")):
        built = model(**keywords)
        if spec.bottleneck is not None:
            insert_bottleneck(built, spec.bottleneck)
        return built


def model_on(device: torch.device, spec: ModelSpec, seed: int = 0) -> nn.Module:
    """Build the classifier that ``spec`` names on a device, laid out in memory to train fast there.

    On a CPU the kernels of a model that takes any layout hold their channels last, and its features follow them: a step of
    training then takes 3 to 30 % less, most with few channels and GroupNorm (``benchmarks.layouts``). Sums are taken in
    another order, so weights differ from those of `build_model` trained alike in the last digits. That is a matter of the
    model and the kind of device alone, never of a measurement: all workers make the same.

    Raises:
        FedveilError: as `build_model`.
    """
    model = build_model(spec, seed).to(device)
    if device.type == "cpu" and getattr(model, "any_layout", False):
        model.to(memory_format=torch.channels_last)
    return model


def init_model(spec: ModelSpec, seed: int) -> dict[str, Tensor]:
    """Return the first weights of a federated training, by name, on the CPU: parameters and floating buffers.

    A pure function of its arguments. Integer buffers (BatchNorm's batch counter, which nothing reads) are
    left out; a model's ``load_state_dict`` takes the result as it is.

    Raises:
        FedveilError: as `build_model`.
    """
    state = build_model(spec, seed).state_dict()
    return {name: tensor.detach().clone() for name, tensor in state.items() if tensor.is_floating_point()}
