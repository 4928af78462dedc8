from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fedveil.attacks import Knowledge, Observation
from fedveil.attacks.adaptive.defence_law import CHEAP, DataLaw, mean_features
from fedveil.attacks.adaptive.forward_matching import from_images, from_updates
from fedveil.attacks.adaptive.passes import Passes
from fedveil.attacks.audit.capture import capture, together
from fedveil.attacks.scoring.victims import VictimBatch
from fedveil.attacks.target.model import target_model
from fedveil.defense import Defense, NoDefense, PixelNoise, TopK, UpdateNoise
from fedveil.defense.base import Stateless, Surrogate
from fedveil.defense.stack import Stack
from fedveil.fl.data.images import Images
from fedveil.fl.messages import Likeness, ThreatModel, UpdateKind
from fedveil.fl.models import ModelSpec, build_model, init_model
from fedveil.fl.seeding import torch_stream
from fedveil.fl.training import LocalTraining

SPEC = ModelSpec("lenet", (1, 12, 12), 2, width=4)
CPU = torch.device("cpu")
TRAINING = LocalTraining(UpdateKind.DELTA, 1, 4, 0.05)

Blobs = Callable[..., Images]


@pytest.fixture
def knowledge(blobs: Blobs) -> Knowledge:
    target = target_model(build_model(SPEC), image_shape=SPEC.image_shape, classes=2)
    granted = ThreatModel(auxiliary_data=True, defense_algorithm=True)
    return Knowledge(granted, target, CPU, seed=0, auxiliary=blobs(96, 500, side=12))


@pytest.fixture
def gallery(blobs: Blobs) -> Images:
    """The victims come first."""
    return blobs(60, 3, side=12)


def found(likenesses: list[Likeness], gallery: Images) -> float:
    scores = torch.cat([likeness(gallery.floats()) for likeness in likenesses])
    assert scores.shape == (len(likenesses), len(gallery))
    return float((scores.argmax(1) == torch.arange(len(scores))).double().mean())


def seen(
    gallery: Images, defense: Defense[Any], *, rounds: tuple[int, ...] = (0,), count: int = 12
) -> list[Observation]:
    """What clients with one image each sent, with the weights of these rounds."""
    weights = {number: init_model(SPEC, number) for number in rounds}
    model, hooks = build_model(SPEC), Stateless(defense)
    made = []
    for at in range(count):
        batch = VictimBatch(at, at, (at,), gallery.take(torch.tensor([at])))
        times = [
            capture(model, weights[number], batch, hooks, TRAINING, local_steps=1, stream=torch_stream(7, at, time))
            for time, number in enumerate(rounds)
        ]
        observation, truth = together(times)
        series = [replace(one, labels=truth.labels) for one in observation.series]
        made.append(replace(series[0], repeats=tuple(series[1:])))
    return made


def drawn(gallery: Images, defense: PixelNoise, repeats: int, count: int = 24) -> list[Tensor]:
    images, stream = gallery.floats()[:count], torch_stream(9, "drawn")
    draws = torch.stack([defense.data(images, None, stream) for _ in range(repeats)])
    return [draws[:, at : at + 1] for at in range(count)]


# By images


def test_an_image_is_recognised_behind_noise_and_better_the_more_often_it_was_seen(
    gallery: Images, knowledge: Knowledge
) -> None:
    noise = PixelNoise(strength=0.5)
    labels = list(gallery.labels[:24].split(1))
    rates = {}
    for repeats in (1, 8):
        draws = drawn(gallery, noise, repeats)
        rates[repeats] = found(from_images(draws, labels, Surrogate(data=noise.data), knowledge, exact=True), gallery)
    assert rates[8] > rates[1] > 5 / 60
    assert rates[8] > 0.7


def test_a_shift_of_all_images_hides_nothing_from_who_knows_it(gallery: Images, knowledge: Knowledge) -> None:
    def upside_down(x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        return 1 - x.flip(2)

    shown = [upside_down(x, None, torch_stream(0))[None] for x in gallery.floats()[:12].split(1)]
    labels = list(gallery.labels[:12].split(1))
    for exact in (True, False):
        assert found(from_images(shown, labels, Surrogate(data=upside_down), knowledge, exact=exact), gallery) == 1.0
    assert found(from_images(shown, labels, Surrogate(), knowledge, exact=True), gallery) < 0.5


def test_each_image_of_a_batch_is_recognised_by_its_own_label(gallery: Images, knowledge: Knowledge) -> None:
    def by_class(x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        assert y is not None
        return torch.where(y.view(-1, 1, 1, 1) == 0, x, 1 - x)

    x, y = gallery.batch(torch.arange(6))
    shown = by_class(x, y, torch_stream(0))
    draws, labels = [shown[None, :4], shown[None, 4:]], [y[:4], y[4:]]
    likenesses = from_images(draws, labels, Surrogate(data=by_class), knowledge, exact=True)
    assert [tuple(likeness(gallery.floats()).shape) for likeness in likenesses] == [(4, 60), (2, 60)]
    assert torch.cat([likeness(gallery.floats()) for likeness in likenesses]).argmax(1).tolist() == list(range(6))


def test_the_candidates_pass_the_defence_once_for_all_victims(gallery: Images, knowledge: Knowledge) -> None:
    passed: list[int] = []

    def halved(x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        passed.append(len(x))
        return x / 2

    draws = [x[None] / 2 for x in gallery.floats()[:5].split(1)]
    likenesses = from_images(draws, list(gallery.labels[:5].split(1)), Surrogate(data=halved), knowledge, exact=True)
    passed.clear()
    candidates = gallery.floats()
    likenesses[0](candidates)
    once = sum(passed)
    assert once >= CHEAP.draws * len(gallery)
    for likeness in likenesses:
        likeness(candidates)
    assert sum(passed) == once
    likenesses[0](candidates.clone())
    assert sum(passed) == once
    likenesses[0](candidates.flip(3))
    assert sum(passed) == once + CHEAP.draws * len(gallery), "other candidates are other candidates"


def test_nothing_is_computed_for_an_audit_without_a_gallery(gallery: Images, knowledge: Knowledge) -> None:
    bare = replace(knowledge, auxiliary=None)
    from_updates(seen(gallery, PixelNoise(), count=1), Surrogate(data=PixelNoise().data), bare)
    x = gallery.floats()[:1]
    from_images([x[None]], [gallery.labels[:1]], Surrogate(data=PixelNoise().data), bare, exact=True)


# By updates


@pytest.mark.parametrize(
    "defense",
    [
        NoDefense(),
        TopK(keep=0.1),
        UpdateNoise(strength=1e-3),
        PixelNoise(strength=0.1),
        Stack(parts=(PixelNoise(strength=0.05), TopK(keep=0.2))),
        Stack(parts=(PixelNoise(strength=0.05), UpdateNoise(strength=1e-3))),
    ],
    ids=["none", "top-k", "update-noise", "data", "data-and-top-k", "data-and-noise"],
)
def test_an_image_is_recognised_behind_its_update(defense: Defense[Any], gallery: Images, knowledge: Knowledge) -> None:
    likenesses = from_updates(seen(gallery, defense), Stateless(defense).surrogate(), knowledge)
    assert found(likenesses, gallery) > 0.7


def test_several_rounds_tell_more_than_one(gallery: Images, knowledge: Knowledge) -> None:
    noise = PixelNoise(strength=0.4)
    once, same_weights, other_weights = (
        found(from_updates(seen(gallery, noise, rounds=own), Surrogate(data=noise.data), knowledge), gallery)
        for own in ((0,), (0, 0, 0, 0), (0, 1, 2, 3))
    )
    assert min(same_weights, other_weights) > once


def test_the_score_of_an_undefended_update_is_the_cosine_of_gradients(gallery: Images, knowledge: Knowledge) -> None:
    (observation,) = seen(gallery, NoDefense(), count=1)
    (likeness,) = from_updates([observation], Surrogate(), knowledge)
    scores = likeness(gallery.floats()[:6])
    model = build_model(SPEC)
    model.load_state_dict(dict(observation.weights))
    sent = torch.cat([tensor.flatten() for tensor in observation.update.tensors.values()])
    for at in range(6):
        loss = F.cross_entropy(model(gallery.floats()[at : at + 1]), gallery.labels[:1])
        own = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
        assert float(scores[0, at]) == pytest.approx(float(F.cosine_similarity(sent, own, dim=0)), abs=1e-5)


def test_where_labels_are_not_told_those_that_the_attacker_recovers_are_used(
    gallery: Images, knowledge: Knowledge
) -> None:
    untold = [replace(one, labels=None) for one in seen(gallery, NoDefense(), count=4)]
    asked = replace(knowledge, threat_model=replace(knowledge.threat_model, labels=False))
    assert found(from_updates(untold, Surrogate(), asked), gallery) == 1.0


# The law of a defence


def flat(images: Tensor) -> Tensor:
    return images.flatten(1)


def test_common_noise_shifts_all_candidates_alike_and_the_shift_is_taken_off(
    knowledge: Knowledge, gallery: Images
) -> None:
    def noisy(x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        return x + torch.randn(x.shape, generator=stream)

    law = DataLaw.of(flat, None, Passes(noisy, knowledge.seed), knowledge, effort=CHEAP, round=True)
    x = gallery.floats()[:5]
    shift = law.means(x) - flat(x)
    torch.testing.assert_close(shift, shift[:1].expand_as(shift))
    assert float(shift.abs().mean()) > 0.1
    # Additive noise is gone altogether: what is left is the error of the means over auxiliary images.
    distances = law.distances(flat(x), x)
    assert float(distances.diagonal().max()) < 0.05 * 144
    assert distances.argmin(1).tolist() == list(range(5))


def test_the_metric_is_chosen_on_auxiliary_images(knowledge: Knowledge) -> None:
    # Strong noise along the ramp, nothing elsewhere: only a metric that is not round sees past it.
    ramp = torch.linspace(0, 1, 12).expand(1, 12, 12)

    def brightened(x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        return x + 5 * torch.randn((len(x), 1, 1, 1), generator=stream) * ramp

    passes = Passes(brightened, knowledge.seed)
    chosen = DataLaw.of(flat, None, passes, knowledge, effort=CHEAP).metric
    assert len(chosen.scatter) > 0
    assert len(DataLaw.of(flat, None, passes, knowledge, effort=CHEAP, round=True).metric.scatter) == 0


def test_the_draws_are_the_same_however_candidates_are_cut(gallery: Images) -> None:
    means = mean_features(flat, None, Passes(PixelNoise(strength=0.3).data, 0), draws=4)
    x = gallery.floats()
    whole = means(x)
    parts = torch.cat([means(chunk) for chunk in x.split(7)])
    torch.testing.assert_close(parts, whole)


def test_what_was_drawn_for_one_class_is_kept_for_the_next_unless_the_defence_reads_it(gallery: Images) -> None:
    x, calls = gallery.floats()[:6], []

    def unaware(images: Tensor, labels: Tensor | None, stream: torch.Generator) -> Tensor:
        calls.append(len(images))
        return images + torch.randn(images.shape, generator=stream)

    passes = Passes(unaware, 0)
    first = [*passes.own(x, 0, "some", 2), *passes.common(x, 0, 1)]
    asked = len(calls)
    again = [*passes.own(x, 1, "some", 2), *passes.common(x, 1, 1)]
    assert len(calls) == asked
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    # Other images, or the same ones for another purpose, are drawn for themselves.
    (other,) = passes.own(x, 0, "more", 1)
    (fewer,) = passes.own(x[:3], 0, "some", 1)
    assert not torch.equal(other, first[0])
    assert len(fewer) == 3

    def aware(images: Tensor, labels: Tensor | None, stream: torch.Generator) -> Tensor:
        assert labels is not None
        return images + labels[:, None, None, None]

    (zero,), (one,) = (Passes(aware, 0).own(x, label, "some", 1) for label in (0, 1))
    torch.testing.assert_close(one, zero + 1)
