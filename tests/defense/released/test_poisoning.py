from __future__ import annotations

import pickle

import pytest
import torch
from bands import CLASSES, SHAPE, Templates, bands
from torch.nn import functional as F

from fedveil.defense import DefenseContext, LabelFlippingPoisoning, LabelPreservingPoisoning
from fedveil.defense.released.decoder import ConfidenceDecoder
from fedveil.defense.released.lfp import learn_weight
from fedveil.defense.released.poisoning import Queries, Surrogate, away, learn_direction, pushed
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError, SettingError
from fedveil.fl.models import ModelSpec

CPU = torch.device("cpu")


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def context(images: Images) -> DefenseContext:
    return DefenseContext(images, ModelSpec("lenet", SHAPE, CLASSES), CPU, seed=0)


@pytest.fixture(scope="module")
def queries() -> Queries:
    return Queries.of(Templates(10.0), bands(60, noise=0.15), CPU)


@pytest.fixture(scope="module")
def surrogate(queries: Queries) -> Surrogate:
    return Surrogate.trained(queries, width=2, steps=60, stream=stream())


def test_the_surrogates_gradient_is_that_of_the_decoder(queries: Queries, surrogate: Surrogate) -> None:
    decoder = ConfidenceDecoder(CLASSES, SHAPE, 2)
    decoder.load_state_dict(surrogate.stages[-1])
    decoder.eval()
    F.mse_loss(decoder(queries.confidences.float()), queries.images).backward()
    slow = torch.cat([parameter.grad.flatten() for parameter in decoder.parameters() if parameter.grad is not None])
    fast = surrogate.gradient(2, queries.confidences, queries.images)
    assert torch.allclose(fast, slow, atol=1e-7)
    assert torch.equal(away(surrogate, queries)[2], -fast)


def test_the_surrogate_learns_stage_by_stage(queries: Queries, surrogate: Surrogate) -> None:
    errors = []
    for stage in surrogate.stages:
        decoder = ConfidenceDecoder(CLASSES, SHAPE, 2)
        decoder.load_state_dict(stage)
        errors.append(float(F.mse_loss(decoder.eval()(queries.confidences.float()), queries.images).detach()))
    assert len(errors) == 3
    assert errors[2] < errors[0]


def test_a_learnt_direction_turns_the_gradient_towards_the_goal(queries: Queries, surrogate: Surrogate) -> None:
    goals = away(surrogate, queries)
    network = learn_direction(surrogate, queries, goals, budget=0.5, keep=True, steps=60, stream=stream())
    answers = pushed(network, queries.confidences, queries.confidences.argmax(1), 0.5)

    def cosine(confidences: torch.Tensor) -> float:
        return float(F.cosine_similarity(surrogate.gradient(2, confidences, queries.images), goals[2], dim=0))

    assert cosine(queries.confidences) == pytest.approx(-1.0, abs=1e-5)
    assert cosine(answers) > -0.9
    assert torch.equal(answers.argmax(1), queries.confidences.argmax(1))


def test_the_weight_of_an_answer_follows_the_length_of_its_images_gradient(
    queries: Queries, surrogate: Surrogate
) -> None:
    network = learn_weight(surrogate, queries, steps=200, stream=stream())
    read = network(queries.confidences.float())[:, 0]
    lengths = torch.stack(
        [surrogate.gradient(2, queries.confidences[[at]], queries.images[[at]]).norm() for at in range(len(queries))]
    )
    both = torch.stack([read, lengths.log()])
    assert float(torch.corrcoef(both)[0, 1]) > 0.3


def test_lpa_keeps_every_label_and_says_what_it_learnt() -> None:
    images, model = bands(60, noise=0.15), Templates(10.0)
    guard = LabelPreservingPoisoning(strength=0.3, steps=20, surrogate_steps=30, width=2).guard(
        model, context(images), None
    )
    logits = model(bands(30, noise=0.3, seed=1).floats())
    found = guard(logits)
    assert torch.equal(found.argmax(1), logits.argmax(1))
    told = guard.diagnostics()
    assert told.keys() == {"alignment", "unmoved_alignment", "output_l1"}
    assert 0 < told["output_l1"] <= 0.3 + 1e-6
    again = pickle.loads(pickle.dumps(guard))  # noqa: S301 - made here
    assert torch.equal(again(logits), found)
    same = LabelPreservingPoisoning(strength=0.3, steps=20, surrogate_steps=30, width=2).guard(
        model, context(images), None
    )
    assert torch.equal(same(logits), found)


def test_lfp_changes_few_answers() -> None:
    images, model = bands(120, noise=0.15), Templates(10.0)
    guard = LabelFlippingPoisoning(fraction=0.1, steps=20, surrogate_steps=30, width=2).guard(
        model, context(images), None
    )
    logits = model(images.floats())
    changed = (guard(logits) != logits).any(1).double().mean().item()
    assert 0 < changed <= 0.3
    assert guard.diagnostics()["flipped"] <= 0.1 + 1 / 60


def test_too_few_public_images_and_impossible_shares_are_refused() -> None:
    with pytest.raises(FedveilError, match=r"defense lpa \(half of data\.public_fraction\): class 0 has 1 groups"):
        LabelPreservingPoisoning().guard(Templates(10.0), context(bands(3)), None)
    with pytest.raises(SettingError, match="fraction"):
        LabelFlippingPoisoning(fraction=0.0)
