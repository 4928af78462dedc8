from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedveil.attacks.target.model import target_model
from fedveil.attacks.target.smoothness import is_smooth
from fedveil.fl.models import ModelSpec, build_model


def smooth(model: nn.Module, shape: tuple[int, int, int] = (1, 16, 16), *, mode: str = "train") -> bool:
    target = target_model(model, image_shape=shape, classes=2, mode=mode)  # type: ignore[arg-type]
    return is_smooth(target, {n: w.detach() for n, w in model.state_dict().items()})


def trained(model: nn.Module, shape: tuple[int, int, int] = (1, 16, 16)) -> nn.Module:
    """After 20 steps that tell dark noise from bright."""
    stream = torch.Generator().manual_seed(0)
    for _ in range(20):
        y = torch.randint(2, (16,), generator=stream)
        x = (torch.rand((16, *shape), generator=stream) + 0.3 * y.view(-1, 1, 1, 1)).clamp(0, 1)
        weights = list(model.parameters())
        slopes = torch.autograd.grad(F.cross_entropy(model(x), y), weights)
        with torch.no_grad():
            for weight, slope in zip(weights, slopes, strict=True):
                weight -= 0.05 * slope
    return model


@pytest.mark.parametrize("norm", ["none", "group", "batch"])
@pytest.mark.parametrize("size", [16, 32])
def test_of_networks_by_name(size: int, norm: str) -> None:
    shape = (3, size, size)
    names = {"lenet": True} if norm == "none" else {"convnet": False, "resnet20": False}
    for name, expected in names.items():
        assert smooth(build_model(ModelSpec(name, shape, 2, norm=norm, width=8)), shape) is expected, name
    assert not smooth(build_model(ModelSpec("mlp", shape, 2, width=16)), shape)


class Act(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def network(act: nn.Module, *, norm: bool = False, width: int = 6, pool: nn.Module | None = None) -> nn.Module:
    """Two convolutions and a linear layer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts: list[nn.Module] = []
        for channels in (1, width):
            parts += [nn.Conv2d(channels, width, 3, padding=1), *([nn.GroupNorm(1, width)] if norm else []), act]
        return nn.Sequential(*parts, pool or nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64 * width, 2))


SMOOTH: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "silu": F.silu,
    "gelu": F.gelu,
    "mish": F.mish,
    "elu": F.elu,
    "clamp_out_of_reach": lambda x: torch.tanh(x.clamp(-1e3, 1e3)),
    "where_that_never_switches": lambda x: torch.where(x > 1e3, x, torch.tanh(x)),
    "nothing": lambda x: x,
}
BENT: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "where": lambda x: torch.where(x > 0, x, 0 * x),
    "product": lambda x: x * (x > 0),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "clamp": lambda x: x.clamp(-0.1, 0.1),
    "abs": torch.abs,
    "half_relu_half_tanh": lambda x: F.relu(x) + torch.tanh(x),
}


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "normalised"])
@pytest.mark.parametrize("name", [*SMOOTH, *BENT])
def test_of_activations_however_they_are_written(name: str, norm: bool) -> None:
    model = network(Act({**SMOOTH, **BENT}[name]), norm=norm)
    for one in (model, trained(model)):
        assert smooth(one) is (name in SMOOTH)


def test_of_maximum_pools() -> None:
    for pool in (nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(8)):
        assert not smooth(network(nn.Sigmoid(), pool=pool))


def test_of_few_units() -> None:
    """Twelve rectifiers, of which most images meet none over so short a step."""
    for seed in range(10):
        torch.manual_seed(seed)
        hidden = nn.Sequential(nn.Flatten(), nn.Linear(256, 12))
        assert not smooth(nn.Sequential(hidden, nn.ReLU(), nn.Linear(12, 2)))
        assert smooth(nn.Sequential(hidden, nn.Tanh(), nn.Linear(12, 2)))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0])
def test_of_units_of_weights(scale: float) -> None:
    """Nearly linear sigmoids are smooth, in single precision too."""
    model = network(nn.Sigmoid())
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(scale)
    assert smooth(model)


def test_the_weights_that_were_sent_decide() -> None:
    """Rectifiers far from their kinks let everything pass."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.ReLU(), nn.Linear(8, 2))
    target = target_model(model, image_shape=(1, 16, 16), classes=2)
    weights = {n: w.detach() for n, w in model.state_dict().items()}
    assert not is_smooth(target, weights)
    assert is_smooth(target, {**weights, "1.bias": torch.full((8,), 100.0)})


def test_neither_gradients_nor_random_numbers_are_left_changed() -> None:
    model, before = network(nn.GELU()), torch.random.get_rng_state()
    with torch.no_grad():
        assert smooth(model)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(weight.grad is None for weight in model.parameters())
