"""A small disk cache for trained weights, so that the trials of a sweep do not train the same public module again."""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fl.data.images import Images

State = dict[str, Tensor]


def fingerprint(images: Images) -> str:
    """Return a hash of pixels and labels."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr(tuple(images.pixels.shape)).encode())
    digest.update(images.pixels.contiguous().numpy().tobytes())
    digest.update(images.labels.numpy().tobytes())
    return digest.hexdigest()


def cached(folder: Path | None, key: tuple[object, ...], build: Callable[[], State]) -> State:
    """Return ``build()``, or what an earlier call with the same key returned, read from ``folder``.

    A damaged entry is built anew.

    Args:
        folder: is made if need be; None turns the cache off.
        key: everything that the result depends on; its ``repr`` has to tell different keys apart.
        build: returns tensors by name.
    """
    if folder is None:
        return build()
    path = folder / f"{hashlib.blake2b(repr(key).encode(), digest_size=16).hexdigest()}.pt"
    state = _read(path)
    if state is not None:
        return state
    state = build()
    folder.mkdir(parents=True, exist_ok=True)
    # Trials side by side may build the same entry: each writes its own file and the last rename wins.
    handle, temporary = tempfile.mkstemp(dir=folder, suffix=".part")
    os.close(handle)
    try:
        torch.save(state, temporary)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return state


def _read(path: Path) -> State | None:
    try:
        state: State = torch.load(path, weights_only=True)
    except FileNotFoundError:
        return None
    except (RuntimeError, EOFError, pickle.UnpicklingError):  # what torch raises for files that it did not write
        return None
    return state
