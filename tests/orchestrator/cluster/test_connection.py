from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import pytest

from fedveil.fl.errors import FedveilError
from fedveil.orchestrator.cluster.connection import (
    NODE_SLIVER,
    OFFLINE,
    amounts,
    check_fit,
    connect,
    offline_environment,
    own_node,
    placement_group,
)


def test_offline_environment_keeps_what_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OFFLINE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    offline_environment()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"
    assert {name: os.environ[name] for name in OFFLINE} == {**OFFLINE, "RAY_USAGE_STATS_ENABLED": "1"}


def test_importing_the_module_does_not_import_ray() -> None:
    code = "import sys, orchestrator.cluster; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_amounts_are_readable() -> None:
    assert amounts({"CPU": 2.0, "GPU": 0.25}) == "2 CPU and 0.25 GPU"


def test_placement_group_reserves_the_driver_first() -> None:
    factory = placement_group(2, cpus_per_worker=1.5, gpus_per_worker=0.5, driver_cpus=0.1)
    assert factory.bundles == [{"CPU": 0.1}, {"CPU": 1.5, "GPU": 0.5}, {"CPU": 1.5, "GPU": 0.5}]
    assert factory.head_cpus == 0.1
    assert factory.required_resources == pytest.approx({"CPU": 3.1, "GPU": 1.0})


def test_a_trial_is_packed_or_spread() -> None:
    assert placement_group(2).strategy == "PACK"
    assert placement_group(2, spread=True).strategy == "SPREAD"


def test_a_driver_can_be_tied_to_a_node_and_take_no_core() -> None:
    factory = placement_group(1, driver_cpus=0, driver_node="node:10.0.0.1")
    assert factory.bundles == [{"node:10.0.0.1": NODE_SLIVER}, {"CPU": 1.0}]
    assert not factory.head_bundle_is_empty


@pytest.mark.parametrize(
    ("workers", "cpus", "gpus", "driver", "said"),
    [
        (0, 1.0, 0.0, 1.0, "workers must be at least 1, not 0"),
        (1, -1.0, 0.0, 1.0, "cpus_per_worker must not be negative, not -1"),
        (1, 1.0, -0.5, 1.0, "gpus_per_worker must not be negative, not -0.5"),
        (1, 0.0, 0.0, 1.0, "both 0"),
        (1, 0.00001, 0.0, 1.0, "cpus_per_worker above 0 must be at least 0.0001, not 1e-05"),
        (1, 1.0, 0.00001, 1.0, "gpus_per_worker above 0 must be at least 0.0001, not 1e-05"),
        (1, 1.0, 1.5, 1.0, "gpus_per_worker above 1 must be a whole number, not 1.5"),
        (1, 1.0, 0.0, 0.0, "driver_cpus must be above 0, not 0"),
    ],
)
def test_impossible_requests_are_refused(workers: int, cpus: float, gpus: float, driver: float, said: str) -> None:
    with pytest.raises(FedveilError, match=said):
        placement_group(workers, cpus_per_worker=cpus, gpus_per_worker=gpus, driver_cpus=driver)


NOTHING_THERE = """
from fedveil.fl.errors import FedveilError
from fedveil.orchestrator.cluster.connection import connect
try:
    with connect("127.0.0.1:1"):
        pass
except FedveilError as error:
    print(error)
"""


def test_an_address_where_nothing_answers() -> None:
    # In a process of its own, since this one may be connected already.
    ran = subprocess.run([sys.executable, "-c", NOTHING_THERE], check=True, capture_output=True, text=True)
    assert ran.stdout.startswith("no Ray cluster answers at '127.0.0.1:1': ")
    assert ran.stdout.count("\n") == 1


JOIN = """
import sys
from fedveil.fl.errors import FedveilError
from fedveil.orchestrator.cluster.connection import connect
try:
    with connect(sys.argv[1]):
        print("joined")
except FedveilError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("token", "said"), [(None, "no Ray cluster answers"), ("0" * 64, "no Ray cluster"), ("", "joined")]
)
def test_nobody_joins_the_local_cluster_without_its_token(token: str | None, said: str) -> None:
    """With the right one (the empty one stands for it) the same program joins."""
    import ray

    address = ray.get_runtime_context().gcs_address
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
    if token is not None:
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token or os.environ["RAY_AUTH_TOKEN"]}
    with tempfile.TemporaryDirectory() as home:  # without a token of Ray's own in it
        ran = subprocess.run(
            [sys.executable, "-c", JOIN, address],
            env={**environment, "HOME": home},
            check=True,
            capture_output=True,
            text=True,
        )
    assert ran.stdout.startswith(said)
    assert ("set RAY_AUTH_MODE=token" in ran.stdout) == (said != "joined")


@pytest.mark.usefixtures("ray_cluster")
class TestOnACluster:
    """Two declared cores, no GPU."""

    @pytest.mark.parametrize(("workers", "cpus"), [(1, 2.0), (2, 1.0), (3, 0.5), (20, 0.1)])
    def test_what_fits(self, workers: int, cpus: float) -> None:
        assert check_fit(workers, cpus_per_worker=cpus) == [None] * workers
        assert check_fit(workers, cpus_per_worker=cpus, spread=True) == ["SPREAD"] * workers

    @pytest.mark.parametrize(
        ("workers", "cpus", "gpus", "said"),
        [
            (3, 1.0, 0.0, r"3 worker.* 1 CPU each .* has \[2 CPU\], room for 2; missing 1 CPU;"),
            (21, 0.1, 0.0, r"room for 20; missing 0\.1 CPU;"),
            (1, 1.0, 0.5, r"has \[2 CPU and 0 GPU\], room for 0; missing 0\.5 GPU;"),
            (2, 4.0, 1.0, r"missing 6 CPU and 2 GPU;"),
        ],
    )
    def test_what_does_not_fit_says_what_is_missing(self, workers: int, cpus: float, gpus: float, said: str) -> None:
        with pytest.raises(FedveilError, match=said) as caught:
            check_fit(workers, cpus_per_worker=cpus, gpus_per_worker=gpus)
        assert "\n" not in str(caught.value)

    def test_shares_that_only_fit_across_nodes_do_not_fit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import ray

        nodes = [{"Alive": True, "Resources": {"CPU": 3.0}}] * 2 + [{"Alive": False, "Resources": {"CPU": 9.0}}]
        monkeypatch.setattr(ray, "nodes", lambda: nodes)
        assert check_fit(2, cpus_per_worker=3) == [None, None]
        with pytest.raises(FedveilError, match="room for 0; missing a node that holds a worker whole"):
            check_fit(1, cpus_per_worker=4)

    def test_the_own_node_is_a_resource_that_the_cluster_has_once(self) -> None:
        import ray

        assert ray.cluster_resources()[own_node()] == 1  # type: ignore[no-untyped-call]

    def test_a_connection_that_exists_is_used_and_left(self) -> None:
        import ray

        with connect("192.0.2.1:1"):
            assert ray.cluster_resources()["CPU"] == 2  # type: ignore[no-untyped-call]
        assert ray.is_initialized()

    def test_the_local_cluster_is_not_open_to_the_network(self) -> None:
        assert os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_MODE")
