"""Every registered defence, and stacks of them, against the adaptive attackers of every tier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from fedveil.attacks import Adaptive, AdaptiveModules, InverseTraining, InvertingGradients, TrainedImages
from fedveil.attacks.adaptive.preparation import PreparationKey, preparation_key, prepare_attacker
from fedveil.attacks.audit.capture import capture, together
from fedveil.attacks.audit.updates import Attacker, audit_updates
from fedveil.attacks.base import Attack
from fedveil.attacks.scoring import Gallery, Scorer
from fedveil.attacks.scoring.victims import VictimBatch
from fedveil.attacks.target.model import TargetModel, target_model
from fedveil.defense import DEFENSES, DefenseContext, Stack
from fedveil.defense.base import Defense
from fedveil.defense.latent import pool
from fedveil.fl.data.images import Images
from fedveil.fl.hooks import HOOKS
from fedveil.fl.messages import UpdateKind
from fedveil.fl.models import ModelSpec, build_model, init_model
from fedveil.fl.seeding import torch_stream
from fedveil.fl.training import LocalTraining

SPEC = ModelSpec("lenet", (1, 12, 12), 2, width=4)
CPU = torch.device("cpu")
QUICK = InverseTraining(steps=25, batch_size=12, width=8)
ROUNDS = 2


def target_of(spec: ModelSpec) -> TargetModel:
    return target_model(build_model(spec), image_shape=spec.image_shape, classes=spec.classes)


TARGET = target_of(SPEC)
"""One for all defences: what is tried and traced for a classifier is kept with it."""
TOLERANCE = 0.01
"""An inverse that was trained for a moment may blur what a weak defence left sharp."""

Blobs = Callable[..., Images]


SMALL = {"steps": 2, "networks": 1, "k": 2}
"""Settings of which that is the last word."""


def small(name: str) -> Defense[Any]:
    """A registered defence whose training takes moments."""
    cls = DEFENSES[name]
    return cls(
        **{
            field.name: value
            for field in fields(cls)
            for end, value in SMALL.items()
            if field.name.split("_")[-1] == end
        }
    )


STACKS = (
    Stack(parts=(small("pixel_noise"), small("top_k"))),
    Stack(parts=(small("latent_noise"), small("update_noise"))),
    Stack(parts=(small("latent"), small("top_k"))),
    Stack(parts=(small("group_mean"), small("pixel_noise"))),
)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of a pool are trained for a moment."""
    monkeypatch.setattr(pool, "LONGEST", 2)


@pytest.mark.parametrize("defense", [*map(small, DEFENSES), *STACKS], ids=lambda d: repr(d).split("(")[0])
def test_all_tiers_attack_it(defense: Defense[Any], blobs: Blobs) -> None:
    inversion = InvertingGradients(steps=1)
    attacks: tuple[Attack, ...] = (
        Adaptive(inversion=inversion, inverse=QUICK),
        AdaptiveModules(inversion=inversion, inverse=QUICK),
        TrainedImages(inverse=QUICK),
    )
    public, private, auxiliary = (blobs(count, seed, side=12) for count, seed in ((16, 1), (16, 2), (60, 3)))
    spec = defense.classifier(SPEC)
    context = DefenseContext(public, spec, CPU, seed=0)
    learnt = defense.pretrain(context)
    prepared = defense.prepare(private, context, learnt, client=0)
    assert defense.hooks == {hook for hook in HOOKS if prepared.changes(hook)}
    batches = [VictimBatch(at, 0, (at,), private.take(torch.tensor([at])), gallery=(at,)) for at in range(2)]
    training = LocalTraining(UpdateKind.GRADIENT, 1, 1, 0.05)
    seen = [
        together(
            [
                capture(
                    build_model(spec),
                    init_model(spec, number),
                    batch,
                    prepared,
                    training,
                    local_steps=1,
                    stream=torch_stream(number, "audit", batch.number),
                )
                for number in range(ROUNDS)
            ]
        )
        for batch in batches
    ]
    keys: set[PreparationKey | None] = {
        preparation_key(attack, defense.trained_on, 0, observations=ROUNDS) for attack in attacks
    }
    attackers_own = defense.shadow(auxiliary, replace(context, seed=5), learnt)
    attacker = Attacker(
        target=TARGET if spec == SPEC else target_of(spec),
        attacks=attacks,
        auxiliary=auxiliary,
        preparations={
            key: prepare_attacker(
                prepared if key.modules else attackers_own,
                auxiliary,
                key,
                classes=SPEC.classes,
                device=CPU,
                stream=torch_stream(5, "inverse"),
            )
            for key in keys
            if key is not None
        },
        trained_on=defense.trained_on,
        labels_known=True,
        seed=7,
        observations=ROUNDS,
    )
    scorer = Scorer(None, Gallery(private.pixels[:4]), None, seed=0)
    report = audit_updates(attacker, [o for o, _ in seen], [b for _, b in seen], scorer=scorer, device=CPU)

    surrogate = prepared.surrogate()
    ran = {"adaptive", "adaptive_modules", *(["trained_images"] if surrogate.update is None else [])}
    assert {record.attack for record in report.records} == ran
    assert report.adaptive == (ran if surrogate.complete else set())
    assert len(report.records) == len(ran) * len(batches)
    for record in report.records:
        assert 0 <= record.mse <= 1
        assert record.adaptive_label in (0, 1)
    summary = report.summary()
    assert summary["privacy/complete"] == float(surrogate.complete)
    for name in ran:
        assert 0 <= summary[f"attack/{name}/reader_accuracy"] <= 1
        if surrogate.data is None and surrogate.rehearse is None:
            assert f"attack/{name}/inverse_error" not in summary
        else:
            assert summary[f"attack/{name}/inverse_steps"] == QUICK.steps
            assert summary[f"attack/{name}/inverse_flat"] == 0
            assert 0 < summary[f"attack/{name}/inverse_error"] < 1
    if surrogate.data is None:
        return
    held = next(key for key in attacker.preparations if key.modules == _holds(keys))
    inverse = attacker.preparations[held].inverse
    assert inverse is not None
    if inverse.observations > 1:
        # What it makes of several draws is no worse than one of them as it is.
        x, y = private.floats(), private.labels
        draws = torch.stack([surrogate.data(x, y, torch_stream(number, "draw")) for number in range(ROUNDS)])
        error, before = ((images - x).square().mean() for images in (inverse(draws, y), draws[0]))
        assert float(error) <= float(before) + TOLERANCE


def _holds(keys: set[PreparationKey | None]) -> bool:
    """The best that is granted: the client's modules, where there are any."""
    return any(key is not None and key.modules for key in keys)
