from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from defense import Preparation
from defense.foundation import Foundation, lay_foundation
from fl.data.images import Images
from fl.models import ModelSpec

torch.set_num_threads(1)

SIDE = 12


def halves(count: int, seed: int) -> Images:
    """Two bits per image: the class is whether left or right is bright, and a private bit says top or bottom."""
    stream = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    private = torch.rand(count, generator=stream) < 0.5
    x: Tensor = 0.1 + 0.05 * torch.rand(count, 1, SIDE, SIDE, generator=stream)
    middle = SIDE // 2
    x[labels == 0, :, :, :middle] += 0.4
    x[labels == 1, :, :, middle:] += 0.4
    x[private, :, :middle] += 0.4
    x[~private, :, middle:] += 0.4
    return Images((x * 255).round().to(torch.uint8), labels)


@pytest.fixture(scope="session")
def public() -> Images:
    return halves(160, seed=0)


@pytest.fixture(scope="session")
def private() -> Images:
    return halves(80, seed=1)


@pytest.fixture(scope="session")
def preparation(public: Images, tmp_path_factory: pytest.TempPathFactory) -> Preparation:
    """A small classifier on the CPU, with a cache: whatever is trained on public images is trained once."""
    cache: Path = tmp_path_factory.mktemp("modules")
    model = ModelSpec("convnet", public.shape, classes=2, width=4)
    return Preparation(public, model, torch.device("cpu"), seed=0, cache=cache)


@pytest.fixture(scope="session")
def foundation(preparation: Preparation) -> Foundation:
    """Trained long enough to rebuild the images."""
    return lay_foundation(preparation, steps=60)
