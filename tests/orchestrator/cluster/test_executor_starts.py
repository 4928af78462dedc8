"""How workers start: with the plug-ins that they need, again where they die, and not where there is no room."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ray import cloudpickle
from slot_tasks import double

from fedveil.defense import DEFENSES
from fedveil.fl.errors import FedveilError
from fedveil.fl.executor import Slot
from fedveil.orchestrator.cluster.executor import RayExecutor
from fedveil.orchestrator.config.plugins import Plugin, load_plugins

# The workers cannot import a test module by name.
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]

pytestmark = pytest.mark.usefixtures("ray_cluster")

PLUGIN = """
from dataclasses import dataclass

from fedveil.defense import DEFENSES
from fedveil.defense.base import Defense


@DEFENSES.register("darken_in_slots")
@dataclass(frozen=True, kw_only=True)
class Darken(Defense[None]):
    strength: float = 0.5

    def data(self, x, y, stream):
        return self.strength * x
"""


def use(slot: Slot, item: int, defense: Any) -> float:
    return float(defense.data(torch.tensor(float(item)), None, None))


def test_slots_know_the_plugins_whose_objects_they_are_sent(ray_cluster: None, tmp_path: Path) -> None:
    (tmp_path / "darken.py").write_text(PLUGIN)
    plugins = load_plugins(["./darken.py"], tmp_path)
    with RayExecutor(1, cpus_per_worker=0.5, plugins=plugins) as executor:
        assert executor.map(use, [1, 2], shared=(DEFENSES["darken_in_slots"](strength=0.25),)) == [0.25, 0.5]


DYING = """
import os, signal
from pathlib import Path

deaths = Path("{folder}")
if os.getpid() != {pid} and len(list(deaths.iterdir())) < {times}:
    (deaths / str(os.getpid())).touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def dying(folder: Path, times: int) -> tuple[Plugin, ...]:
    """A plug-in that kills the first processes that install it, as a node does that goes down."""
    (folder / "deaths").mkdir()
    (folder / "dying.py").write_text(DYING.format(folder=folder / "deaths", pid=os.getpid(), times=times))
    return load_plugins(["./dying.py"], folder)


def test_a_worker_that_dies_while_it_starts_is_started_again(ray_cluster: None, tmp_path: Path) -> None:
    with RayExecutor(1, cpus_per_worker=0.5, plugins=dying(tmp_path, 2), max_retries=2) as executor:
        assert executor.map(double, [1, 2]) == [2, 4]
    assert len(list((tmp_path / "deaths").iterdir())) == 2


def test_one_that_always_dies_is_given_up_with_a_sentence(ray_cluster: None, tmp_path: Path) -> None:
    with pytest.raises(FedveilError, match="worker 0 of 1 died while it started 2 times"):
        RayExecutor(1, cpus_per_worker=0.5, plugins=dying(tmp_path, 9), max_retries=1)
    assert len(list((tmp_path / "deaths").iterdir())) == 2


def test_what_cannot_fit_is_refused_at_once() -> None:
    with pytest.raises(FedveilError, match=r"3 worker.* do not fit: .*missing 1 CPU"):
        RayExecutor(3)
