from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedveil.attacks import (
    ATTACKS,
    Adaptive,
    AdaptiveModules,
    Attack,
    Baseline,
    Earlier,
    InverseTraining,
    InvertingGradients,
    Knowledge,
    Observation,
    TrainedImages,
    attack_labels,
)
from fedveil.attacks.base import AttackerPreparation
from fedveil.attacks.target.model import target_model
from fedveil.defense.base import Surrogate
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import Reconstruction, ThreatModel
from fedveil.fl.models import ModelSpec, build_model

SPEC = ModelSpec("lenet", (1, 16, 16), 2, width=4)
GRANTS = [f.name for f in fields(ThreatModel)]
NOTHING = ThreatModel(labels=False)
ALL = ThreatModel(**dict.fromkeys(GRANTS, True))

Blobs = Callable[..., Images]
Observe = Callable[..., Observation]


@dataclass(frozen=True, kw_only=True)
class Guess(Attack):
    """Needs nothing and knows nothing."""

    name: ClassVar[str] = "guess"
    needs: ClassVar[ThreatModel] = NOTHING

    def run(self, observations: Sequence[Observation], knowledge: Knowledge, earlier: Earlier) -> list[Reconstruction]:
        return [Reconstruction(torch.full((1, 1, 16, 16), 0.5), torch.zeros(1, dtype=torch.int64), 0.0)]


def known(threat_model: ThreatModel, **held: object) -> Knowledge:
    target = target_model(build_model(SPEC), image_shape=SPEC.image_shape, classes=SPEC.classes)
    return Knowledge(threat_model, target, torch.device("cpu"), 0, **held)  # type: ignore[arg-type]


@pytest.fixture
def observation(blobs: Blobs, observe: Observe) -> Observation:
    return observe(blobs(1, 0), SPEC, labels=False)


# Threat models

threat_models = st.builds(ThreatModel, **{name: st.booleans() for name in GRANTS})


def test_what_a_threat_model_lacks_by_hand() -> None:
    granted = ThreatModel(labels=True, auxiliary_data=True)
    assert granted.lacks(ThreatModel(labels=False, auxiliary_data=True)) == []
    assert granted.lacks(ThreatModel(labels=True, defense_algorithm=True, defense_modules=True)) == [
        "defense_algorithm",
        "defense_modules",
    ]
    assert NOTHING.lacks(ThreatModel(labels=True)) == ["labels"]


@given(threat_models, threat_models)
def test_lacking_is_a_difference_of_sets(granted: ThreatModel, needed: ThreatModel) -> None:
    def names(model: ThreatModel) -> set[str]:
        return {name for name in GRANTS if getattr(model, name)}

    assert set(granted.lacks(needed)) == names(needed) - names(granted)
    assert granted.lacks(granted) == []
    assert ALL.lacks(needed) == []


# Grants are enforced


@pytest.mark.parametrize("name", sorted(name for name in ATTACKS if ATTACKS[name].needs != NOTHING))
def test_an_attack_that_needs_more_than_is_granted_is_refused(name: str, observation: Observation) -> None:
    attack = ATTACKS[name]()
    needed = [grant for grant in GRANTS if getattr(attack.needs, grant)]
    assert needed
    for grant in needed:
        with pytest.raises(FedveilError, match=f"attack '{name}' needs {grant}, which the threat model does not grant"):
            attack([observation], known(replace(attack.needs, **{grant: False})))


def test_all_that_is_lacking_is_named(observation: Observation) -> None:
    with pytest.raises(FedveilError, match="needs auxiliary_data, defense_algorithm, defense_modules, trained_images,"):
        TrainedImages()([observation], known(NOTHING))


@pytest.mark.parametrize(
    ("field", "value"),
    [("labels", torch.zeros(1, dtype=torch.int64)), ("trained_images", torch.zeros(1, 1, 16, 16))],
)
def test_an_observation_that_holds_more_than_is_granted_is_refused(
    field: str, value: torch.Tensor, observation: Observation
) -> None:
    loaded = replace(observation, client=3, **{field: value})
    with pytest.raises(FedveilError, match=f"client 3 holds {field}, which is not granted"):
        Guess()([observation, loaded], known(NOTHING))
    again = replace(observation, repeats=(observation, loaded))
    assert again.series == (again, observation, loaded)
    with pytest.raises(FedveilError, match=f"client 3 holds {field}, which is not granted"):
        Guess()([again], known(NOTHING))
    assert len(Guess()([loaded], known(replace(NOTHING, **{field: True})))) == 1


def test_an_attacker_who_holds_more_than_is_granted_is_refused(observation: Observation, blobs: Blobs) -> None:
    auxiliary, preparations = blobs(2, 1), {None: AttackerPreparation(Surrogate(), None)}
    with pytest.raises(FedveilError, match="the attacker holds auxiliary_data, which is not granted"):
        Guess()([observation], known(NOTHING, auxiliary=auxiliary))
    with pytest.raises(FedveilError, match="the attacker holds defense_algorithm, which is not granted"):
        Guess()(
            [observation], known(replace(NOTHING, auxiliary_data=True), auxiliary=auxiliary, preparations=preparations)
        )
    granted = replace(NOTHING, auxiliary_data=True, defense_algorithm=True)
    assert len(Guess()([observation], known(granted, auxiliary=auxiliary, preparations=preparations))) == 1


def test_what_was_not_handed_over_cannot_be_asked_for() -> None:
    with pytest.raises(FedveilError, match="no auxiliary images"):
        known(NOTHING).auxiliary_images()
    with pytest.raises(FedveilError, match="nothing is prepared against the defence of client 2"):
        known(ALL, preparations={1: AttackerPreparation(Surrogate(), None)}).preparation(2)


def test_a_clients_own_preparation_comes_before_the_common_one() -> None:
    own, common = AttackerPreparation(Surrogate(), None), AttackerPreparation(Surrogate(), None)
    knowledge = known(ALL, preparations={None: common, 1: own})
    assert knowledge.preparation(1) is own
    assert knowledge.preparation(0) is common


def test_no_attack_but_the_limit_is_handed_images_and_none_requires_labels() -> None:
    attacks = [ATTACKS[name] for name in ATTACKS]
    assert [a.name for a in attacks if a.needs.trained_images] == ["trained_images"]
    assert not [a.name for a in attacks if a.needs.labels]
    # The truth has no place in what an attack is given.
    assert {f.name for f in fields(Observation)} == {
        "number",
        "client",
        "update",
        "weights",
        "batch_size",
        "labels",
        "trained_images",
        "repeats",
        "shares",  # the attacker's own guess: nothing is captured under this name
    }


def test_options_belong_to_each_attack() -> None:
    quick = InverseTraining(steps=8)
    shown = repr(InvertingGradients(steps=7))
    assert shown == (
        "InvertingGradients(steps=7, tv=0.003, restarts=1, chunk=None, place='searched', start='grey', learning_rate=0.03,"
        " opponents=True)"
    )
    adaptive = Adaptive(inversion=InvertingGradients(steps=7), inverse=quick)
    assert (adaptive.inversion, adaptive.inverse) == (InvertingGradients(steps=7), quick)
    assert AdaptiveModules(inversion=InvertingGradients(steps=7), inverse=quick) != adaptive
    assert TrainedImages(inverse=quick).inverse == quick
    assert {name: ATTACKS[name]().name for name in ATTACKS} == {name: name for name in ATTACKS}
    assert {name for name in ATTACKS if ATTACKS[name].adaptive} == {
        "adaptive",
        "adaptive_modules",
        "learning_to_invert",
        "trained_images",
    }
    assert {name for name in ATTACKS if not ATTACKS[name].reads_update} == {"baseline"}


def test_attacks_of_one_name_are_numbered() -> None:
    attacks = [InvertingGradients(), Adaptive(), InvertingGradients(steps=2), InvertingGradients()]
    assert attack_labels(attacks) == [
        "inverting_gradients",
        "adaptive",
        "inverting_gradients_2",
        "inverting_gradients_3",
    ]
    assert attack_labels([]) == []


def test_an_adaptive_attacks_settings_are_refused_under_its_own_name() -> None:
    with pytest.raises(FedveilError, match="adaptive: inversion is baseline"):
        Adaptive(inversion=Baseline())
    with pytest.raises(FedveilError, match="inverse: width is 0"):
        InverseTraining(width=0)


# The baseline


def test_the_baseline_guesses_the_class_mean(observe: Observe) -> None:
    pixels = torch.tensor([0, 100, 51, 255]).view(4, 1, 1, 1).expand(4, 1, 16, 16).to(torch.uint8)
    auxiliary = Images(pixels, torch.tensor([0, 0, 1, 1]))
    victims = auxiliary.take(torch.tensor([1, 2]))
    observations = [observe(victims.take(torch.tensor([i])), SPEC, number=i) for i in range(2)]
    found = Baseline()(observations, known(ThreatModel(labels=True, auxiliary_data=True), auxiliary=auxiliary))
    torch.testing.assert_close(found[0].images, torch.full((1, 1, 16, 16), 50 / 255))
    torch.testing.assert_close(found[1].images, torch.full((1, 1, 16, 16), 153 / 255))
    assert [f.labels.tolist() for f in found] == [[0], [1]]


def test_the_baseline_recovers_labels_that_are_not_granted(blobs: Blobs, observe: Observe) -> None:
    victim = blobs(2, 5).take(torch.tensor([1]))
    found = Baseline()([observe(victim, SPEC, labels=False)], known(Baseline.needs, auxiliary=blobs(8, 6)))
    assert found[0].labels.tolist() == [1]
