from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.faults import nodes


@pytest.fixture
def two_nodes(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """The address of a cluster of two nodes, and the process number of the second one's raylet."""
    with nodes.two_nodes(tmp_path) as cluster:
        yield cluster


@pytest.mark.slow
def test_a_node_that_is_killed_costs_no_bit_and_its_worker_is_not_waited_for(
    two_nodes: tuple[str, int], tmp_path: Path
) -> None:
    """What the lost node had under way is replayed on the other one, on which there is no room for the lost worker."""
    address, raylet = two_nodes
    command = [sys.executable, str(Path(__file__).with_name("two_nodes.py")), str(tmp_path), address, str(raylet)]
    done = subprocess.run(command, env=nodes.ENVIRONMENT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["same bits"] == seen["same bits afterwards"] == [True] * 4
    assert len(seen["lost"]) == 1
    told = [line for line in seen["said"] if not line.endswith(" left")]  # a slow machine says how far it is, too
    assert told  # once more where the machine is slow
    for line in told:
        assert "did not start within 3 s" in line
        assert line.endswith("going on with 1")
