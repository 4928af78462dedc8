from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fedveil.attacks.target.model import target_model
from fedveil.attacks.target.smoothness import is_smooth
from fedveil.fl.models import ModelSpec, build_model


@pytest.mark.parametrize(("name", "smooth"), [("lenet", True), ("convnet", False), ("mlp", False), ("resnet20", False)])
def test_of_networks_by_name(name: str, smooth: bool) -> None:
    model = build_model(ModelSpec(name, (1, 16, 16), 2, width=8))
    assert is_smooth(target_model(model, image_shape=(1, 16, 16), classes=2)) is smooth


class Methods(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(x.flatten(1).relu())
        return out


class Pooled(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 2))


@pytest.mark.parametrize("model", [Methods(), Pooled()], ids=lambda model: type(model).__name__)
def test_of_operations_without_a_module_and_of_pools(model: nn.Module) -> None:
    assert not is_smooth(target_model(model, image_shape=(1, 4, 4), classes=2))


def test_of_gelu() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.GELU(), nn.Linear(4, 2))
    assert is_smooth(target_model(model, image_shape=(1, 4, 4), classes=2))
    assert torch.is_grad_enabled()
