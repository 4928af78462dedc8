from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from clock import Clock
from hypothesis import HealthCheck, settings

from fedveil.attacks import ATTACKS
from fedveil.defense import DEFENSES
from fedveil.fl import progress
from fedveil.fl.data.images import Images
from fedveil.fl.data.source import named
from fedveil.fl.models import MODELS
from fedveil.fl.partition import PARTITIONS
from fedveil.fl.seeding import torch_stream
from fedveil.fl.strategies import STRATEGIES
from fedveil.orchestrator.cluster.connection import connect, offline_environment
from fedveil.orchestrator.config import plugins

Blobs = Callable[..., Images]

# Ray reads some of these when it is imported, which the first test module that needs it does.
offline_environment()
# No test may depend on how busy the machine is.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A Ray cluster of this process with two declared cores, one for all tests: it takes seconds to start."""
    with connect("local", cpus=2):
        yield


@pytest.fixture(scope="session")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all tests have learnt on public images alone, see `tiny.share_cache`."""
    return tmp_path_factory.mktemp("modules")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock by which lines about long work wait."""
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture(scope="session")
def blobs() -> Blobs:
    """A bright blob anywhere in the upper (class 0) or lower (class 1) half, on a ramp: structure, and much variety."""

    def make(count: int, seed: int, *, side: int = 16, channels: int = 1) -> Images:
        stream = torch_stream(seed, "blobs")
        labels = torch.arange(count) % 2
        grid = torch.arange(side) / side
        row, column, ramp = torch.rand((3, count, 1, 1), generator=stream)
        row = (labels.view(-1, 1, 1) + row) / 2
        distance = (grid.view(1, -1, 1) - row).square() + (grid.view(1, 1, -1) - column).square()
        image = 0.6 * (-distance / 0.05).exp() + 0.4 * ramp * grid.view(1, 1, -1)
        pixels = (255 * image).round().to(torch.uint8)
        return Images(pixels[:, None].repeat(1, channels, 1, 1), labels)

    return make


@pytest.fixture(autouse=True)
def nothing_stays_registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers or plugs in is gone after it."""
    for registry in (ATTACKS, DEFENSES, MODELS, PARTITIONS, STRATEGIES, named):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))  # type: ignore[attr-defined]
    monkeypatch.setattr(plugins, "_installed", dict(plugins._installed))
    monkeypatch.setattr(plugins._carried, "sources", dict(plugins._carried.sources))
    before = set(plugins._carried.sources)
    yield
    for name in set(plugins._carried.sources) - before:
        sys.modules.pop(name, None)
