from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fedveil as fv
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import UpdateKind


class Tied(nn.Module):
    """Has one weight under two names, and BatchNorm's buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.first = nn.Linear(2, 2, bias=False)
        self.second = nn.Linear(2, 2, bias=False)
        self.second.weight = self.first.weight
        nn.init.ones_(self.first.weight)  # a quarter more is exact


def after(model: nn.Module) -> dict[str, Tensor]:
    """All weights a quarter larger, and one batch more."""
    return {n: w + (0.25 if w.is_floating_point() else 1) for n, w in model.state_dict().items()}


@pytest.mark.parametrize("form", ["tensors", "arrays", "list"])
def test_the_change_of_parameters_and_buffers(form: str) -> None:
    model = Tied()
    weights: Any = after(model)
    if form == "arrays":
        weights = {name: value.numpy() for name, value in weights.items()}
    elif form == "list":
        weights = [value.numpy() for value in weights.values()]
    update = fv.update_between(model, weights, learning_rate=0.1, local_steps=3, examples=7)
    assert list(update.tensors) == ["norm.weight", "norm.bias", "first.weight"]
    assert all(torch.equal(change, torch.full_like(change, 0.25)) for change in update.tensors.values())
    assert {name: change.flatten()[0].item() for name, change in update.buffers.items()} == {
        "norm.running_mean": 0.25,
        "norm.running_var": 0.25,
        "norm.num_batches_tracked": 1,
    }
    assert (update.kind, update.learning_rate, update.local_steps) == (UpdateKind.DELTA, 0.1, 3)
    assert (update.examples, update.rate_known) == (7, True)
    assert not fv.update_between(model, weights).rate_known


def test_some_weights_may_be_missing() -> None:
    model = Tied()
    update = fv.update_between(model, {"first.weight": torch.zeros(2, 2)})
    assert torch.equal(update.tensors["first.weight"], -model.first.weight)
    assert (list(update.tensors), update.buffers) == (["first.weight"], {})


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"third": torch.ones(2)}, r"weights: the model has no third of shape \(2,\)"),
        ({"norm.bias": torch.ones(3)}, r"weights: the model has no norm.bias of shape \(3,\)"),
        ({"norm.bias": "x"}, r"weights: norm.bias: can't be read as numbers"),
        ([torch.ones(2)], r"update: a list of 1 arrays does not fit the model"),
    ],
)
def test_what_does_not_fit_is_refused(weights: Any, message: str) -> None:
    with pytest.raises(FedveilError, match=f"^{message}"):
        fv.update_between(Tied(), weights)
