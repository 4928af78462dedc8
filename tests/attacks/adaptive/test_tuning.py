from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import fedveil.attacks.adaptive.own_victims as module
from fedveil.attacks import InvertingGradients, Knowledge, Observation
from fedveil.attacks.adaptive.own_victims import own_victims
from fedveil.attacks.adaptive.tuning import FACTORS, LEAST_BATCHES, tuned
from fedveil.attacks.base import AttackerPreparation
from fedveil.attacks.matching.attack import Visible
from fedveil.attacks.target.model import target_model
from fedveil.defense.base import Stateless, Surrogate
from fedveil.defense.noise import PixelNoise
from fedveil.defense.top_k import TopK
from fedveil.defense.update_noise import UpdateNoise
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.hooks import ClientHooks
from fedveil.fl.messages import ClientUpdate, Reconstruction, ThreatModel, UpdateKind
from fedveil.fl.models import ModelSpec, build_model
from fedveil.fl.optimizers import Adam, LocalOptimizer
from fedveil.fl.training import LocalResult, LocalTraining

SPEC = ModelSpec("lenet", (1, 12, 12), 2, width=4)
GRANTED = ThreatModel(labels=True, auxiliary_data=True, defense_algorithm=True)


def chosen_tv(inversion: InvertingGradients, like: Observation, surrogate: Surrogate, knowledge: Knowledge) -> float:
    """The weight that is chosen."""
    found = tuned(
        inversion,
        own_victims(like, AttackerPreparation(surrogate, None), knowledge, LEAST_BATCHES),
        surrogate,
        knowledge,
    )
    assert isinstance(found, InvertingGradients)
    return found.tv


Blobs = Callable[..., Images]
Observe = Callable[..., Observation]


def known(auxiliary: Images | None) -> Knowledge:
    target = target_model(build_model(SPEC), image_shape=SPEC.image_shape, classes=SPEC.classes)
    return Knowledge(GRANTED, target, torch.device("cpu"), 3, auxiliary=auxiliary)


class Spied:
    """What the attacker trained on to tune itself, and what it was left with to choose from."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shards: list[Images] = []
        self.kinds: list[tuple[UpdateKind, int, int]] = []
        self.modes: list[str] = []
        self.optimizers: list[LocalOptimizer] = []
        self.updates: list[ClientUpdate] = []
        self.trained: list[list[Tensor]] = []
        self.observations: list[Observation] = []
        self.visible: list[Visible | None] = []
        self.guesses: dict[float, Callable[[int], Tensor]] = {}
        self._local_update = module.local_update
        monkeypatch.setattr(module, "local_update", self._spy)

    def _spy(
        self,
        model: torch.nn.Module,
        weights: dict[str, Tensor],
        shard: Images,
        hooks: ClientHooks,
        spec: LocalTraining,
        stream: torch.Generator,
        *,
        on_batch: Callable[[Tensor, Tensor], None],
    ) -> LocalResult:
        self.shards.append(shard)
        self.trained.append([])

        def both(trained: Tensor, at: Tensor) -> None:
            self.trained[-1].append(trained[at.argsort()])
            on_batch(trained, at)

        result = self._local_update(model, weights, shard, hooks, spec, stream, on_batch=both)  # type: ignore[arg-type]
        self.updates.append(result.update)
        self.modes.append(spec.mode)
        self.optimizers.append(spec.optimizer)
        self.kinds.append((result.update.kind, result.update.local_steps, len(shard)))
        return result

    def answer(self, monkeypatch: pytest.MonkeyPatch, guesses: dict[float, Callable[[int], Tensor]]) -> None:
        """Let the inversion with weight ``tv`` return ``guesses[tv](number)``."""

        def invert(
            inversion: InvertingGradients,
            observations: Sequence[Observation],
            knowledge: Knowledge,
            visible: Visible | None = None,
        ) -> list[Reconstruction]:
            self.observations = list(observations)
            self.visible.append(visible)
            return [
                Reconstruction(guesses[inversion.tv](o.number), torch.zeros(o.batch_size, dtype=torch.int64), 0.0)
                for o in observations
            ]

        monkeypatch.setattr(InvertingGradients, "invert", invert)


def far(spied: Spied, by: float) -> Callable[[int], Tensor]:
    return lambda number: (torch.stack(spied.trained[number]).mean(0) + by).clamp(0, 1)


def test_noisier_updates_call_for_more_total_variation(blobs: Blobs, observe: Observe) -> None:
    inversion = InvertingGradients(steps=30, learning_rate=0.1, tv=1e-2)
    auxiliary, victim = blobs(8, 2, side=12), blobs(1, 1, side=12)
    chosen = {}
    for strength in (0.0, 0.05):
        noise = UpdateNoise(strength=strength)
        like = observe(victim, SPEC, hooks=Stateless(noise))
        chosen[strength] = chosen_tv(inversion, like, Surrogate(update=noise.update), known(auxiliary))
    assert set(chosen.values()) <= {factor * inversion.tv for factor in FACTORS}
    assert chosen[0.05] > chosen[0.0]


@pytest.mark.parametrize("best", range(3))
def test_the_weight_with_the_least_error_is_chosen(
    best: int, blobs: Blobs, observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    spied = Spied(monkeypatch)
    weights = [0.5 * factor for factor in FACTORS]
    spied.answer(monkeypatch, {tv: far(spied, 0.01 if i == best else 0.1) for i, tv in enumerate(weights)})
    like = observe(blobs(1, 1, side=12), SPEC)
    assert chosen_tv(InvertingGradients(tv=0.5), like, Surrogate(), known(blobs(6, 2, side=12))) == weights[best]


def test_a_batch_rebuilt_in_another_order_is_not_held_against_a_weight(
    blobs: Blobs, observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    spied = Spied(monkeypatch)
    near = far(spied, 0.01)
    turned = lambda number: near(number).flip(0)  # noqa: E731
    spied.answer(monkeypatch, {0.1: far(spied, 0.2), 1.0: turned, 10.0: far(spied, 0.05)})
    like = observe(blobs(3, 1, side=12), SPEC)
    assert chosen_tv(InvertingGradients(tv=1.0), like, Surrogate(), known(blobs(6, 2, side=12))) == 1.0


def test_it_is_tuned_on_auxiliary_images_alone_with_the_clients_own_training(
    blobs: Blobs, observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    spied = Spied(monkeypatch)
    auxiliary, private = blobs(20, 2, side=12), blobs(2, 1, side=12)
    like = observe(private, SPEC, steps=3, optimizer=Adam())
    chosen_tv(InvertingGradients(steps=1), like, Surrogate(), known(auxiliary))
    assert spied.kinds == [(UpdateKind.DELTA, 3, 2)] * LEAST_BATCHES
    assert spied.optimizers == [Adam()] * LEAST_BATCHES
    pool = [image.tolist() for image in auxiliary.pixels]
    used = [image.tolist() for shard in spied.shards for image in shard.pixels]
    assert all(image in pool for image in used)
    assert len({str(image) for image in used}) == len(used)
    assert not [image for image in private.pixels.tolist() if image in used]


def test_the_defence_stands_in_front_as_the_attacker_knows_it(
    blobs: Blobs, observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    spied = Spied(monkeypatch)
    spied.answer(monkeypatch, {factor: far(spied, 0.0) for factor in FACTORS})
    pixels, top = PixelNoise(strength=0.3), TopK(keep=0.25)
    surrogate = replace(
        Stateless(top).surrogate(),
        data=pixels.data,
    )
    chosen_tv(InvertingGradients(tv=1.0), observe(blobs(1, 1, side=12), SPEC), surrogate, known(blobs(4, 2, side=12)))
    for shard, trained, update in zip(spied.shards, spied.trained, spied.updates, strict=True):
        assert float((trained[0] - shard.floats()).square().mean()) > 0.01
        weight = update.tensors["body.2.weight"]
        assert int(weight.count_nonzero()) == -(-weight.numel() // 4)
    # What is matched is what the zeros leave visible, and the labels are those of its own images.
    for visible in spied.visible:
        assert visible is not None
        for observation in spied.observations:
            mask = visible(dict(observation.update.tensors))
            assert all(torch.equal(m, (observation.update.tensors[n] != 0).float()) for n, m in mask.items())
    assert [o.labels.tolist() for o in spied.observations if o.labels is not None] == [
        s.labels.tolist() for s in spied.shards
    ]


def test_a_part_of_a_batch_is_left_out(blobs: Blobs, observe: Observe, monkeypatch: pytest.MonkeyPatch) -> None:
    spied = Spied(monkeypatch)
    like = observe(blobs(3, 1, side=12), SPEC)
    chosen_tv(InvertingGradients(steps=1), like, Surrogate(), known(blobs(8, 2, side=12)))
    assert [len(shard) for shard in spied.shards] == [3, 3]


def test_with_too_few_auxiliary_images_the_weight_stays(blobs: Blobs, observe: Observe) -> None:
    like = observe(blobs(3, 1, side=12), SPEC)
    assert chosen_tv(InvertingGradients(steps=1, tv=0.5), like, Surrogate(), known(blobs(2, 2, side=12))) == 0.5


def test_without_auxiliary_images_there_is_nothing_to_tune_on(blobs: Blobs, observe: Observe) -> None:
    with pytest.raises(FedveilError, match="no auxiliary images"):
        chosen_tv(InvertingGradients(steps=1), observe(blobs(1, 1, side=12), SPEC), Surrogate(), known(None))


def test_it_is_tuned_on_the_parameters_that_the_client_sends_in_the_clients_mode(
    blobs: Blobs, observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    spied = Spied(monkeypatch)
    spied.answer(monkeypatch, {factor: far(spied, 0.0) for factor in FACTORS})
    like = observe(blobs(1, 1, side=12), SPEC)
    head = {n: t for n, t in like.update.tensors.items() if n.startswith("head")}
    knowledge = known(blobs(2, 2, side=12))
    knowledge = replace(knowledge, model=replace(knowledge.model, mode="eval"))
    chosen_tv(
        InvertingGradients(tv=1.0), replace(like, update=replace(like.update, tensors=head)), Surrogate(), knowledge
    )
    assert all(update.tensors.keys() == head.keys() for update in spied.updates)
    assert spied.modes == ["eval"] * 2
