from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from targets import own_target, shared_target
from torch import Tensor

import fedveil.attacks.matching.match as module
from fedveil.attacks import InvertingGradients, Knowledge, Observation
from fedveil.attacks.engine.objective import Problem, objective, oracle
from fedveil.attacks.matching.attack import ALPHAS, Place, match_at, target_gradient
from fedveil.attacks.optimizers import Adam
from fedveil.attacks.priors import TotalVariation
from fedveil.attacks.scoring import ClassMeanGuess
from fedveil.attacks.target.model import target_model
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import ClientUpdate, Reconstruction, ThreatModel, UpdateKind
from fedveil.fl.models import ModelSpec, build_model
from fedveil.fl.models.lenet import LeNet

SPEC = ModelSpec("lenet", (1, 16, 16), 2, width=8)
SMALL = ModelSpec("lenet", (1, 12, 12), 2, width=4)

Blobs = Callable[..., Images]
Observe = Callable[..., Observation]


def known(spec: ModelSpec = SPEC, *, labels: bool = True, seed: int = 3, own: bool = False) -> Knowledge:
    target = (own_target if own else shared_target)(spec)
    return Knowledge(ThreatModel(labels=labels), target, torch.device("cpu"), seed)


def each(images: Images, observe: Observe, spec: ModelSpec, **options: object) -> list[Observation]:
    return [observe(images.take(torch.tensor([i])), spec, number=i, client=i, **options) for i in range(len(images))]


def errors(found: list[Reconstruction], images: Images) -> Tensor:
    return torch.stack([(f.images[0] - x).square().mean() for f, x in zip(found, images.floats(), strict=True)])


# What is matched, and where


def update_of(kind: UpdateKind, steps: int) -> ClientUpdate:
    tensors = {"w": torch.tensor([0.6, -1.2])}
    return ClientUpdate(tensors, examples=1, kind=kind, local_steps=steps, learning_rate=0.1)


def test_a_gradient_is_matched_as_sent_at_the_weights_sent() -> None:
    update = update_of(UpdateKind.GRADIENT, 1)
    observation = Observation(0, 0, update, {"w": torch.tensor([1.0, 2.0]), "running_mean": torch.zeros(1)}, 1)
    assert torch.equal(target_gradient(update)["w"], update.tensors["w"])
    assert {n: w.tolist() for n, w in match_at(observation, 0.0).items()} == {"w": [1.0, 2.0], "running_mean": [0.0]}


def test_a_delta_of_several_steps_is_matched_on_its_path_by_hand() -> None:
    update = update_of(UpdateKind.DELTA, 3)
    observation = Observation(0, 0, update, {"w": torch.tensor([1.0, 2.0]), "running_mean": torch.zeros(1)}, 1)
    # -delta / (steps * rate) = -(0.6, -1.2) / 0.3; the midpoint is (1, 2) + (0.6, -1.2) / 2.
    torch.testing.assert_close(target_gradient(update)["w"], torch.tensor([-2.0, 4.0]))
    assert match_at(observation, 0.0)["w"].tolist() == [1.0, 2.0]
    torch.testing.assert_close(match_at(observation, 0.5)["w"], torch.tensor([1.3, 1.4]))
    torch.testing.assert_close(match_at(observation, 1.0)["w"], torch.tensor([1.6, 0.8]))
    assert match_at(observation, 0.5)["running_mean"].tolist() == [0.0]


def posed_by(
    attack: InvertingGradients, observations: list[Observation], monkeypatch: pytest.MonkeyPatch
) -> list[Problem]:
    """The problems that an attack sets up."""
    posed: list[Problem] = []
    monkeypatch.setattr(module, "objective", lambda p, **options: (posed.append(p), objective(p, **options))[1])
    attack(observations, known(SMALL))
    return posed


@pytest.mark.parametrize(("steps", "place", "alpha"), [(1, "middle", 0), (3, "middle", 0.5), (3, "sent", 0)])
def test_the_problem_is_set_up_from_the_updates(
    steps: int, place: Place, alpha: float, blobs: Blobs, observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    observations = each(blobs(2, 4, side=12), observe, SMALL, steps=steps, own_weights=True)
    (problem,) = posed_by(InvertingGradients(steps=1, place=place), observations, monkeypatch)
    weight = "head.bias"
    targets = torch.stack([target_gradient(o.update)[weight] for o in observations])
    assert torch.equal(problem.target[weight], targets)
    assert problem.own_weights
    assert torch.equal(problem.weights[weight], torch.stack([match_at(o, alpha)[weight] for o in observations]))


def test_masks_come_from_the_gradient_that_is_matched(
    blobs: Blobs, observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    observations = each(blobs(2, 4, side=12), observe, SMALL, steps=3)
    posed: list[Problem] = []
    monkeypatch.setattr(module, "objective", lambda p, **options: (posed.append(p), objective(p, **options))[1])
    attack = InvertingGradients(steps=1, place="sent")
    attack.invert(observations, known(SMALL), lambda seen: {n: (t > 0).float() for n, t in seen.items()})
    (problem,) = posed
    assert problem.visible is not None
    expected = torch.stack([(target_gradient(o.update)["head.bias"] > 0).float() for o in observations])
    assert torch.equal(problem.visible["head.bias"], expected)


def test_victims_of_one_round_share_the_weights(
    blobs: Blobs, observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    observations = each(blobs(2, 4, side=12), observe, SMALL, own_weights=True)
    together = [replace(o, weights=observations[0].weights) for o in observations]
    attack = InvertingGradients(steps=3)
    for some, own in ((observations, True), (together, False)):
        assert [p.own_weights for p in posed_by(attack, some, monkeypatch)] == [own]
    for one, two in zip(attack(observations, known(SMALL)), attack(together, known(SMALL)), strict=True):
        torch.testing.assert_close(one.images, two.images, atol=1e-4, rtol=0)


def test_the_place_is_searched_for_each_victim_by_its_own_loss(
    blobs: Blobs, observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    observations = each(blobs(2, 4, side=12), observe, SMALL, steps=3, own_weights=True)
    # Short runs over both victims, place by place, then the long one; the truth is nowhere at hand.
    short = {0.0: (5.0, 2.0), 0.25: (4.0, 3.0), 0.5: (1.0, 4.0), 0.75: (6.0, 5.0), 1.0: (7.0, 6.0)}
    losses = iter([*short.values(), (0.0, 0.0)])
    lengths: list[int] = []

    def minimise(self: Adam, step: object, start: Tensor) -> tuple[Tensor, Tensor]:
        lengths.append(self.steps)
        return start, torch.tensor(next(losses))

    monkeypatch.setattr(Adam, "minimise", minimise)
    posed = posed_by(InvertingGradients(steps=50), observations, monkeypatch)
    assert lengths == [10, 10, 10, 10, 10, 50]
    for problem, alphas in zip(posed, [*((a, a) for a in ALPHAS), (0.5, 0.0)], strict=True):
        expected = torch.stack([match_at(o, a)["head.bias"] for o, a in zip(observations, alphas, strict=True)])
        assert torch.equal(problem.weights["head.bias"], expected)


def test_one_step_leaves_nothing_to_search(blobs: Blobs, observe: Observe, monkeypatch: pytest.MonkeyPatch) -> None:
    observations = each(blobs(2, 4, side=12), observe, SMALL)
    assert len(posed_by(InvertingGradients(steps=5), observations, monkeypatch)) == 1


# It inverts


def test_undefended_images_come_back(blobs: Blobs, observe: Observe) -> None:
    victims, auxiliary = blobs(3, 1), blobs(64, 2)
    guess = ClassMeanGuess.of(auxiliary, classes=2).guess(victims.labels)
    baseline = (guess - victims.floats()).square().mean((1, 2, 3))
    found = InvertingGradients(steps=100, learning_rate=0.1, tv=1e-3)(each(victims, observe, SPEC), known())
    error = errors(found, victims)
    assert float(error.max()) < 2e-3
    assert bool((error < baseline / 5).all())
    assert all(float(f.images.min()) >= 0 and float(f.images.max()) <= 1 for f in found)


def test_several_local_steps_are_inverted_at_the_place_that_was_searched(blobs: Blobs, observe: Observe) -> None:
    victims = blobs(2, 1)
    for rate in (0.01, 0.2):
        observations = each(victims, observe, SPEC, steps=5, learning_rate=rate)
        found = InvertingGradients(steps=100, learning_rate=0.1, tv=1e-3)(observations, known())
        assert float(errors(found, victims).max()) < 6e-3


def test_hidden_zeros_are_left_out_of_the_match(blobs: Blobs, observe: Observe) -> None:
    victims = blobs(1, 1)
    (whole,) = each(victims, observe, SPEC)
    kept = {n: (t.abs() >= t.abs().quantile(0.8)).float() for n, t in whole.update.tensors.items()}
    sparse = {n: t * kept[n] for n, t in whole.update.tensors.items()}
    observation = replace(whole, update=replace(whole.update, tensors=sparse))
    attack = InvertingGradients(steps=60, learning_rate=0.1, tv=1e-3)
    ignoring = attack.invert([observation], known(), lambda _: kept)
    believing = attack.invert([observation], known())
    assert float(errors(ignoring, victims)) < 0.1 * float(errors(believing, victims))


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_batches_and_normalised_models_run_through(norm: str, blobs: Blobs, observe: Observe) -> None:
    spec = ModelSpec("convnet", (3, 12, 12), 2, norm=norm, width=4)
    observation = observe(blobs(3, 5, side=12, channels=3), spec)
    assert ("body.0.1.running_mean" in observation.weights) == (norm == "batch")
    (short,) = InvertingGradients(steps=1)([observation], known(spec))
    (longer,) = InvertingGradients(steps=6)([observation], known(spec))
    assert longer.images.shape == (3, 3, 12, 12)
    assert longer.labels.tolist() == [0, 1, 0]
    assert longer.loss < short.loss


# What it returns


def test_the_loss_is_that_of_the_returned_images(blobs: Blobs, observe: Observe) -> None:
    observation = observe(blobs(1, 6, side=12), SMALL)
    # A step that is too large: the last iterate is not the best one.
    (found,) = InvertingGradients(steps=12, learning_rate=0.3, tv=1e-2)([observation], known(SMALL))
    problem = Problem(
        model=known(SMALL).model,
        weights=match_at(observation, 0.0),
        target={n: t[None] for n, t in observation.update.tensors.items()},
        labels=found.labels[None],
    )
    value, _ = oracle(problem, priors=[TotalVariation(1e-2)])(found.images[None])
    # One minus a cosine in float32.
    assert found.loss == pytest.approx(float(value), abs=1e-6)


def test_labels_that_are_not_granted_are_recovered(blobs: Blobs, observe: Observe) -> None:
    victims = blobs(2, 7, side=12)
    attack = InvertingGradients(steps=3)
    told = attack(each(victims, observe, SMALL), known(SMALL, own=True))
    untold = attack(each(victims, observe, SMALL, labels=False), known(SMALL, labels=False, own=True))
    for one, two in zip(told, untold, strict=True):
        assert one.labels.tolist() == two.labels.tolist()
        assert torch.equal(one.images, two.images)


def test_the_labels_that_it_uses_are_those_it_was_given_even_if_wrong(blobs: Blobs, observe: Observe) -> None:
    observation = replace(observe(blobs(1, 7, side=12), SMALL), labels=torch.tensor([1]))
    assert InvertingGradients(steps=2)([observation], known(SMALL))[0].labels.tolist() == [1]


def test_the_seed_decides_and_nothing_else(blobs: Blobs, observe: Observe) -> None:
    observations = each(blobs(2, 8, side=12), observe, SMALL)
    attack = InvertingGradients(steps=3)
    first = attack(observations, known(SMALL, own=True))
    torch.rand(5)
    again = attack(observations, known(SMALL, own=True))
    other = attack(observations, known(SMALL, seed=4, own=True))
    assert all(torch.equal(a.images, b.images) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a.images, b.images) for a, b in zip(first, other, strict=True))


# Restarts and chunks


def test_restarts_are_chosen_by_their_own_loss_never_by_the_truth(
    blobs: Blobs, observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    victims = blobs(2, 9, side=12)
    truth, garbage = victims.floats(), torch.full((2, 1, 12, 12), 0.5)

    def minimise(self: Adam, step: object, start: Tensor) -> tuple[Tensor, Tensor]:
        # Jobs are victim 0's two restarts, then victim 1's; the truth has the worse loss for victim 0 alone.
        images = torch.stack([truth[:1], garbage[:1], garbage[1:], truth[1:]])
        return images, torch.tensor([0.5, 0.4, 0.5, 0.4])

    monkeypatch.setattr(Adam, "minimise", minimise)
    found = InvertingGradients(restarts=2)(each(victims, observe, SMALL), known(SMALL))
    assert torch.equal(found[0].images, garbage[:1])
    assert torch.equal(found[1].images, truth[1:])
    assert [f.loss for f in found] == pytest.approx([0.4, 0.4])


def test_of_real_restarts_the_best_is_returned(blobs: Blobs, observe: Observe, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[Tensor, Tensor]] = []
    real = Adam.minimise

    def minimise(*arguments: object) -> tuple[Tensor, Tensor]:
        runs.append(real(*arguments))  # type: ignore[arg-type]
        return runs[-1]

    monkeypatch.setattr(Adam, "minimise", minimise)
    found = InvertingGradients(steps=4, restarts=3)(each(blobs(2, 9, side=12), observe, SMALL), known(SMALL))
    ((images, losses),) = runs
    assert len(set(losses.tolist())) == 6
    for victim, own in enumerate(losses.view(2, 3)):
        assert found[victim].loss == float(own.min())
        assert torch.equal(found[victim].images, images[3 * victim + int(own.argmin())])


def test_chunks_change_nothing(blobs: Blobs, observe: Observe) -> None:
    observations = each(blobs(3, 10, side=12), observe, SMALL)
    for visible in (None, lambda seen: {n: (t > 0).float() for n, t in seen.items()}):
        at_once = InvertingGradients(steps=2, restarts=2).invert(observations, known(SMALL), visible)
        for chunk in (1, 4):
            pieces = InvertingGradients(steps=2, restarts=2, chunk=chunk).invert(observations, known(SMALL), visible)
            for one, two in zip(at_once, pieces, strict=True):
                torch.testing.assert_close(one.images, two.images, atol=1e-4, rtol=0)
                assert one.loss == pytest.approx(two.loss, abs=1e-5)


def test_work_does_not_grow_with_restarts(blobs: Blobs, observe: Observe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaching registers its hooks anew with every restart, so that each costs more than the one before."""
    observation = observe(blobs(1, 11, side=12), SMALL)
    models: list[torch.nn.Module] = []
    passes = 0
    forward = LeNet.forward

    def counted(self: LeNet, images: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        if not any(self is model for model in models):
            models.append(self)
        return forward(self, images)

    monkeypatch.setattr(LeNet, "forward", counted)
    # Recorded steps do not pass through the model at all.
    monkeypatch.setenv("FEDVEIL_ENGINE", "eager")
    knowledge = known(SMALL)

    def cost(restarts: int, chunk: int) -> int:
        nonlocal passes
        passes = 0
        InvertingGradients(steps=2, restarts=restarts, chunk=chunk)([observation], knowledge)
        return passes

    # What is tried once for each model.
    cost(6, 8)
    one = cost(1, 8)
    assert one > 0
    assert cost(6, 8) == one
    assert cost(6, 1) == 6 * one
    assert not any(m._forward_hooks or m._forward_pre_hooks for model in models for m in model.modules())


def test_an_update_without_the_frozen_layers_is_inverted(blobs: Blobs, observe: Observe) -> None:
    victims = blobs(1, 1)
    (whole,) = each(victims, observe, SPEC)
    kept = {n: t for n, t in whole.update.tensors.items() if not n.startswith("body.4")}
    assert len(kept) < len(whole.update.tensors)
    found = InvertingGradients(steps=60, learning_rate=0.1, tv=1e-3)(
        [replace(whole, update=replace(whole.update, tensors=kept))], known()
    )
    assert float(errors(found, victims).max()) < 5e-3


def test_in_evaluation_mode_the_running_statistics_that_were_sent_are_used(blobs: Blobs) -> None:
    """And where none are sent, those that the model came with."""
    spec = ModelSpec("convnet", (1, 12, 12), 2, norm="batch", width=4)
    model, victim = build_model(spec), blobs(1, 2, side=12)
    model(blobs(8, 3, side=12).floats())
    own = target_model(model.eval(), image_shape=spec.image_shape, classes=2, mode="eval")
    loss = torch.nn.functional.cross_entropy(model(victim.floats()), victim.labels)
    gradient = dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, [*model.parameters()]), strict=True))
    state = {n: w.detach() for n, w in model.state_dict().items() if w.is_floating_point()}
    parameters = {n: w for n, w in state.items() if n in gradient}
    knowledge = replace(known(spec), model=own)
    observation = Observation(0, 0, ClientUpdate.gradient(gradient), state, 1, labels=victim.labels)
    moved = {n: w if n in gradient else w + 1.0 for n, w in state.items()}
    attack = InvertingGradients(steps=3)
    (sent,), (partial,), (other,) = (
        attack([replace(observation, weights=weights)], knowledge) for weights in (state, parameters, moved)
    )
    assert torch.equal(sent.images, partial.images)
    assert sent.loss == partial.loss < other.loss


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": 0}, "inverting_gradients: steps is 0; it has to be at least 1 and finite"),
        ({"learning_rate": 0.0}, "inverting_gradients: learning_rate is 0.0; it has to be above 0 and finite"),
        ({"place": "end"}, "inverting_gradients: place is 'end'; allowed: searched, sent, middle, unrolled"),
        ({"tv": -1.0}, "inverting_gradients: tv is -1.0; it has to be at least 0 and finite"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(FedveilError) as refusal:
        InvertingGradients(**settings)  # type: ignore[arg-type]
    assert str(refusal.value) == sentence
