"""What users hand to an audit, in the forms that attacks work on; what does not fit is answered in a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from fedveil.attacks.target.model import first_line
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import ClientUpdate

Pictures: TypeAlias = "Images | Tensor | np.ndarray[Any, Any] | Sequence[Any]"
"""(n, C, H, W), or (n, H, W) for grey images: bytes, or floats in [0, 1], which are rounded to bytes as files hold them."""

Labels: TypeAlias = "Tensor | np.ndarray[Any, Any] | Sequence[int]"

Updates: TypeAlias = "ClientUpdate | Mapping[str, Any] | Sequence[Any]"
"""One update, or a list of several: see `fedveil.audit`."""


class KindUnclear(FedveilError):
    """Whether tensors are a gradient, a weight change or weights can't be told from them.

    Args:
        reason: why.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}: pass fv.Update.delta(...)")
        self.reason = reason


def as_device(given: str | torch.device) -> torch.device:
    """Return a device that computes here.

    Raises:
        FedveilError: there is no such device, or this machine has none.
    """
    try:
        device = torch.device(given)
        torch.empty(0, device=device)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        raise FedveilError(f"device: {given!r} can't be used: {first_line(error)}; 'cpu' always can") from error
    return device


def as_floats(what: str, images: Any) -> Tensor:
    """Return (n, C, H, W) float32 images in [0, 1] on the CPU.

    Raises:
        FedveilError: naming ``what``: the shape is another one, or a pixel is not in [0, 1].
    """
    if isinstance(images, Images):
        return images.floats()
    given = as_tensor(what, images)
    pixels = given[:, None] if given.ndim == 3 else given
    if pixels.ndim != 4 or 0 in pixels.shape:
        raise FedveilError(f"{what}: expected (n, C, H, W) or (n, H, W), got {tuple(given.shape)}")
    if pixels.shape[1] > 4 and pixels.shape[3] in (1, 3):
        raise FedveilError(f"{what}: expected channels first, (n, C, H, W), got {tuple(given.shape)}")
    if pixels.dtype == torch.uint8:
        return pixels.float() / 255.0
    pixels = pixels.float()
    # NaN fails the comparison too.
    if not bool(((pixels >= 0) & (pixels <= 1)).all()):
        raise FedveilError(
            f"{what}: expected bytes, or floats in [0, 1]; got values from {float(pixels.min()):g} to"
            f" {float(pixels.max()):g} (clients' normalisation belongs in normalize=(mean, std))"
        )
    return pixels


def as_images(what: str, images: Any, labels: Any) -> Images:
    """Return labelled images.

    Raises:
        FedveilError: naming ``what``, as `as_floats` and `as_labels`.
    """
    if isinstance(images, Images):
        return images if labels is None else Images(images.pixels, as_labels(f"{what}: labels", labels, len(images)))
    pixels = (as_floats(what, images) * 255).round().to(torch.uint8)
    return Images(pixels, as_labels(f"{what}: labels", labels, len(pixels)))


def as_labels(what: str, labels: Any, count: int, *, classes: int | None = None) -> Tensor:
    """Return (``count``,) int64 labels from 0 to ``classes`` - 1.

    Raises:
        FedveilError: naming ``what``: there are more or fewer, or one is not a class.
    """
    given = as_tensor(what, labels)
    flat = given.reshape(-1) if given.ndim == 2 and given.shape[1] == 1 else given
    if flat.shape != (count,) or flat.is_floating_point():
        raise FedveilError(f"{what}: expected {count} whole numbers, got {tuple(given.shape)} {given.dtype}")
    flat = flat.long()
    if count and (int(flat.min()) < 0 or (classes is not None and int(flat.max()) >= classes)):
        upper = "" if classes is None else f" to {classes - 1}"
        raise FedveilError(f"{what}: expected classes from 0{upper}, got {int(flat.min())} to {int(flat.max())}")
    return flat


def as_updates(model: nn.Module, given: Any) -> list[ClientUpdate]:
    """Return one or several updates with the parameters in the model's order.

    Args:
        model: with the weights that the server sent.
        given: see `fedveil.audit`.

    Raises:
        FedveilError: naming the parameter that does not fit, or saying what can't be told from what was given.
    """
    several = (
        isinstance(given, list | tuple)
        and len(given) > 0
        and isinstance(given[0], ClientUpdate | Mapping | list | tuple)
    )
    return [_as_update(model, one) for one in (given if several else [given])]


def _as_update(model: nn.Module, given: Any) -> ClientUpdate:
    if isinstance(given, ClientUpdate):
        tensors, _ = _parameters(model, given.tensors)
        return replace(given, tensors=tensors)
    if isinstance(given, Mapping):
        tensors, has_buffers = _parameters(model, given)
        if has_buffers:
            return ClientUpdate.delta(_change(model, tensors))
        if _size(tensors, minus=model) < _size(tensors) / 2:
            raise KindUnclear(
                "update: these look like a client's weights, not like a gradient, and those that the server sent have to be"
                " subtracted"
            )
        return ClientUpdate.gradient(tensors)
    if isinstance(given, list | tuple):
        tensors, _ = _parameters(model, dict(zip(names_in_order(model, len(given)), given, strict=True)))
        return ClientUpdate.delta(_change(model, tensors))
    raise FedveilError(f"update: expected an fv.Update, a dict or a list of arrays, got {type(given).__name__}")


def names_in_order(model: nn.Module, count: int) -> Iterable[str]:
    """Return the names of a list of arrays, by how many there are: a state_dict, all parameters, or those that are trained.

    Raises:
        FedveilError: it is none of them.
    """
    orders = {
        "state_dict": list(model.state_dict()),
        "parameters": [name for name, _ in model.named_parameters()],
        "trained parameters": [name for name, parameter in model.named_parameters() if parameter.requires_grad],
    }
    for names in orders.values():
        if len(names) == count:
            return names
    has = ", ".join(f"{len(names)} in its {order}" for order, names in orders.items())
    raise FedveilError(f"update: a list of {count} arrays does not fit the model, which has {has}")


def _parameters(model: nn.Module, given: Mapping[str, Any]) -> tuple[dict[str, Tensor], bool]:
    """Return the parameters in the model's order, each by its first name, and whether there were buffers beside them."""
    known = dict(model.named_parameters())
    state = model.state_dict()
    strangers = [name for name in given if name not in known and name not in state]
    if strangers:
        raise FedveilError(
            f"update: the model has no parameter {strangers[0]!r}; it has {', '.join(list(known)[:4])}, ..."
        )
    tensors = {name: as_tensor(f"update: {name}", given[name]).float() for name in known if name in given}
    if not tensors:
        raise FedveilError(f"update: it holds none of the model's parameters {', '.join(list(known)[:4])}, ...")
    for name, tensor in tensors.items():
        if tensor.shape != known[name].shape:
            raise FedveilError(
                f"update: {name}: expected {tuple(known[name].shape)} as in the model, got {tuple(tensor.shape)}"
            )
        if not bool(tensor.isfinite().all()):
            raise FedveilError(f"update: {name}: holds NaN or infinite entries")
    if not any(bool(tensor.any()) for tensor in tensors.values()):
        raise FedveilError("update: all entries are 0, so there is nothing to invert")
    buffers = {name for name, _ in model.named_buffers()}
    return tensors, any(name in buffers for name in given)


def _change(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weight change, of either that or the weights after it; Flower's clients return the latter."""
    moved, size = _size(tensors, minus=model), _size(tensors)
    if 2 * moved <= size:
        change = {name: tensor - model.get_parameter(name).detach().cpu().float() for name, tensor in tensors.items()}
        if not any(bool(tensor.any()) for tensor in change.values()):
            raise FedveilError("update: these are the very weights that the server sent, so there is nothing to invert")
        return change
    if 2 * size <= moved:
        return tensors
    raise KindUnclear(
        "update: whether these are a client's weights or their change can't be told (their size is"
        f" {size:.3g}, their distance from the model's weights {moved:.3g})"
    )


def _size(tensors: Mapping[str, Tensor], *, minus: nn.Module | None = None) -> float:
    parts = [
        tensor if minus is None else tensor - minus.get_parameter(name).detach().cpu().float()
        for name, tensor in tensors.items()
    ]
    return float(torch.stack([part.double().square().sum() for part in parts]).sum().sqrt())


def as_tensor(what: str, value: Any) -> Tensor:
    """Return ``value`` as a detached tensor on the CPU.

    Raises:
        FedveilError: naming ``what``: it holds no numbers.
    """
    try:
        tensor = value.detach() if isinstance(value, Tensor) else torch.as_tensor(np.array(value))
        return tensor.cpu()
    except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
        raise FedveilError(f"{what}: can't be read as numbers: {str(error).splitlines()[0]}") from error
