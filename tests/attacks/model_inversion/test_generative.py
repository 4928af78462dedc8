from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bands import CLASSES, SHAPE, Templates, bands

from fedveil.attacks import BrepMi, Gmi, KedMi, ModelInversion, TrainingBased
from fedveil.attacks.model_inversion.audit import audit_released, priors_of
from fedveil.attacks.model_inversion.gan import Critic, GanTraining, Generator, hinge, public_gan
from fedveil.attacks.model_inversion.released import ReleasedModel
from fedveil.attacks.model_inversion.scoring import InversionScorer, InversionVictims
from fedveil.defense.released.decoder import DecoderTraining

CPU = torch.device("cpu")
GAN = GanTraining(steps=200, batch_size=24, latent=8, width=4, learning_rate=2e-3)
ATTACKS: list[ModelInversion] = [
    Gmi(gan=GAN, steps=60, per_class=6),
    KedMi(gan=GAN, steps=60, per_class=6),
    BrepMi(gan=GAN, steps=10, per_class=6, points=8, tries=256),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generator is trained once."""
    return tmp_path_factory.mktemp("gans")


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_the_patterns_that_a_classifier_knows_are_found(
    attack: ModelInversion, told: ReleasedModel, victims: InversionVictims, scorer: InversionScorer, cache: Path
) -> None:
    report = audit_released([attack], told, bands(60, noise=0.05), victims, scorer, seed=0, device=CPU, cache=cache)
    scores = report.outcomes[attack.name].scores
    assert scores["target_accuracy"] >= 0.9
    assert scores["attacker_accuracy"] >= 0.9
    assert "mse" not in scores
    assert report.outcomes[attack.name].images.shape == (8, *SHAPE)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_a_classifier_that_answers_all_alike_gives_chance(
    attack: ModelInversion, dumb: ReleasedModel, victims: InversionVictims, scorer: InversionScorer, cache: Path
) -> None:
    report = audit_released([attack], dumb, bands(60, noise=0.05), victims, scorer, seed=0, device=CPU, cache=cache)
    # 18 images: chance is a third, with a standard deviation of 0.11.
    assert report.outcomes[attack.name].scores["attacker_accuracy"] == pytest.approx(1 / 3, abs=0.34)


def test_one_generator_serves_all_attacks_that_start_from_it_alike() -> None:
    other = GanTraining(steps=3)
    assert priors_of([*ATTACKS, Gmi(gan=other), TrainingBased()]) == [GAN, other]


def test_the_cache_gives_the_same_generator(tmp_path: Path) -> None:
    training = GanTraining(steps=2, batch_size=4, latent=2, width=2)
    first, again = (public_gan(bands(9), training, seed=1, device=CPU, cache=tmp_path) for _ in range(2))
    alone = public_gan(bands(9), training, seed=1, device=CPU)
    z, x = torch.randn(3, 2), bands(3).floats()
    for gan in (again, alone):
        assert torch.equal(first.generator(z), gan.generator(z))
        assert torch.equal(first.critic(x), gan.critic(x))
    assert len(list(tmp_path.iterdir())) == 1


def test_the_hinge_loss_by_hand() -> None:
    critic = Critic(SHAPE, 1)
    with torch.no_grad():
        critic.head.weight.zero_()
        critic.head.bias.fill_(0.25)
    x = bands(2).floats()
    # max(0, 1 - 0.25) for real images, and max(0, 1 + 0.25) for others
    assert float(hinge(critic, x, x).detach()) == pytest.approx(2.0)


@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 28, 28), (3, 32, 32), (1, 64, 64)])
def test_generator_and_critic_take_any_size(shape: tuple[int, int, int]) -> None:
    images = Generator(GanTraining(latent=3, width=2), shape)(torch.zeros(2, 3))
    assert images.shape == (2, *shape)
    assert Critic(shape, 2, outputs=CLASSES)(images).shape == (2, CLASSES)


def test_a_whole_audit_is_complete_and_reports_the_worst_case(
    told: ReleasedModel, victims: InversionVictims, scorer: InversionScorer
) -> None:
    tiny, short = GanTraining(steps=2, batch_size=4, latent=2, width=2), DecoderTraining(steps=3, width=2)
    gmi, plain = Gmi(gan=tiny, steps=2, per_class=2), TrainingBased(decoder=short)
    rounded = TrainingBased(decoder=short, reading="rounded")
    guarded = ReleasedModel(Templates(40.0), lambda logits: logits / 2, SHAPE, CLASSES)
    found = {
        name: audit_released(attacks, target, bands(30), victims, scorer, seed=0, device=CPU)
        for name, attacks, target in (
            ("undefended", [gmi, plain], told),
            ("guarded", [gmi, plain], guarded),
            ("guarded, reckoned with", [gmi, plain, rounded], guarded),
        )
    }
    assert {name: report.known["complete"] for name, report in found.items()} == {
        "undefended": 1,
        "guarded": 0,
        "guarded, reckoned with": 1,
    }
    metrics = found["guarded, reckoned with"].metrics()
    errors = [metrics["inversion/training_based/mse"], metrics["inversion/training_based_2/mse"]]
    assert metrics["inversion/mse"] == min(errors)
