from __future__ import annotations

import pytest
import torch

from fedveil.defense import DefenseContext
from fedveil.defense.fitting import frozen
from fedveil.defense.inverse.network import InverseNetwork
from fedveil.defense.latent import pool as pool_module
from fedveil.defense.latent.game import Adversary
from fedveil.defense.latent.pool import Features, Pool
from fedveil.fl.data.images import Images
from fedveil.fl.models import build_model


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of the pool are trained for a moment."""
    monkeypatch.setattr(pool_module, "SHORTEST", 2)
    monkeypatch.setattr(pool_module, "LONGEST", 6)


@pytest.fixture(scope="session")
def pool(context: DefenseContext, public: Images) -> Pool:
    """Three networks that nobody trained."""
    networks = tuple(frozen(build_model(context.model, seed)) for seed in range(3))
    found = [Features(network, public.shape).of(public) for network in networks]
    scales = tuple(tuple(float((x - x.mean(0)).square().sum(1).mean()) for x in stages) for stages in found)
    return Pool(networks, scales)


@pytest.fixture(scope="session")
def adversary(public: Images) -> Adversary:
    """One that nobody trained, which has met class 0 alone."""
    torch.manual_seed(4)
    network = frozen(InverseNetwork(public.shape, classes=2, width=4, several=False))
    return Adversary(network, torch.tensor([0]), baseline=0.2, error=0.09, fresh_error=0.1)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
