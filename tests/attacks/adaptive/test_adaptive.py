from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import fedveil.attacks.adaptive.attacks as module
from fedveil.attacks import (
    Adaptive,
    AdaptiveModules,
    Baseline,
    InvertingGradients,
    Knowledge,
    Observation,
    TrainedImages,
)
from fedveil.attacks.adaptive.attacks import undo
from fedveil.attacks.adaptive.own_victims import own_victims
from fedveil.attacks.base import Attack, AttackerPreparation
from fedveil.attacks.inverse.reader import Reader
from fedveil.attacks.matching.exposure import BRIGHT
from fedveil.attacks.strongest import Strongest
from fedveil.attacks.target.model import target_model
from fedveil.defense import PixelNoise, TopK, UpdateNoise
from fedveil.defense.base import Stateless, Surrogate
from fedveil.defense.inverse.learnt import InverseTraining, LearntInverse
from fedveil.defense.inverse.network import UNTOLD
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import Reconstruction, ThreatModel
from fedveil.fl.models import ModelSpec, build_model
from fedveil.fl.seeding import torch_stream
from fedveil.fl.until_flat import Curve

SPEC = ModelSpec("lenet", (1, 12, 12), 2, width=4)
QUICK = InverseTraining(steps=60, batch_size=32, width=8)
CPU = torch.device("cpu")

Blobs = Callable[..., Images]
Observe = Callable[..., Observation]


class Constant(nn.Module):
    """Answers with one grey where the label is told, and with another where it is not; brighter by the draws' spread."""

    def __init__(self, grey: float, blind: float) -> None:
        super().__init__()
        self.grey, self.blind = nn.Parameter(torch.tensor(grey)), blind

    def forward(self, draws: Tensor, labels: Tensor) -> Tensor:
        told = torch.where(labels == UNTOLD, self.blind, self.grey).view(-1, 1, 1, 1)
        return told + torch.zeros_like(draws[0]) + (draws.std(dim=0) if len(draws) > 1 else 0)


CURVE = Curve((1,), (0.5,), flat=False)


def answering(
    grey: float, surrogate: Surrogate | None = None, *, observations: int = 1, reader: Reader | None = None
) -> AttackerPreparation:
    inverse = LearntInverse(Constant(grey, 0.125), observations, torch.arange(2), CURVE, 1.0)  # type: ignore[arg-type]
    return AttackerPreparation(surrogate or Surrogate(data=lambda x, y, stream: x), inverse, reader)


def known(preparations: dict[int | None, AttackerPreparation], needs: ThreatModel) -> Knowledge:
    target = target_model(build_model(SPEC), image_shape=SPEC.image_shape, classes=SPEC.classes)
    return Knowledge(replace(needs, labels=True), target, CPU, 3, preparations=preparations)


def each(images: Images, observe: Observe, **options: object) -> list[Observation]:
    return [observe(images.take(torch.tensor([i])), SPEC, number=i, client=i, **options) for i in range(len(images))]


# Inverting


def test_where_nothing_is_defended_it_is_the_plain_inversion(blobs: Blobs, observe: Observe) -> None:
    observations = each(blobs(2, 1, side=12), observe)
    inversion = InvertingGradients(steps=4)
    knowledge = known({None: AttackerPreparation(Surrogate(), None)}, Adaptive.needs)
    plain = inversion(observations, replace(knowledge, threat_model=ThreatModel(), preparations={}))
    adaptive = Adaptive(inversion=inversion)
    alone = adaptive(observations, knowledge)
    for mine, right in zip(alone, plain, strict=True):
        assert torch.equal(mine.images, right.images)
        assert mine.loss == right.loss
    # What was inverted already is not inverted again.
    built_on = adaptive(observations, knowledge, earlier={inversion: plain})
    assert all(mine.images is right.images for mine, right in zip(built_on, plain, strict=True))
    # Of other settings, or by another attack, it is another result.
    for other in (replace(inversion, steps=3), replace(adaptive, inversion=InvertingGradients(tv=0.5))):
        anew = adaptive(observations, knowledge, earlier={other: plain})
        assert not any(mine.images is right.images for mine, right in zip(anew, plain, strict=True))
    # Labels that this attacker recovers otherwise make another inversion too.
    wrong = [replace(one, labels=1 - one.labels) for one in plain]
    anew = adaptive(observations, knowledge, earlier={inversion: wrong})
    assert [one.labels.tolist() for one in anew] == [one.labels.tolist() for one in plain]


def test_a_brightness_that_was_guessed_without_auxiliary_images_is_set_by_them(blobs: Blobs, observe: Observe) -> None:
    spec, victims, others = ModelSpec("convnet", (1, 16, 16), 2, norm="group", width=8), blobs(1, 1), blobs(20, 2)
    knowledge = replace(
        known({None: AttackerPreparation(Surrogate(), None)}, Adaptive.needs),
        model=target_model(build_model(spec), image_shape=spec.image_shape, classes=spec.classes),
        auxiliary=others,
    )
    plain = Reconstruction(2 * victims.floats(), victims.labels, 1e-3, scale_guessed=True)
    observation = observe(victims, spec, number=0, client=0)
    attack = Adaptive(calibration=0)
    (found,) = attack([observation], knowledge, earlier={Strongest(): [plain]})
    own = others.floats()[others.labels == victims.labels]
    usual = own.flatten(1).quantile(BRIGHT, dim=1).mean()
    torch.testing.assert_close(found.images.flatten().quantile(BRIGHT), usual)
    assert found.scale_guessed
    # Where the update told the brightness, nothing is put in its place.
    (found,) = attack([observation], knowledge, earlier={Strongest(): [replace(plain, scale_guessed=False)]})
    assert torch.equal(found.images, plain.images)


def test_what_is_wrong_with_reconstructions_is_learnt_on_its_own_victims(
    blobs: Blobs, observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An inversion that answers with half of the brightness, and with noise: the attacker can know, and does better."""
    victims, others = blobs(6, 2, side=12), blobs(40, 2, side=12)
    truth = dict(enumerate(victims.floats()))
    seen: list[Observation] = []

    def poor(
        inversion: InvertingGradients,
        observations: Sequence[Observation],
        knowledge: Knowledge,
        visible: object = None,
    ) -> list[Reconstruction]:
        seen.extend(observations)
        stream = torch_stream(1, "poor")
        found = []
        for one in observations:
            image = truth[one.number] if one.client >= 0 else own[one.number]
            assert one.labels is not None
            found.append(
                Reconstruction((image / 2 + 0.1 * torch.rand(1, 12, 12, generator=stream))[None], one.labels, 0.0)
            )
        return found

    needs = Adaptive.needs
    preparation = AttackerPreparation(Surrogate(), None)
    knowledge = replace(known({None: preparation}, needs), auxiliary=others)
    observations = each(victims, observe)
    own = [one.batch.floats()[0] for one in own_victims(observations[0], preparation, knowledge, 16)]
    monkeypatch.setattr(InvertingGradients, "invert", poor)
    errors = {}
    for calibration in (0, 16):
        attack = Adaptive(inversion=InvertingGradients(steps=1), calibration=calibration)
        found = attack(observations, knowledge, earlier={})
        errors[calibration] = float((torch.cat([one.images for one in found]) - victims.floats()).square().mean())
        # The mean of a class that was told must not be read as a class that was found.
        assert all(
            torch.equal(one.images if one.blind is None else one.blind, poor_one.images)
            for one, poor_one in zip(found, poor(InvertingGradients(), observations, knowledge), strict=True)
        )
    assert errors[16] < errors[0] / 3
    pool = [image.tolist() for image in others.floats()]
    assert all(image.tolist() in pool for image in own)
    assert sum(one.client == -1 for one in seen) == 16


def test_the_inversion_is_passed_through_each_clients_own_inverse(blobs: Blobs, observe: Observe) -> None:
    observations = each(blobs(3, 1, side=12), observe)
    plain = [Reconstruction(torch.zeros(1, 1, 12, 12), torch.tensor([i % 2]), 0.1 * i) for i in range(3)]
    earlier: dict[Attack, list[Reconstruction]] = {Strongest(): plain}
    knowledge = known({0: answering(0.25), 2: answering(0.75), None: answering(0.5)}, AdaptiveModules.needs)
    found = AdaptiveModules()(observations, knowledge, earlier=earlier)
    assert [float(f.images.unique()) for f in found] == [0.25, 0.5, 0.75]
    assert [f.labels.tolist() for f in found] == [[0], [1], [0]]
    assert [f.loss for f in found] == [0.0, 0.1, 0.2]


def test_a_defended_update_is_inverted_anew_through_what_is_visible(
    blobs: Blobs, observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    defense, victims = TopK(keep=0.1), blobs(2, 1, side=12)
    observations = each(victims, observe, hooks=Stateless(defense))
    inversion = InvertingGradients(steps=60, learning_rate=0.1, tv=1e-3)
    monkeypatch.setattr(module, "tuned", lambda inversion, *_: inversion)
    surrogate = Stateless(defense).surrogate()
    knowledge = known({None: AttackerPreparation(surrogate, None)}, Adaptive.needs)
    plain = inversion.invert(observations, knowledge)
    adaptive = Adaptive(inversion=inversion)
    found = adaptive(observations, knowledge, earlier={inversion: plain})
    for mine, naive, truth in zip(found, plain, victims.floats(), strict=True):
        assert float((mine.images[0] - truth).square().mean()) < 0.2 * float((naive.images[0] - truth).square().mean())


def test_it_is_tuned_against_each_preparation_whoever_else_is_attacked(
    blobs: Blobs, observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = UpdateNoise(strength=0.01)
    surrogates = [Surrogate(update=noise.update) for _ in range(2)]
    asked: list[Surrogate] = []

    def tuned(
        inversion: InvertingGradients, like: Observation, surrogate: Surrogate, knowledge: Knowledge
    ) -> InvertingGradients:
        asked.append(surrogate)
        return replace(inversion, tv=0.5 if surrogate is surrogates[0] else 0.001)

    monkeypatch.setattr(module, "tuned", tuned)
    observations = each(blobs(4, 1, side=12), observe, hooks=Stateless(noise))
    observations = [replace(o, client=o.number % 2) for o in observations]
    preparations: dict[int | None, AttackerPreparation] = {
        c: AttackerPreparation(surrogates[c], None) for c in range(2)
    }
    attack = AdaptiveModules(inversion=InvertingGradients(steps=4))
    knowledge = known(preparations, attack.needs)
    together = attack(observations, knowledge)
    assert [s is surrogates[0] for s in asked] == [True, False]
    for observation, found in zip(observations, together, strict=True):
        (alone,) = attack([observation], knowledge)
        torch.testing.assert_close(alone.images, found.images, atol=1e-4, rtol=0)
        assert alone.loss == pytest.approx(found.loss, abs=1e-5)
    assert together[0].loss > 1.2 * together[1].loss


# The limit: perfect inversion


def test_a_perfect_inversion_of_an_undefended_client_is_the_image_itself(blobs: Blobs, observe: Observe) -> None:
    victims = blobs(2, 1, side=12)
    observations = [
        replace(o, trained_images=x[None]) for o, x in zip(each(victims, observe), victims.floats(), strict=True)
    ]
    found = TrainedImages()(observations, known({None: AttackerPreparation(Surrogate(), None)}, TrainedImages.needs))
    assert torch.equal(torch.cat([f.images for f in found]), victims.floats())
    assert [f.labels.tolist() for f in found] == [[0], [1]]


def test_a_perfect_inversion_goes_through_the_inverse_too(blobs: Blobs, observe: Observe) -> None:
    (observation,) = each(blobs(1, 1, side=12), observe)
    knowledge = known({None: answering(0.25)}, TrainedImages.needs)
    with pytest.raises(ValueError, match="lacks trained_images"):
        TrainedImages()([observation], knowledge)
    (found,) = TrainedImages()([replace(observation, trained_images=torch.zeros(1, 1, 12, 12))], knowledge)
    assert float(found.images.unique()) == 0.25


# The learnt inverse and its preparation


def test_undoing_stays_in_the_box_and_leaves_the_rest() -> None:
    found = Reconstruction(torch.rand((2, 1, 12, 12), generator=torch_stream(0, "x")), torch.tensor([0, 1]), 0.3)
    knowledge = known({}, Adaptive.needs)
    undone = undo([found], AttackerPreparation(Surrogate(), None), knowledge)
    assert torch.equal(undone.images, found.images)
    assert (undone.blind, undone.classes) == (None, None)
    undone = undo([found], answering(1.5), knowledge)
    assert undone.images.unique().tolist() == [1.0]
    assert not undone.images.requires_grad
    assert (undone.labels.tolist(), undone.loss) == ([0, 1], 0.3)


def test_who_was_told_the_label_shows_what_it_makes_of_it_untold() -> None:
    found = Reconstruction(torch.zeros(2, 1, 12, 12), torch.tensor([0, 1]), 0.3)
    told = known({}, Adaptive.needs)
    undone = undo([found], answering(0.75), told)
    assert undone.images.unique().tolist() == [0.75]
    assert undone.blind is not None
    assert undone.blind.unique().tolist() == [0.125]
    recovered = undo([found], answering(0.75), replace(told, threat_model=replace(told.threat_model, labels=False)))
    assert recovered.images.unique().tolist() == [0.75]
    assert recovered.blind is None
    # Of a class that it has never met it knows nothing.
    strange = undo([replace(found, labels=torch.tensor([0, 5]))], answering(0.75), told)
    assert [float(image.unique()) for image in strange.images] == [0.75, 0.125]


def test_all_draws_of_a_batch_are_looked_at_in_one_order() -> None:
    dark, bright = torch.full((1, 12, 12), 0.25), torch.full((1, 12, 12), 0.75)
    labels = torch.tensor([1, 1])
    first = Reconstruction(torch.stack([dark, bright]), labels, 0.2)
    again = Reconstruction(torch.stack([bright, dark]), labels, 0.4)
    knowledge = known({}, Adaptive.needs)
    undone = undo([first, again], answering(0.5, observations=2), knowledge)
    # Aligned, the draws agree.
    assert undone.images.unique().tolist() == [0.5]
    assert undone.loss == pytest.approx(0.3)
    # Of other labels, an image stays where its label says.
    undone = undo(
        [replace(one, labels=torch.tensor([0, 1])) for one in (first, again)], answering(0.5, observations=2), knowledge
    )
    torch.testing.assert_close(undone.images, torch.full((2, 1, 12, 12), 0.5 + 0.5 / 2**0.5))
    # Where one image explains all updates, their inversions are but one estimate each.
    together = undo([first, again], AttackerPreparation(Surrogate(), None), knowledge)
    assert torch.equal(together.images, first.images)


def test_every_update_of_a_batch_that_was_drawn_afresh_is_inverted_alone(blobs: Blobs, observe: Observe) -> None:
    noise = PixelNoise(strength=0.3)
    victims = blobs(2, 1, side=12)
    rounds = [each(victims, observe, hooks=Stateless(noise), seed=seed) for seed in range(3)]
    observations = [replace(first, repeats=(second, third)) for first, second, third in zip(*rounds, strict=True)]
    surrogate = Surrogate(data=noise.data)
    inversion = InvertingGradients(steps=30)
    attack = Adaptive(inversion=inversion)
    seen: list[Tensor] = []

    class Seeing(Constant):
        def forward(self, draws: Tensor, labels: Tensor) -> Tensor:
            seen.append(draws)
            return draws.mean(dim=0)

    inverse = LearntInverse(Seeing(0.0, 0.0), 3, torch.arange(2), CURVE, 1.0)  # type: ignore[arg-type]
    knowledge = known({None: AttackerPreparation(surrogate, inverse)}, Adaptive.needs)
    plain = [
        Reconstruction(torch.zeros(1, 1, 12, 12), one.labels, 0.0) for one in observations if one.labels is not None
    ]
    found = attack(observations, knowledge, earlier={inversion: plain})
    assert [tuple(draws.shape) for draws in seen] == [(3, 1, 1, 12, 12)] * 4
    for at, draws in enumerate(seen[::2]):
        for number, own in enumerate(rounds):
            (alone,) = inversion.invert([own[at]], knowledge)
            torch.testing.assert_close(draws[number], alone.images, atol=1e-3, rtol=0)
        torch.testing.assert_close(found[at].images, draws.mean(dim=0))
    # Handed the images themselves, it looks at those of each round.
    handed = [
        replace(one, trained_images=torch.full((1, 1, 12, 12), 0.1 * number))
        for number, one in enumerate(observations[0].series)
    ]
    granted = replace(handed[0], repeats=tuple(handed[1:]))
    (perfect,) = TrainedImages()([granted], known({None: AttackerPreparation(surrogate, inverse)}, TrainedImages.needs))
    torch.testing.assert_close(perfect.images, torch.full((1, 1, 12, 12), 0.1))


def test_it_stands_on_an_attack_that_matches_gradients() -> None:
    assert Adaptive().inversion == Strongest()
    for wrong in (Adaptive(), TrainedImages(), Baseline()):
        with pytest.raises(FedveilError, match="it has to be an attack that matches gradients"):
            Adaptive(inversion=wrong)
