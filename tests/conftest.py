from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from fedveil.attacks import ATTACKS
from fedveil.defense import DEFENSES
from fedveil.fl.data.source import named
from fedveil.fl.models import MODELS
from fedveil.fl.partition import PARTITIONS
from fedveil.fl.strategies import STRATEGIES
from fedveil.orchestrator.cluster.connection import connect, offline_environment
from fedveil.orchestrator.config import plugins

# Ray reads some of these when it is imported, which the first test module that needs it does.
offline_environment()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A Ray cluster of this process with two declared cores, one for all tests: it takes seconds to start."""
    with connect("local", cpus=2):
        yield


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
