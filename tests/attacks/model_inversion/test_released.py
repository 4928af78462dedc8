from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from bands import CLASSES, SHAPE, Templates, bands, patterns
from torch import Tensor

import fedveil as fv
from fedveil.attacks import MODEL_INVERSIONS, BrepMi, Gmi, TrainingBased
from fedveil.attacks.model_inversion.base import InversionKnowledge, Inverted, ModelInversion
from fedveil.attacks.model_inversion.released import Access, ConfidenceTarget, LabelTarget, ReleasedModel, WeightsTarget
from fedveil.fl.errors import FedveilError, SettingError
from fedveil.orchestrator.config.load import check


def flipped(logits: Tensor) -> Tensor:
    return logits.flip(1)


def test_a_view_has_what_is_granted_and_no_more(told: ReleasedModel) -> None:
    labels, confidences, weights = (told.granted(access) for access in Access)
    assert [type(view) for view in (labels, confidences, weights)] == [LabelTarget, ConfidenceTarget, WeightsTarget]
    assert not hasattr(labels, "confidences")
    assert not hasattr(confidences, "network")
    x = patterns()
    assert all(view.labels(x).tolist() == [0, 1, 2] for view in (labels, confidences, weights))
    assert isinstance(confidences, ConfidenceTarget)
    assert torch.allclose(confidences.confidences(x).sum(1), torch.ones(CLASSES))


def test_answers_pass_the_output_hook_and_weights_do_not() -> None:
    target = ReleasedModel(Templates(40.0), flipped, SHAPE, CLASSES)
    x = patterns()
    assert target.granted(Access.LABELS).labels(x).tolist() == [2, 1, 0]
    assert target.granted(Access.CONFIDENCES).labels(x).tolist() == [2, 1, 0]
    assert target.granted(Access.WEIGHTS).labels(x).tolist() == [0, 1, 2]


def test_queries_are_counted(told: ReleasedModel) -> None:
    view = told.granted(Access.CONFIDENCES)
    assert isinstance(view, ConfidenceTarget)
    view.labels(patterns())
    view.confidences(patterns()[:2])
    assert view.queries == 5


def test_an_attack_is_handed_its_grant_exactly(told: ReleasedModel) -> None:
    knowledge = InversionKnowledge(bands(6), torch.device("cpu"), 0)
    with pytest.raises(FedveilError, match="'brep_mi' is for LabelTarget, given ConfidenceTarget"):
        BrepMi()(told.granted(Access.CONFIDENCES), knowledge)
    with pytest.raises(FedveilError, match="'gmi' is for WeightsTarget, given LabelTarget"):
        Gmi()(told.granted(Access.LABELS), knowledge)
    with pytest.raises(FedveilError, match="'training_based' needs answers to the victims' images"):
        TrainingBased()(told.granted(Access.CONFIDENCES), knowledge)
    with pytest.raises(FedveilError, match="no generator is trained as GanTraining"):
        Gmi()(told.granted(Access.WEIGHTS), knowledge)
    seen = InversionKnowledge(bands(6), torch.device("cpu"), 0, observed=torch.ones(2, CLASSES) / CLASSES)
    with pytest.raises(FedveilError, match="'gmi' is handed answers that it does not ask for"):
        Gmi()(told.granted(Access.WEIGHTS), seen)


class Wrong(ModelInversion):
    name = "wrong"
    access = Access.LABELS

    def run(self, target: Any, knowledge: InversionKnowledge) -> Inverted:
        return Inverted(torch.zeros(2, 1, 3, 3), torch.tensor([0, 1]))


def test_an_attack_that_returns_something_else_is_said(told: ReleasedModel) -> None:
    with pytest.raises(
        FedveilError, match=r"'wrong': expected \(2, 1, 12, 12\) images with classes, got \(2, 1, 3, 3\)"
    ):
        Wrong()(told.granted(Access.LABELS), InversionKnowledge(bands(6), torch.device("cpu"), 0))


def test_one_of_the_users_own_is_named_in_an_experiment(told: ReleasedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODEL_INVERSIONS, "_entries", dict(MODEL_INVERSIONS._entries))

    @fv.register_model_inversion("mean")
    @dataclass(frozen=True, kw_only=True)
    class Mean(fv.ModelInversion):
        access = fv.Access.LABELS
        queries: int = 6

        def run(self, target: Any, knowledge: fv.InversionKnowledge) -> fv.Inverted:
            own = knowledge.images.floats()[: self.queries]
            said = target.labels(own)
            return fv.Inverted(torch.stack([own[said == one].mean(0) for one in said.unique()]), said.unique())

    experiment = check(
        {"experiment": "x", "data": {"name": "mni152"}, "audit": {"model_inversion": [{"name": "mean", "queries": 4}]}}
    )
    (attack,) = experiment.audit.build_model_inversions()
    assert attack == Mean(queries=4)
    target = told.granted(Access.LABELS)
    found = attack(target, InversionKnowledge(bands(6), torch.device("cpu"), 0))
    assert found.images.shape[1:] == (1, 12, 12)
    assert target.queries == 4
    with pytest.raises(FedveilError, match="'mean' is registered twice"):
        fv.register_model_inversion("mean")(type("Other", (Mean,), {}))


@pytest.mark.parametrize(
    ("name", "options", "key"),
    [
        ("gmi", {"momentum": -0.1}, "momentum"),
        ("gmi", {"restarts": 0}, "restarts"),
        ("ked_mi", {"steps": 0}, "steps"),
        ("brep_mi", {"growth": 1.0}, "growth"),
        ("training_based", {"decimals": 7}, "decimals"),
    ],
)
def test_settings_that_make_no_sense_are_refused(name: str, options: dict[str, Any], key: str) -> None:
    with pytest.raises(SettingError, match=key):
        MODEL_INVERSIONS[name](**options)
