"""What an experiment takes of the memory, estimated before anything of it is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedveil.attacks.engine.memory import footprint
from fedveil.fl import data as fl_data
from fedveil.fl import memory
from fedveil.fl.data import named
from fedveil.fl.errors import FedveilError
from fedveil.fl.models import MODELS, ModelSpec, build_model
from fedveil.orchestrator.config import check
from fedveil.orchestrator.run import room
from fedveil.orchestrator.run import setup as setups
from fedveil.orchestrator.run.room import check_memory, weight_and_step
from fedveil.orchestrator.run.setup import check_setups, make_setup

GIB = 2**30
EXPERIMENT: dict[str, Any] = {"experiment": "x", "data": {"limit": 60}, "fl": {"clients": 2, "rounds": 1}}
EXPERIMENT["audit"] = {"victims": 3, "attacks": ["inverting_gradients"]}


def checked(monkeypatch: pytest.MonkeyPatch, free: float, *, here: bool = True, **sections: Any) -> None:
    raw = {**EXPERIMENT, **sections}
    experiment = check(raw)
    setup = make_setup(experiment)
    monkeypatch.setattr(memory, "free_memory", lambda: int(free * GIB))
    check_memory(experiment, setup.model, shard=max(map(len, setup.shards)), here=here)


@pytest.mark.parametrize("name", ["convnet", "lenet", "mlp", "resnet18", "resnet20"])
def test_a_model_beyond_the_memory_is_refused_before_it_is_built(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """100,000 wide the smallest of them takes 40 GiB, and the others TiB, which nothing here allocates."""
    monkeypatch.setattr(memory, "free_memory", lambda: 16 * GIB)
    raw = {**EXPERIMENT, "model": {"name": name, "width": 100_000}}
    with pytest.raises(FedveilError, match=rf"^model\.width: model {name} takes [\d,.]+ GiB .*; free are [\d,.]+ GiB$"):
        check_setups(check(raw), raw)


def test_it_counts_what_each_worker_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = {"model": {"name": "mlp", "width": 5000}}  # 5000 x (1024 + 5000) weights, 0.112 GiB
    two = {**wide, "resources": {"workers": 2}}
    checked(monkeypatch, 0.9, **two)
    with pytest.raises(FedveilError, match=r"^model\.width, fl\.batch_size, resources\.workers: 2 worker\(s\)"):
        checked(monkeypatch, 0.5, **two)
    checked(monkeypatch, 0.5, **wide)  # where their number is left open there may be one
    checked(monkeypatch, 0.5, here=False, **two)  # the workers are on other machines
    with pytest.raises(FedveilError, match=r"^model\.width: model mlp takes"):
        checked(monkeypatch, 0.1, here=False, **wide)


def test_it_counts_the_images_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    checked(monkeypatch, 0.05)
    with pytest.raises(FedveilError, match=r"fl\.batch_size.* steps of 23 images"):  # a client has no more
        checked(monkeypatch, 0.01, fl={"clients": 2, "rounds": 1, "batch_size": 10**9})


def test_it_counts_the_learnt_inverse(monkeypatch: pytest.MonkeyPatch) -> None:
    large = {"victims": 3, "attacks": [{"name": "adaptive", "inverse": {"batch_size": 65536}}]}
    with pytest.raises(FedveilError, match=r"^audit\.attacks\.0\.inverse: width 32 with steps of 65536 images takes"):
        checked(monkeypatch, 4, audit=large)
    checked(monkeypatch, 4, audit={**large, "attacks": ["adaptive"]})


@pytest.mark.parametrize("light", [0, 2**26])
def test_the_estimate_is_what_a_step_takes(light: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same operations on real tensors, whether reckoned without content or from one image."""
    monkeypatch.setattr(room, "_LIGHT", light)
    room.weight_and_step.cache_clear()
    spec = ModelSpec("convnet", (1, 32, 32), 3)
    model = build_model(spec).eval()
    images = torch.zeros(4, 1, 32, 32)
    weight, step = weight_and_step(spec, 4)
    assert weight == sum(value.nbytes for value in model.state_dict().values())
    assert 0.7 < step / footprint(lambda: model(images).sum().backward()).peak <= 1


def test_a_users_model_that_looks_at_numbers_is_not_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    class Looks(nn.Module):
        def __init__(self, *, image_shape: tuple[int, int, int], classes: int) -> None:
            super().__init__()
            self.head = nn.Linear(image_shape[1] * image_shape[2], classes)
            self.scale = float(self.head.weight.std())

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(images.flatten(1)) / self.scale
            return logits

    monkeypatch.setitem(MODELS._entries, "looks", Looks)
    checked(monkeypatch, 0.01, model={"name": "looks"})


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds with which the images of mni152 were read."""
    seeds: list[int] = []
    source = named["mni152"]
    load: Callable[..., Any] = source.load

    def counted(*, size: int | None, seed: int) -> Any:
        seeds.append(seed)
        return load(size=size, seed=seed)

    monkeypatch.setattr(source, "load", counted)
    fl_data._read.cache_clear()
    return seeds


def test_200_seeds_read_the_images_once(loads: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Any] = []
    monkeypatch.setattr(setups, "make_setup", lambda one, make=make_setup: built.append(one.seed) or make(one))
    space = {"seed": {"grid": list(range(200))}, "defense.strength": {"grid": [0.1, 0.2, 0.3]}}
    raw = {**EXPERIMENT, "defense": {"name": "pixel_noise"}, "search": {"searcher": "grid", "space": space}}
    check_setups(check(raw), raw)
    assert sorted(built) == list(range(200))
    assert len(loads) == 1


def test_a_folder_that_is_split_by_the_seed_reads_its_files_once(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    from fedveil.fl.data import pictures

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.fromarray(np.full((8, 8), 40 * number, np.uint8)).save(tmp_path / name / f"{number}.png")
    read: list[Any] = []
    one = pictures._read
    monkeypatch.setattr(pictures, "_read", lambda path, *rest: read.append(path) or one(path, *rest))
    trains = [fl_data.load_data(f"folder:{tmp_path}", size=8, seed=seed).train for seed in range(5)]
    assert len(read) == 10
    assert not all(torch.equal(trains[0].pixels, other.pixels) for other in trains)
