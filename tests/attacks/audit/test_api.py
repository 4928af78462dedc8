from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fedveil.attacks.scoring.scorer as scorer_module
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
)
from fedveil.attacks.audit.api import audit
from fedveil.attacks.audit.capture import client_update
from fedveil.attacks.scoring import Judge, train_judge
from fedveil.attacks.strongest import Strongest
from fedveil.defense import Defense, DefenseContext, LatentAutoencoder, PixelNoise, TopK
from fedveil.fl.data import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import ClientUpdate, Reconstruction
from fedveil.fl.models import ModelSpec, build_model
from fedveil.fl.training import exchanged

SPEC = ModelSpec("lenet", (1, 12, 12), 2, width=4)
WIDE = ModelSpec("lenet", (1, 16, 16), 2, width=8)
CLOSE = InvertingGradients(steps=60, learning_rate=0.1, tv=1e-3)
QUICK = InverseTraining(steps=2, batch_size=8, width=4)
PLAIN = InvertingGradients(steps=1)
MODULES = AdaptiveModules(inversion=InvertingGradients(steps=2), inverse=QUICK)
ADAPTIVE = Adaptive(inversion=InvertingGradients(steps=2), inverse=QUICK)
LATENT = LatentAutoencoder(steps=1, client_steps=1, public_steps=1, adversary_steps=1)

Blobs = Callable[..., Images]


@pytest.fixture(scope="session")
def judge(blobs: Blobs) -> Judge:
    return train_judge(blobs(12, 100, side=12), classes=2, seed=0, steps=2)


@pytest.fixture(autouse=True)
def no_training_of_judges(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer_module, "cached_judge", lambda *_, **__: judge)


def model() -> nn.Module:
    return build_model(SPEC)


def gradient(images: Images) -> dict[str, Tensor]:
    net = model()
    F.cross_entropy(net(images.floats()), images.labels).backward()
    return {name: parameter.grad for name, parameter in net.named_parameters() if parameter.grad is not None}


def prepared(images: Images) -> Any:
    context = DefenseContext(images, SPEC, torch.device("cpu"), seed=0)
    return LATENT.prepare(images, context, LATENT.pretrain(context), client=0)


# What comes back


def test_an_audit_of_ones_own_gradient(blobs: Blobs) -> None:
    victim, net = blobs(1, 1), build_model(WIDE)
    F.cross_entropy(net(victim.floats()), victim.labels).backward()
    sent = {name: parameter.grad for name, parameter in net.named_parameters()}
    report = audit(net, sent, images=victim.floats(), labels=victim.labels, attacks=[CLOSE])
    (record,) = report.records
    assert (record.attack, record.label, record.trained_mse) == ("inverting_gradients", 0, 0.0)
    assert (record.baseline_mse, record.attacker_label, record.identified) == (None, None, None)
    assert report.worst("mse") == record.mse < 5e-3
    assert report.reconstructions["inverting_gradients"].shape == (1, 1, 16, 16)
    assert report.notes == ()


def test_all_forms_of_images_and_updates_give_the_same_audit(blobs: Blobs) -> None:
    victims = blobs(2, 1, side=12)
    grads = gradient(victims)
    images = victims.floats()
    first = audit(model(), grads, images=images, labels=victims.labels, attacks=[PLAIN])
    for update, x, y in [
        (ClientUpdate.gradient(grads), victims.pixels, victims.labels.tolist()),
        ([-0.01 * value.numpy() for value in grads.values()], images[:, 0].numpy(), victims.labels.numpy()[:, None]),
        ([w - 0.01 * grads[n] for n, w in exchanged(model()).items()], images.double(), victims.labels),
        ([grads], victims, None),
    ]:
        report = audit(model(), update, images=x, labels=y, attacks=[PLAIN])
        found = report.reconstructions["inverting_gradients"]
        torch.testing.assert_close(found, first.reconstructions["inverting_gradients"], atol=0.11, rtol=0)
        assert [(r.victim, r.label) for r in report.records] == [(0, 0), (1, 1)]


def test_several_updates_are_one_victim_batch_each(blobs: Blobs) -> None:
    victims = blobs(4, 1, side=12)
    updates = [gradient(victims.take(torch.tensor(rows))) for rows in ([0, 1], [2, 3])]
    report = audit(model(), updates, images=victims, attacks=[PLAIN])
    assert [(r.client, r.victim) for r in report.records] == [(0, 0), (0, 1), (1, 2), (1, 3)]
    alone = audit(model(), updates[0], images=victims.take(torch.arange(2)), attacks=[PLAIN])
    both, one = report.reconstructions["inverting_gradients"], alone.reconstructions["inverting_gradients"]
    torch.testing.assert_close(both[:2], one, atol=1e-4, rtol=0)


def test_without_images_it_reconstructs_and_scores_nothing(blobs: Blobs) -> None:
    victims = blobs(2, 1, side=12)
    report = audit(model(), gradient(victims), labels=victims.labels, image_shape=(1, 12, 12), attacks=[PLAIN])
    assert report.reconstructions["inverting_gradients"].shape == (2, 1, 12, 12)
    assert (report.records, report.originals, report.victims) == ((), None, (0, 1))
    one = gradient(blobs(1, 1, side=12))
    unknown = audit(model(), one, image_shape=(1, 12, 12), attacks=[PLAIN])
    told = audit(model(), one, labels=[0], image_shape=(1, 12, 12), attacks=[PLAIN])
    assert torch.equal(*(r.reconstructions["inverting_gradients"] for r in (unknown, told)))


def test_the_labels_of_a_batch_are_recovered(blobs: Blobs) -> None:
    victims = blobs(4, 1, side=12)
    shown: dict[str, Any] = {"images": victims.floats(), "attacks": [PLAIN], "auxiliary": blobs(12, 2, side=12)}
    report = audit(model(), gradient(victims), labels=victims.labels, labels_known=False, **shown)
    assert [record.label for record in report.records] == [0, 1, 0, 1]
    assert all(record.label_recovered for record in report.records)
    assert all(record.baseline_mse is not None for record in report.records)
    # Nobody says whose label is whose, so nothing is scored by it.
    unlabelled = audit(model(), gradient(victims), **shown)
    assert sorted(record.label for record in unlabelled.records) == [0, 0, 1, 1]
    assert {(record.baseline_mse, record.attacker_label) for record in unlabelled.records} == {(None, None)}
    assert any("whose is whose" in note for note in unlabelled.notes)
    # Recovered labels are no truth that a recovery could be held against.
    assert {record.label_recovered for record in unlabelled.records} == {None}
    recovery = "attack/inverting_gradients/label_recovery"
    assert recovery in report.summary()
    assert recovery not in unlabelled.summary()


@pytest.mark.parametrize("given", [True, False])
def test_labels_that_are_not_known_are_recovered(given: bool, blobs: Blobs) -> None:
    victim = blobs(2, 1, side=12).take(torch.tensor([1]))
    labels = victim.labels if given else None
    report = audit(
        model(), gradient(victim), images=victim.floats(), labels=labels, labels_known=False, attacks=[PLAIN]
    )
    (record,) = report.records
    assert (record.label, record.label_recovered, record.threat_model.labels) == (1, True if given else None, False)
    assert bool(report.notes) == (not given)


def test_the_default_attacks_are_those_that_have_what_they_need(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    victim, auxiliary = blobs(1, 1, side=12), blobs(12, 2, side=12)
    for name, quick in [("adaptive", ADAPTIVE), ("strongest", Strongest(steps=20, contenders=("deep_leakage",)))]:
        monkeypatch.setitem(ATTACKS._entries, name, lambda quick=quick: quick)
    monkeypatch.setitem(
        ATTACKS._entries,
        "adaptive_modules",
        lambda: MODULES,
    )
    ran = {}
    for what, options in {
        "nothing": {},
        "auxiliary": {"auxiliary": auxiliary},
        "settings": {"auxiliary": (auxiliary.floats(), auxiliary.labels), "defense": PixelNoise()},
        "prepared": {"auxiliary": auxiliary, "defense": prepared(blobs(4, 3, side=12))},
    }.items():
        report = audit(model(), gradient(victim), images=victim, **options)
        ran[what] = [*report.reconstructions]
        assert (report.records[0].baseline_mse is None) == (what == "nothing")
        assert bool(report.notes) == (what == "nothing")
    assert ran == {
        "nothing": ["strongest"],
        "auxiliary": ["strongest", "adaptive"],
        "settings": ["strongest", "adaptive"],
        "prepared": ["strongest", "adaptive_modules"],
    }


def test_a_gallery_holds_the_originals_and_the_others(blobs: Blobs) -> None:
    victim, others = blobs(1, 1, side=12), blobs(6, 2, side=12)
    report = audit(model(), gradient(victim), images=victim, gallery=others.floats(), attacks=[CLOSE])
    assert report.worst("identification_rate") == 1.0


@dataclass(frozen=True, kw_only=True)
class Counts(Attack):
    """Shows how often it saw a batch, and keeps what it saw."""

    name: ClassVar[str] = "counts"
    seen: ClassVar[list[Observation]] = []

    def run(self, observations: Sequence[Observation], knowledge: Knowledge, earlier: Earlier) -> list[Reconstruction]:
        self.seen[:] = observations
        return [
            Reconstruction(torch.full((o.batch_size, 1, 12, 12), len(o.series) / 10), torch.zeros(1).long(), 0.0)
            for o in observations
        ]


def test_updates_of_the_same_images_at_other_times(blobs: Blobs) -> None:
    victims, now, then = blobs(2, 1, side=12), model(), build_model(SPEC, 1)
    noise, singles = PixelNoise(strength=0.05), [victims.take(torch.tensor([at])) for at in range(2)]

    def sent(net: nn.Module, seed: int) -> tuple[list[ClientUpdate], Tensor]:
        made = [client_update(net, one, None, defense=noise, seed=seed) for one in singles]
        return [update for update, _ in made], torch.cat([trained for _, trained in made])

    (first, x1), (second, x2), (third, x3) = sent(now, 0), sent(now, 1), sent(then, 2)
    shown: dict[str, Any] = {"images": victims, "attacks": [Counts()], "defense": noise}
    report = audit(now, first, repeats=[second, (then, third)], trained_images=[x1, x2, x3], **shown)
    assert report.reconstructions["counts"].unique().tolist() == pytest.approx([0.3])
    mean = torch.stack([x1, x2, x3]).mean(0)
    assert report.trained is not None
    torch.testing.assert_close(report.trained, mean)
    for number, observation in enumerate(Counts.seen):
        updates = [first[number], second[number], third[number]]
        for one, update, net in zip(observation.series, updates, (now, now, then), strict=True):
            assert all(torch.equal(one.update.tensors[name], update.tensors[name]) for name in update.tensors)
            assert all(torch.equal(weight, net.state_dict()[name]) for name, weight in one.weights.items())
            assert (one.number, one.labels.tolist()) == (number, [number])  # type: ignore[union-attr]
        assert observation.repeats[0].weights is observation.weights, "one round's weights are one object"
    undefended = audit(now, first, repeats=[second], images=victims, attacks=[Counts()])
    assert undefended.trained is not None
    torch.testing.assert_close(undefended.trained, victims.floats())

    with pytest.raises(FedveilError, match=r"repeats: repeat 0 holds 1 update\(s\), expected 2"):
        audit(now, first, repeats=[second[:1]], **shown)
    with pytest.raises(FedveilError, match="repeats: the model of repeat 0 has other parameters"):
        audit(now, first, repeats=[(build_model(WIDE), second)], **shown)
    with pytest.raises(FedveilError, match="trained_images: expected 2, one for each time"):
        audit(now, first, repeats=[second], trained_images=[x1], **shown)


def test_what_was_trained_on_is_known_where_no_defence_changes_images(blobs: Blobs) -> None:
    victim, auxiliary = blobs(1, 1, side=12), blobs(12, 2, side=12)
    sent = gradient(victim)
    known = {}
    for name, defense in {"none": None, "top_k": TopK(), "noise": PixelNoise(), "latent_autoencoder": LATENT}.items():
        report = audit(model(), sent, images=victim, auxiliary=auxiliary, defense=defense, attacks=[PLAIN])
        known[name] = report.trained is not None
    assert known == {"none": True, "top_k": True, "noise": False, "latent_autoencoder": False}
    trained = (victim.floats() + 0.1).clamp(0, 1)
    report = audit(model(), sent, images=victim, trained_images=trained, defense=PixelNoise(), attacks=[PLAIN])
    assert report.records[0].trained_mse == pytest.approx(float((trained - victim.floats()).square().mean()), rel=1e-4)


@dataclass(frozen=True, kw_only=True)
class Dim(Defense[None]):
    """A fifth as bright."""

    name: ClassVar[str] = "dim"

    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        return x / 5


@pytest.mark.parametrize("is_prepared", [True, False])
def test_ones_own_defence_faces_an_attacker_that_undoes_it(is_prepared: bool, blobs: Blobs) -> None:
    victim, auxiliary = blobs(1, 1, side=12), blobs(64, 2, side=12)
    update, trained = client_update(model(), victim, None, defense=Dim())
    context = DefenseContext(auxiliary, SPEC, torch.device("cpu"), seed=0)
    defense = Dim().prepare(auxiliary, context, None, client=0) if is_prepared else Dim()
    bound = TrainedImages(inverse=InverseTraining(steps=60, batch_size=32, width=8))
    report = audit(
        model(),
        update,
        images=victim,
        trained_images=trained,
        auxiliary=auxiliary,
        defense=defense,
        attacks=[Baseline(), bound],
    )
    by_attack = {record.attack: record for record in report.records}
    assert by_attack["trained_images"].mse < 0.5 * (by_attack["trained_images"].trained_mse or 0.0)
    assert report.adaptive == {"trained_images"}


def test_modules_are_prepared_by_the_attacker_or_handed_over(blobs: Blobs) -> None:
    victim, auxiliary = blobs(1, 1, side=12), blobs(12, 2, side=12)
    own = prepared(blobs(4, 3, side=12))
    update, trained = client_update(model(), victim, None, defense=own)
    given: dict[str, Any] = {"images": victim, "trained_images": trained, "auxiliary": auxiliary}
    by_code = audit(model(), update, defense=LATENT, attacks=[ADAPTIVE], **given)
    by_modules = audit(
        model(),
        update,
        defense=own,
        attacks=[MODULES],
        **given,
    )
    assert by_code.records[0].threat_model == replace(Adaptive.needs, labels=True)
    assert by_modules.records[0].threat_model == replace(AdaptiveModules.needs, labels=True)


def test_the_seed_decides_and_the_model_stays(blobs: Blobs) -> None:
    victim, net = blobs(1, 1, side=12), model()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = []
    for seed in (0, 0, 1):
        torch.rand(2)
        report = audit(net, gradient(victim), images=victim, attacks=[PLAIN], seed=seed)
        found.append(report.reconstructions["inverting_gradients"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_half_precision_is_attacked_in_single(blobs: Blobs) -> None:
    victim = blobs(1, 1, side=12)
    halves = {name: value.bfloat16() for name, value in gradient(victim).items()}
    report = audit(model().bfloat16(), halves, images=victim, attacks=[PLAIN])
    assert report.reconstructions["inverting_gradients"].dtype == torch.float32


# What is refused


def test_updates_of_different_numbers_of_local_steps_are_refused(blobs: Blobs) -> None:
    victims = blobs(2, 1, side=12)
    one, three = (client_update(model(), victims.take(torch.tensor([0])), None, local_steps=s)[0] for s in (1, 3))
    with pytest.raises(
        FedveilError, match=r"update: update 1 is of 3 local step\(s\), update 0 of 1: .* by themselves"
    ):
        audit(model(), [one, three], images=victims, attacks=[PLAIN])
    with pytest.raises(FedveilError, match=r"repeats: update 0 of repeat 1 is of 1 local step\(s\), update 0 of 3"):
        audit(model(), three, images=victims.take(torch.tensor([0])), repeats=[three, one], attacks=[PLAIN])


def test_what_does_not_fit_is_refused_in_a_sentence(blobs: Blobs) -> None:
    victims, auxiliary = blobs(2, 1, side=12), blobs(4, 2, side=12)
    sent = gradient(victims)
    modules = AdaptiveModules(inversion=InvertingGradients(steps=1), inverse=QUICK)

    def refused(sentence: str, update: Any = sent, net: nn.Module | None = None, **options: Any) -> None:
        with pytest.raises(FedveilError) as refusal:
            audit(net or model(), update, **{"images": victims, "attacks": [PLAIN], **options})
        assert sentence in str(refusal.value)

    refused("image_shape: (C, H, W) has to be given where no images are", images=None)
    refused("images: expected images of shape (3, 12, 12), got (1, 12, 12)", image_shape=(3, 12, 12))
    refused("auxiliary: expected images of shape (1, 12, 12), got (1, 16, 16)", auxiliary=blobs(4, 2))
    refused("auxiliary: expected (images, labels), got list", auxiliary=[1, 2, 3])
    refused("auxiliary: labels: expected classes from 0 to 1, got 5 to 5", auxiliary=(victims.floats(), [5, 5]))
    refused("labels: expected 2 whole numbers, got (3,)", labels=[0, 1, 1])
    refused("labels: expected classes from 0 to 1, got 0 to 2", labels=[0, 2])
    refused("images: 2 do not make 3 update(s) of equally many image(s) each", update=[sent] * 3)
    refused("images: 2 do not make 1 update(s) of 3 image(s) each", batch_size=3)
    refused("batch_size: at least 1, got 0", batch_size=0)
    refused("batch_size: expected a whole number, got '2'", batch_size="2")
    refused("repeats: expected a list of what was sent at other times, got None", repeats=None)
    refused("image_shape: expected (C, H, W), got 12", image_shape=12)
    refused("device: 'foo' can't be used: ", device="foo")
    refused("device: 1.5 can't be used: ", device=1.5)
    refused("normalize: expected (means, deviations), each with a number per channel, got 0.5", normalize=0.5)
    refused("normalize: expected (means, deviations), each with a number per channel, got 0.5", normalize=(0.5, 0.2))
    refused("normalize: 2 mean(s) and 1 deviation(s) for images of 1 channel(s)", normalize=([0.5, 0.5], [1]))
    refused("normalize: expected finite numbers, got (nan,)", normalize=([float("nan")], [1]))
    refused(
        "trained_images: expected (2, 1, 12, 12) as the images, got (1, 1, 12, 12)",
        trained_images=torch.zeros(1, 12, 12),
    )
    refused("gallery: expected images of shape (1, 12, 12), got (1, 16, 16)", gallery=blobs(4, 2))
    refused("unknown attack 'inverting'; allowed: ", attacks=["inverting"])
    refused("attacks: at least one is needed", attacks=[])
    refused("attack 'adaptive' needs images of the attacker: give auxiliary=(images, labels)", attacks=["adaptive"])
    refused(
        "attack 'trained_images' needs what the client trained on: give trained_images",
        attacks=["trained_images"],
        auxiliary=auxiliary,
    )
    refused(
        "attack 'adaptive_modules' holds the client's trained modules: give defense=settings.prepare(...)",
        attacks=[modules],
        auxiliary=auxiliary,
        defense=LATENT,
    )
    refused(
        "attack 'adaptive' knows no trained modules, and a prepared defence was given: run 'adaptive_modules'",
        attacks=[ADAPTIVE],
        auxiliary=auxiliary,
        defense=prepared(auxiliary),
    )
    refused("model: Flatten has no parameters", net=nn.Flatten())
    refused("update: the model has no parameter 'weight'", update={"weight": torch.ones(2)})
