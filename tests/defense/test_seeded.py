from __future__ import annotations

import torch
from torch import nn

from fedveil.defense.seeded import seeded


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weights(seed: int) -> torch.Tensor:
    return seeded(lambda: nn.Linear(4, 3), stream(seed)).weight.detach()


def test_weights_depend_on_the_stream_alone() -> None:
    torch.manual_seed(0)
    first = weights(1)
    torch.manual_seed(99)
    torch.rand(5)
    assert torch.equal(weights(1), first)
    assert not torch.equal(weights(2), first)


def test_two_modules_of_one_stream_differ() -> None:
    own = stream(1)
    first, second = (seeded(lambda: nn.Linear(4, 3), own) for _ in range(2))
    assert not torch.equal(first.weight, second.weight)


def test_the_global_generator_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    weights(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_global_generator_comes_back_after_an_error_too() -> None:
    def build() -> nn.Module:
        nn.Linear(4, 3)
        raise ZeroDivisionError

    torch.manual_seed(0)
    before = torch.get_rng_state()
    try:
        seeded(build, stream(1))
    except ZeroDivisionError:
        assert torch.equal(torch.get_rng_state(), before)
    else:
        raise AssertionError("the error was swallowed")
