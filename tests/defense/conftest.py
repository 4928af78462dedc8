from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from defense import Preparation
from defense.foundation import Foundation, lay_foundation
from defense.minimax import Game, Players, newcomers, play
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


@pytest.fixture(scope="session")
def game() -> Game:
    """Weights at which privacy is learnt and utility kept."""
    return Game(strength=2.0, privacy_weight=2.0, utility_weight=1.0, ceiling=1.0, adversary_steps=2, batch_size=16)


@pytest.fixture(scope="session")
def learnt(game: Game, foundation: Foundation, public: Images) -> Players:
    """That game, played long enough to tell."""
    stream = torch.Generator().manual_seed(3)
    begin = newcomers(foundation, game, stream)
    return play(public, foundation, begin, game, steps=60, anchor=public, device=torch.device("cpu"), stream=stream)
