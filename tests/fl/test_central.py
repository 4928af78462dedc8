from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedveil.fl import central, until_flat
from fedveil.fl.central import CentralTraining, steps_for_few, train_centrally, train_classifier
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.metrics import accuracy
from fedveil.fl.models import ModelSpec, build_model, init_model
from fedveil.fl.seeding import torch_stream
from fedveil.fl.stepping import Adam
from fedveil.fl.until_flat import hold_out, train_for

CPU = torch.device("cpu")
SPEC = ModelSpec("convnet", (1, 8, 8), 2, width=4)


def halves(count: int, seed: int = 0) -> Images:
    """The bright half tells the class: above or below."""
    pixels = torch.randint(0, 120, (count, 1, 8, 8), dtype=torch.uint8, generator=torch_stream(seed, "halves"))
    labels = torch.arange(count) % 2
    for image, label in zip(pixels, labels.tolist(), strict=True):
        image[:, 4 * label : 4 * label + 4] += 100
    return Images(pixels, labels)


def answers(weights: dict[str, Tensor], images: Images) -> float:
    model = build_model(SPEC)
    model.load_state_dict(weights, strict=False)
    with torch.no_grad():
        return accuracy(model.eval()(images.floats()), images.labels)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_it_learns_and_the_curve_tells_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(until_flat, "LEAST", 60)
    validation = halves(40, 1)
    found = train_classifier(halves(80), SPEC, CentralTraining(), validation=validation, seed=3, device=CPU)
    assert found.curve is not None
    assert found.curve.flat
    assert found.curve.steps[-1] < 2000
    wrong = 1 - answers(found.weights, validation)
    assert wrong < 0.1
    assert found.curve.error == pytest.approx((40 * wrong + 1) / 41)
    assert found.weights.keys() == init_model(SPEC, 0).keys()


def test_nothing_but_its_arguments_decides() -> None:
    def train(**changed: Any) -> dict[str, Tensor]:
        arguments: dict[str, Any] = {"training": CentralTraining(steps=4), "seed": 0, **changed}
        torch.manual_seed(torch.seed() % 1000)
        return train_classifier(halves(20), SPEC, validation=None, device=CPU, **arguments).weights

    before = torch.random.get_rng_state()
    first = train()
    assert equal(first, train())
    assert not equal(first, train(seed=1))
    assert not equal(first, train(training=CentralTraining(steps=5)))
    assert not equal(first, train(training=CentralTraining(steps=4, augmentation=())))
    torch.random.set_rng_state(before)


@pytest.fixture
def lengths(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int | None]]:
    """(images, steps, validation images) of each training; each was flat after 7 steps."""
    seen: list[tuple[int, int, int | None]] = []

    def spy(images: Images, spec: ModelSpec, training: CentralTraining, *, validation: Images | None, **o: Any) -> Any:
        seen.append((len(images), training.steps, None if validation is None else len(validation)))
        return central.CentralModel({"x": torch.zeros(1)}, until_flat.Curve((3, 7), (0.5, 0.5), True))

    monkeypatch.setattr(central, "train_classifier", spy)
    return seen


def test_few_images_are_all_trained_on_for_a_length_by_rule(lengths: list[Any]) -> None:
    train_centrally(halves(23), SPEC, CentralTraining(), seed=0, device=CPU)
    train_centrally(halves(23), SPEC, CentralTraining(steps=30), seed=0, device=CPU)
    assert lengths == [(23, 575, None), (23, 30, None)]


def test_of_many_a_fifth_finds_the_length_and_then_all_are_trained_on(lengths: list[Any]) -> None:
    train_centrally(halves(500), SPEC, CentralTraining(), seed=0, device=CPU)
    assert lengths == [(400, 2000, 100), (500, 7, None)]


def test_the_length_for_few_stays_within_bounds() -> None:
    assert [steps_for_few(count, most=2000) for count in (1, 4, 5, 60, 61, 499)] == [100, 100, 125, 1500, 1500, 1500]
    assert steps_for_few(60, most=200) == 200
    assert steps_for_few(1, most=20) == 20


def test_what_is_cached_is_what_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(images: Images, **changed: Any) -> dict[str, Tensor]:
        arguments: dict[str, Any] = {"training": CentralTraining(steps=3), "seed": 0, "cache": tmp_path, **changed}
        return train_centrally(images, SPEC, device=CPU, **arguments)

    first = train(halves(20))
    assert equal(first, train(halves(20), cache=None))
    train(halves(20, 1))
    train(halves(20), seed=1)
    train(halves(20), training=CentralTraining(steps=3, augmentation=()))
    assert len(list(tmp_path.iterdir())) == 4
    monkeypatch.setattr(central, "train_classifier", lambda *a, **o: pytest.fail("trained again"))
    assert equal(first, train(halves(20)))


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(FedveilError, match="central training: steps is 0; allowed: at least 1"):
        CentralTraining(steps=0)
    with pytest.raises(FedveilError, match="unknown augmentation 'turn'"):
        CentralTraining(augmentation=("turn",))


# A training of known length


def rates(steps: int) -> list[float]:
    seen: list[float] = []

    class Recording:
        def __init__(self, parameters: Any, *, learning_rate: float) -> None:
            assert learning_rate == 0.5

        def zero_grad(self) -> None:
            pass

        def step(self, rate: float = 1.0) -> None:
            seen.append(rate)

    module = nn.Linear(1, 1)
    loss: Callable[[nn.Module], Tensor] = lambda m: m(torch.ones(1)).sum()  # noqa: E731
    train_for(module, loss, steps=steps, learning_rate=0.5, optimizer=Recording)
    return seen


def test_the_rate_rises_over_a_tenth_and_falls_along_half_a_cosine() -> None:
    seen = rates(40)
    assert seen[:4] == [0.25, 0.5, 0.75, 1.0]
    assert seen[4:] == sorted(seen[4:], reverse=True)
    assert seen[21] == pytest.approx((1 + torch.cos(torch.tensor(torch.pi * 18 / 37)).item()) / 2)
    assert 0 < seen[-1] < 0.01
    assert rates(1) == [1.0]


def test_weights_decay_beside_the_gradient() -> None:
    weight = nn.Parameter(torch.tensor([2.0]))
    adam = Adam([weight], learning_rate=0.1, weight_decay=0.5)
    weight.grad = torch.zeros(1)
    adam.step(0.5)
    # Without a gradient only the decay is left: 2 (1 - .05 * .5).
    assert weight.item() == pytest.approx(1.95)


def test_a_fifth_of_enough_images_is_held_out() -> None:
    train, held = hold_out(halves(500), torch_stream(0, "x"))
    assert (len(train), len(held)) == (400, 100)
