from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedveil.defense.hidden import features_of, untouched
from fedveil.fl.errors import FedveilError
from fedveil.fl.models import ModelSpec, build_model


def images(count: int = 3, channels: int = 1) -> Tensor:
    return torch.rand((count, channels, 16, 16), generator=torch.Generator().manual_seed(0))


def test_features_are_those_of_the_named_modules_in_the_order_asked_for() -> None:
    model = build_model(ModelSpec("convnet", (1, 16, 16), 3, width=4))
    x = images()
    body = model.get_submodule("body")
    first = body[0](x)  # type: ignore[operator]
    last, early = features_of(model, x, ("body", "body.0"))
    assert torch.equal(early, first.flatten(1))
    assert torch.equal(last, body(x).flatten(1))
    stages = features_of(model, x)
    assert [tuple(one.shape) for one in stages] == [(3, 4 * 256), (3, 8 * 64), (3, 16 * 16), (3, 16 * 4)]
    assert torch.equal(stages[-1], last)
    assert all(len(module._forward_hooks) == 0 for module in model.modules())


def test_a_module_that_is_not_there_is_refused() -> None:
    model = build_model(ModelSpec("lenet", (1, 16, 16), 3, width=4))
    with pytest.raises(FedveilError, match=r"^model LeNet: 'trunk' gives no features; allowed: those of body, body.0"):
        features_of(model, images(), ("body", "trunk"))
    assert all(len(module._forward_hooks) == 0 for module in model.modules())


class Dropping(nn.Module):
    """Batch normalisation and two kinds of dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Dropout(0.5)
        self.head = nn.Linear(2 * 256, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.drop(self.norm(self.first(x))), 0.5, self.training)
        logits: Tensor = self.head(x.flatten(1))
        return logits


@pytest.mark.parametrize("training", [True, False])
def test_a_second_pass_leaves_nothing_behind_and_draws_nothing(training: bool) -> None:
    torch.manual_seed(0)
    model = Dropping().train(training)
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    with untouched(model):
        found = model(images())
        again = model(images())
    assert torch.equal(found, again)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    # The batch's own statistics, or the running ones, as the mode has it; and no unit dropped.
    x = model.first(images())
    expected = model.head(F.batch_norm(x, None, None, training=True).flatten(1) if training else x.flatten(1))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    model(images())
    assert model.norm.track_running_stats
    assert torch.equal(model.norm.running_mean, before["norm.running_mean"]) is not training  # type: ignore[arg-type]
