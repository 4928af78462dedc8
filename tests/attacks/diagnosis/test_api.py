from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fedveil as fv
from fedveil.attacks.diagnosis import Finding, Outlook, diagnose
from fedveil.fl.errors import FedveilError
from fedveil.fl.seeding import torch_stream

SHAPE = (1, 12, 12)
X = torch.rand((1, *SHAPE), generator=torch_stream(0, "images"))
Y = torch.tensor([1])


def seeded(*parts: nn.Module) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for part in parts:
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()
    return nn.Sequential(*parts)


SMOOTH = seeded(nn.Conv2d(1, 8, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(800, 3))


def test_verdicts() -> None:
    stops, hinders, helps, solves = (
        Finding(kind.value, kind, "f", "m") for kind in (Outlook.STOPS, Outlook.HINDERS, Outlook.HELPS, Outlook.SOLVES)
    )
    verdicts = {
        (helps,): "nothing was found in an inversion's way",
        (helps, hinders): "an inversion has this in its way: hinders",
        (solves,): "images can be solved for",
        (solves, hinders): "images can be solved for, as far as this lets: hinders",
        (solves, hinders, stops): "can't be inverted as it is: stops",
    }
    assert {found: fv.Diagnosis(found, ()).verdict for found in verdicts} == verdicts
    assert str(fv.Diagnosis((hinders,), ())) == (
        "hinders  hinders: f; m\nverdict: an inversion has this in its way: hinders"
    )


def test_what_nothing_hinders_comes_back_and_what_dropout_hinders_does_not() -> None:
    update, _ = fv.client_update(SMOOTH, X, Y)
    assert diagnose(SMOOTH, update, image_shape=SHAPE).verdict == "nothing was found in an inversion's way"
    dropped = seeded(nn.Conv2d(1, 8, 3), nn.Sigmoid(), nn.Dropout(0.9), nn.Flatten(), nn.Linear(800, 3))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        loss = nn.functional.cross_entropy(dropped.train()(X), Y)
    masked = {
        n: g
        for (n, _), g in zip(dropped.named_parameters(), torch.autograd.grad(loss, dropped.parameters()), strict=True)
    }
    assert diagnose(dropped, masked, image_shape=SHAPE).verdict == "an inversion has this in its way: dropout"
    attacks = [fv.DeepLeakage(steps=80)]
    errors = [
        fv.audit(model, seen, images=X, labels=Y, attacks=attacks).worst("mse")
        for model, seen in ((SMOOTH, update), (dropped, masked))
    ]
    assert errors[0] < 1e-3 < 0.03 < errors[1]


@pytest.mark.parametrize(
    ("model", "update", "message"),
    [
        ("net", {}, "model: expected an nn.Module with the weights that the server sent, got 'net'"),
        (nn.ReLU(), {}, "model: ReLU has no parameters"),
        (SMOOTH, {"5.weight": torch.ones(1)}, "update: the model has no '5.weight'"),
        (SMOOTH, {"0.bias": torch.ones(3)}, r"update: 0.bias: expected \(8,\) as in the model, got \(3,\)"),
        (SMOOTH, 3, "update: expected an fv.Update, a dict or a list of arrays, got int"),
        (SMOOTH, fv.Update.gradient({"9": torch.ones(1)}), "update: the model has no '9'"),
        (SMOOTH, {"0.bias": ["x"]}, "update: 0.bias: can't be read as numbers"),
    ],
)
def test_what_does_not_fit_is_refused(model: Any, update: Any, message: str) -> None:
    with pytest.raises(FedveilError, match=f"^{message}"):
        diagnose(model, update, image_shape=SHAPE)
