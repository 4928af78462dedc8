from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedveil.defense import DefenseContext
from fedveil.defense.minimax import MinimaxConfig, MinimaxModules, init_modules, train_minimax
from fedveil.defense.public_models import PublicModels, train_public_models
from fedveil.fl.data.images import Images
from fedveil.fl.models import ModelSpec

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
def context(public: Images, tmp_path_factory: pytest.TempPathFactory) -> DefenseContext:
    """A small classifier on the CPU, with a cache: whatever is trained on public images is trained once."""
    cache: Path = tmp_path_factory.mktemp("modules")
    model = ModelSpec("convnet", public.shape, classes=2, width=4)
    return DefenseContext(public, model, torch.device("cpu"), seed=0, cache=cache)


@pytest.fixture(scope="session")
def public_models(context: DefenseContext) -> PublicModels:
    """Trained long enough to rebuild the images."""
    return train_public_models(context, steps=60)


@pytest.fixture(scope="session")
def config() -> MinimaxConfig:
    """Weights at which privacy is learnt and utility kept."""
    return MinimaxConfig(
        strength=2.0, privacy_weight=2.0, utility_weight=1.0, error_cap=1.0, adversary_steps=2, batch_size=16
    )


@pytest.fixture(scope="session")
def trained(config: MinimaxConfig, public_models: PublicModels, public: Images) -> MinimaxModules:
    """Modules that were trained with those weights long enough to tell."""
    stream = torch.Generator().manual_seed(3)
    begin = init_modules(public_models, config, stream)
    return train_minimax(
        public, public_models, begin, config, steps=60, replay=public, device=torch.device("cpu"), stream=stream
    )
