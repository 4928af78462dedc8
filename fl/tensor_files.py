"""Tensors from files of unknown make: NumPy's ``.npz``, and ``.pt`` as `torch.save` writes it. Nothing is ever run."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedveil.fl.data.files import check_members, open_plain
from fedveil.fl.errors import FedveilError, brief
from fedveil.fl.memory import check_room

Tensors = dict[str, Tensor] | list[Tensor]
"""By name, or in an order."""


def read_tensors(path: Path) -> Tensors:
    """Read tensors by name, or in an order.

    An archive of `np.savez` with keywords, or what `torch.save` makes of a mapping, gives them by name; `np.savez` without
    keywords (``arr_0``, ``arr_1``, ...) or a list give them in an order. Which of the two it is the content tells, not the
    file's name.

    Raises:
        FedveilError: the file is missing, damaged, larger than the memory, or holds something else than numbers.
    """
    with open_plain(path) as file:
        if not zipfile.is_zipfile(file):
            raise FedveilError(
                f"{path}: neither an .npz archive nor what torch.save writes (a zip archive), or it is damaged"
            )
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
        check_members(path, members, "its tensors", copies=2)
        file.seek(0)
        pickled = any(member.filename.rpartition("/")[2] == "data.pkl" for member in members)
        try:
            found = _torch(file.read()) if pickled else _numpy(file)
        except Exception as error:  # zipfile, NumPy and PyTorch each raise their own
            reason = " ".join(str(error).split()).partition(". ")[0] or type(error).__name__
            raise FedveilError(f"{path}: {brief(reason)}; allowed: tensors by name, or a list of them") from error
    _check(path, found)
    return found


def _torch(content: bytes) -> Tensors:
    try:
        held: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError("it holds other objects than tensors, which are not loaded: they might run code") from error
    if isinstance(held, Mapping):
        return {str(name): value for name, value in held.items()}
    if isinstance(held, Sequence) and not isinstance(held, str):
        return list(held)
    raise ValueError(f"it holds a {type(held).__name__}")


def _numpy(file: Any) -> Tensors:
    with np.load(file, allow_pickle=False) as archive:
        tensors = {name: torch.as_tensor(np.array(archive[name])) for name in archive.files}
    if tensors and all(re.fullmatch(r"arr_\d+", name) for name in tensors):
        return [tensors[f"arr_{at}"] for at in range(len(tensors))]
    return tensors


def _check(path: Path, found: Tensors) -> None:
    named = found.items() if isinstance(found, dict) else ((f"entry {at}", one) for at, one in enumerate(found))
    numbers = 0
    for name, tensor in named:
        if not isinstance(tensor, Tensor):
            raise FedveilError(f"{path}: {brief(name)} is a {type(tensor).__name__}; allowed: tensors")
        if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise FedveilError(f"{path}: {brief(name)} is no plain tensor; allowed: dense ones, with their numbers")
        if tensor.is_complex():
            raise FedveilError(f"{path}: {brief(name)} is complex; allowed: real numbers")
        numbers += tensor.numel()
    if not numbers:
        raise FedveilError(f"{path}: it holds no numbers")
    # A tensor may claim more numbers than are stored: one of them, repeated.
    check_room(4 * numbers, f"{path}: its {numbers} numbers")
