from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fedveil.defense.fitting import fit, frozen
from fedveil.fl.data.images import Images

CPU = torch.device("cpu")
TWO = Images(torch.tensor([51, 255], dtype=torch.uint8).view(2, 1, 1, 1), torch.tensor([0, 1]))


class Level(nn.Module):
    """One number, which starts at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros(()))


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def squared(module: Level, x: Tensor, y: Tensor) -> Tensor:
    return (module.level - x).square().mean()


def test_frozen_returns_the_module_itself() -> None:
    module = nn.Linear(2, 2)
    assert frozen(module) is module
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())


def test_two_steps_worked_by_hand() -> None:
    # All images alike: Adam's first step has the size of the learning rate, whatever the gradient.
    same = TWO.take(torch.tensor([1]))
    first = fit(Level, same, squared, steps=1, device=CPU, stream=stream(), learning_rate=0.1)
    assert first.level.item() == pytest.approx(0.1, rel=1e-5)
    # Of two steps along half a cosine, the second has half that size. Gradients are -2 and -1.8; Adam's ratio of moments is
    # ((0.9 * 0.1 * 2 + 0.1 * 1.8) / 0.19) / sqrt((0.999 * 0.001 * 4 + 0.001 * 3.24) / 0.001999) = 0.99596.
    second = fit(Level, same, squared, steps=2, device=CPU, stream=stream(), learning_rate=0.1)
    assert second.level.item() == pytest.approx(0.1 + 0.05 * 0.99596, rel=1e-4)


def test_it_finds_the_minimum_over_all_images() -> None:
    found = fit(Level, TWO, squared, steps=300, device=CPU, stream=stream(), learning_rate=0.05)
    assert found.level.item() == pytest.approx(0.6, abs=0.05)
    assert not found.training
    assert not found.level.requires_grad


def test_no_steps_leave_the_weights_as_they_were_drawn() -> None:
    assert fit(Level, TWO, squared, steps=0, device=CPU, stream=stream()).level == 0


def test_batches_hold_the_labels_of_their_images() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def loss(module: Level, x: Tensor, y: Tensor) -> Tensor:
        seen.append((x.flatten(), y))
        return module.level.square()

    fit(Level, TWO, loss, steps=3, device=CPU, stream=stream(), batch_size=5)
    assert [len(x) for x, _ in seen] == [5, 5, 5]
    x, y = (torch.cat(part) for part in zip(*seen, strict=True))
    torch.testing.assert_close(x, torch.where(y == 0, 0.2, 1.0))
    assert {0, 1} == set(y.tolist())


def test_the_stream_decides_weights_and_batches() -> None:
    def weights(seed: int) -> Tensor:
        linear = fit(
            lambda: nn.Linear(1, 1),
            TWO,
            lambda module, x, y: module(x.view(-1, 1)).square().mean(),
            steps=2,
            device=CPU,
            stream=stream(seed),
        )
        return linear.weight

    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))
    assert torch.equal(torch.get_rng_state(), before)
