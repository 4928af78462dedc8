from __future__ import annotations

from collections.abc import Iterator

import pytest

from fedveil.orchestrator.cluster.connection import connect, offline_environment

# Ray reads some of these when it is imported, which the first test module that needs it does.
offline_environment()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A Ray cluster of this process with two declared cores, one for all tests: it takes seconds to start."""
    with connect("local", cpus=2):
        yield
