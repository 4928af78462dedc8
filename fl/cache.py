"""A small disk cache for trained weights and pictures made small, so that the trials of a sweep do not make them again."""

from __future__ import annotations

import hashlib
import inspect
import io
import logging
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedveil.fl.sealed import read_sealed, write_sealed

if TYPE_CHECKING:  # sources of images keep what they read here
    from fedveil.fl.data.images import Images

State = dict[str, Tensor]

_log = logging.getLogger(__name__)


def fingerprint(images: Images) -> str:
    """Return a hash of pixels and labels."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr(tuple(images.pixels.shape)).encode())
    digest.update(images.pixels.contiguous().numpy().tobytes())
    digest.update(images.labels.numpy().tobytes())
    return digest.hexdigest()


def sources(folder: Path) -> str:
    """Return a hash of all Python files below ``folder``: other code may train other weights."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(hashlib.blake2b(path.read_bytes()).digest())
    return digest.hexdigest()


@lru_cache
def _versions(module: str) -> tuple[str, ...]:
    """Return what beside the key decides the weights: PyTorch, this floor and the one that trains, or a user's module."""
    floors = dict.fromkeys(".".join(name.split(".")[:2]) for name in (__name__, module))
    return (torch.__version__, *map(_code, floors))


def _code(name: str) -> str:
    """Return a hash of an imported package's files or of a single module's text; "" where there is no text to see."""
    module = sys.modules[name]
    if getattr(module, "__path__", None):
        return "".join(sources(Path(folder)) for folder in module.__path__)
    try:
        return hashlib.blake2b(inspect.getsource(module).encode(), digest_size=16).hexdigest()
    except (OSError, TypeError):  # an interactive session
        return ""


def cached(folder: Path | None, key: tuple[object, ...], build: Callable[[], State]) -> State:
    """Return ``build()``, or what an earlier call with the same key returned, read from ``folder``.

    A damaged entry is built anew, and so is one from other code or another PyTorch. An entry that cannot be written, as on
    a full disk, is built anew next time.

    Args:
        folder: is made if need be; None turns the cache off.
        key: everything beside the code that the result depends on; its ``repr`` has to tell different keys apart.
        build: returns tensors by name.
    """
    if folder is None:
        return build()
    whole = (*_versions(build.__module__), *key)
    name = hashlib.blake2b(repr(whole).encode(), digest_size=16).hexdigest()
    path = folder / f"{name}.pt"
    state = _read(path, name)
    if state is not None:
        return state
    state = build()
    try:
        _write(state, path, name)
    except OSError as error:
        _log.warning("%s is not kept for other trials: %s", path, error)
    return state


def _write(state: State, path: Path, name: str) -> None:
    whole = io.BytesIO()
    torch.save(state, whole)
    write_sealed(path, whole.getbuffer(), name)


def _read(path: Path, name: str) -> State | None:
    """Return the entry ``name``; None where there is none, or a damaged one."""
    content = read_sealed(path, name)
    if content is None:
        return None
    state: State = torch.load(io.BytesIO(content), weights_only=True)
    return state
