"""What of a defence travels with each client."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from ray import cloudpickle
from tiny import tiny_experiment, write_bars

from fedveil.defense.base import DefenseContext, PreparedDefense
from fedveil.fl.executor import SerialExecutor, Slot
from fedveil.fl.sent_once import sent_once
from fedveil.orchestrator.cluster.executor import RayExecutor
from fedveil.orchestrator.config import check
from fedveil.orchestrator.run.federation import build_federation, pretrain
from fedveil.orchestrator.run.setup import make_setup

# The workers cannot import a test module by name.
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]

LATENT = {"name": "latent", "k": 3, "steps": 2, "random_networks": 12, "trained_networks": 1}


def size(value: object) -> int:
    return len(cloudpickle.dumps(value))  # type: ignore[no-untyped-call]


@pytest.mark.usefixtures("ray_cluster")
def test_a_client_carries_its_own_images_and_neither_networks_nor_public_ones(tmp_path: Path) -> None:
    """A pool at its defaults is some megabytes, and there may be a thousand clients."""
    data = write_bars(tmp_path / "bars.npz", train=240)
    raw = tiny_experiment(data, model={"name": "convnet", "width": 16}, defense=[LATENT])
    raw["data"]["public_fraction"] = 0.3
    experiment = check(raw)
    setup = make_setup(experiment)
    rehearsed = []
    with RayExecutor(1, cpus_per_worker=0.5) as ray:
        for executor in (SerialExecutor(), ray):
            public = sent_once(setup.public.take(torch.arange(len(setup.public))), executor)
            context = DefenseContext(public, setup.model, torch.device("cpu"), 0, tmp_path / "cache")
            learnt = pretrain(experiment.build_defense(), context, executor)
            federation, _ = build_federation(experiment, setup, context, learnt, executor)
            prepared = [client.hooks.get() for client in federation.clients]
            if executor is ray:
                for one, shard in zip(prepared, setup.shards, strict=True):
                    # Its images, at most as many that are shared, and what says which is which.
                    assert size(one) < 2 * shard.pixels.numel() + 10_000
            else:
                assert size(prepared[0]) > 500_000
            rehearsed.append(executor.map(rehearse, [client.hooks for client in federation.clients])[0])
    assert torch.equal(*rehearsed)


def rehearse(slot: Slot, hooks: object) -> torch.Tensor:
    prepared = hooks.get()  # type: ignore[attr-defined]
    assert isinstance(prepared, PreparedDefense)
    share = prepared.surrogate().rehearse
    assert share is not None
    images = prepared.private  # type: ignore[attr-defined]
    return share(images, torch.Generator().manual_seed(0)).trained.pixels
