"""From an experiment's `fl` section to how clients train, with the public images where they are replayed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_experiment, write_bars

from fedveil.defense.base import DefenseContext
from fedveil.fl.errors import FedveilError
from fedveil.fl.executor import SerialExecutor
from fedveil.fl.messages import UpdateKind
from fedveil.fl.optimizers import Adam
from fedveil.fl.rounds import Federation, Simulation
from fedveil.fl.training import LocalTraining
from fedveil.fl.trust import Trust
from fedveil.orchestrator.config import check
from fedveil.orchestrator.run.federation import build_federation
from fedveil.orchestrator.run.setup import Setup, make_setup


def federation_of(tmp_path: Path, **fl: Any) -> tuple[Federation, Setup]:
    experiment = check(tiny_experiment(write_bars(tmp_path / "bars.npz"), fl=fl))
    setup = make_setup(experiment)
    context = DefenseContext(setup.public, setup.model, torch.device("cpu"), 0)
    return build_federation(experiment, setup, context, None, SerialExecutor())[0], setup


def test_by_default_clients_make_one_pass_of_plain_sgd_on_their_own_images(tmp_path: Path) -> None:
    federation, _ = federation_of(tmp_path)
    assert federation.training == LocalTraining(UpdateKind.DELTA, epochs=1, batch_size=8, learning_rate=0.1)
    assert federation.public is None
    assert federation.trust == Trust(quorum=0.5, max_norm=None)


def test_what_is_set_is_how_clients_train(tmp_path: Path) -> None:
    federation, setup = federation_of(
        tmp_path,
        strategy={"name": "fedprox", "mu": 0.2},
        optimizer={"name": "adam", "weight_decay": 0.01},
        learning_rate=0.001,
        local_steps=4,
        augmentation=["flip", "shift"],
        replay_public=0.25,
        quorum=0.75,
        max_update_norm=20.0,
    )
    assert federation.training == LocalTraining(
        UpdateKind.DELTA,
        epochs=None,
        batch_size=8,
        learning_rate=0.001,
        proximal=0.2,
        steps=4,
        optimizer=Adam(weight_decay=0.01),
        augmentation=("flip", "shift"),
        replay=0.25,
    )
    assert federation.trust == Trust(quorum=0.75, max_norm=20.0)
    assert federation.public is not None
    assert federation.public.get() is setup.public
    simulation = Simulation(federation, SerialExecutor())
    losses = [simulation.round().loss for _ in range(4)]
    assert losses[-1] < losses[0]


def test_images_that_cannot_be_transposed_are_refused_before_the_work(tmp_path: Path) -> None:
    with np.load(write_bars(tmp_path / "bars.npz")) as arrays:
        wide = {key: value[:, :, :14] if key.endswith("images") else value for key, value in arrays.items()}
    np.savez(tmp_path / "wide.npz", **wide)
    raw = tiny_experiment(tmp_path / "wide.npz", fl={"augmentation": ["transpose"]})
    with pytest.raises(FedveilError, match="transpose needs square images, given 16x14 px"):
        make_setup(check(raw))
