from __future__ import annotations

import math

import pytest
import torch
from bands import CLASSES, bands, patterns

from fedveil.attacks import TrainingBased
from fedveil.attacks.model_inversion.audit import audit_released
from fedveil.attacks.model_inversion.base import InversionKnowledge
from fedveil.attacks.model_inversion.released import Access, ReleasedModel
from fedveil.attacks.model_inversion.scoring import InversionScorer, InversionVictims, label_alone
from fedveil.defense.released.decoder import SHIFT, ConfidenceDecoder, DecoderTraining, truncated_logs

CPU = torch.device("cpu")
SHORT = DecoderTraining(steps=300, width=4, learning_rate=1e-2, batch_size=32)


def test_log_confidences_are_cut_off_below_minus_c() -> None:
    found = truncated_logs(torch.tensor([[1.0, math.exp(-25), math.exp(-60), 0.0]]))
    assert found.tolist() == [pytest.approx([1.0, 0.5, 0.0, 0.0])]
    assert SHIFT == 50


@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 28, 28), (3, 32, 32), (1, 64, 64), (1, 20, 29)])
def test_a_decoder_paints_images_of_any_size(shape: tuple[int, int, int]) -> None:
    image = ConfidenceDecoder(5, shape, width=2)(torch.full((2, 5), 0.2))
    assert image.shape == (2, *shape)
    assert 0 <= float(image.min()) <= float(image.max()) <= 1


def test_patterns_are_rebuilt_from_what_the_classifier_answers(
    told: ReleasedModel, victims: InversionVictims, scorer: InversionScorer
) -> None:
    report = audit_released(
        [TrainingBased(decoder=SHORT)], told, bands(60, noise=0.05), victims, scorer, seed=0, device=CPU
    )
    scores = report.outcomes["training_based"].scores
    assert scores["attacker_accuracy"] == scores["target_accuracy"] == 1
    assert scores["mse"] < 0.005
    assert scores["heldout_mse"] < 0.005
    assert scores["mse_low"] <= scores["mse"] <= scores["mse_high"]
    assert report.outcomes["training_based"].images.shape == (8, 1, 12, 12)
    errors = report.outcomes["training_based"].errors
    assert errors is not None
    assert float(errors.double().mean()) == pytest.approx(scores["mse"])
    metrics = report.metrics()
    assert metrics["inversion/mse"] == metrics["inversion/training_based/mse"] == scores["mse"]
    assert metrics["inversion/chance_accuracy"] == pytest.approx(1 / 3)
    # Nobody had the weights.
    assert metrics["inversion/complete"] == 0


def test_answers_that_are_all_alike_leave_the_mean_image(
    dumb: ReleasedModel, victims: InversionVictims, scorer: InversionScorer
) -> None:
    attacker = bands(60)
    report = audit_released([TrainingBased(decoder=SHORT)], dumb, attacker, victims, scorer, seed=0, device=CPU)
    # A band is 0.6 brighter in a third of the image, so that the mean image is off by 0.4 there and by 0.2 in as much again
    # twice: (0.16 + 0.04 + 0.04) / 3.
    assert report.known["baseline_mse"] == pytest.approx(0.08, abs=1e-3)
    assert report.outcomes["training_based"].scores["mse"] == pytest.approx(0.08, abs=4e-3)
    assert report.outcomes["training_based"].scores["attacker_accuracy"] == pytest.approx(1 / 3)


def test_an_attacker_with_labels_alone_answers_with_class_means(told: ReleasedModel, victims: InversionVictims) -> None:
    known = label_alone(bands(30), told, victims)
    assert known == pytest.approx({"baseline_mse": 0.0, "heldout_baseline_mse": 0.0}, abs=1e-6)
    # Its images are all of the first class: for the others it has the mean of all, which is off by 0.6 in two thirds.
    first = bands(30).take(torch.arange(0, 30, 3))
    assert label_alone(first, told, victims)["baseline_mse"] == pytest.approx(2 / 3 * 0.36 * 2 / 3, abs=1e-3)


def test_readings_of_an_answer() -> None:
    answers = torch.tensor([[0.6, 0.3, 0.1], [0.34, 0.33, 0.33]])
    sharp = TrainingBased(reading="sharpened", power=2.0).read(answers)
    assert sharp[0].tolist() == pytest.approx([0.36 / 0.46, 0.09 / 0.46, 0.01 / 0.46])
    assert TrainingBased(reading="rounded").read(answers)[1].tolist() == pytest.approx([1 / 3] * 3)
    assert TrainingBased(reading="label").read(answers).tolist() == [[1, 0, 0], [1, 0, 0]]
    assert torch.equal(TrainingBased().read(answers), answers)
    many = torch.full((1, 40), 1 / 40)
    assert TrainingBased(reading="rounded").read(many)[0].tolist() == pytest.approx([1 / 40] * 40)


def test_the_same_seed_gives_the_same_images(told: ReleasedModel) -> None:
    attack = TrainingBased(decoder=DecoderTraining(steps=5, width=2))
    knowledge = InversionKnowledge(bands(20), CPU, 3, observed=told.confidences(patterns()))
    one, other = (attack(told.granted(Access.CONFIDENCES), knowledge).images for _ in range(2))
    assert torch.equal(one, other)
    assert one.shape[0] == CLASSES
