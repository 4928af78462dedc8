from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fedveil.defense import PixelNoise
from fedveil.defense.inverse.learnt import InverseTraining, LearntInverse, train_inverse
from fedveil.defense.inverse.lessons import DefendedLessons, Draws, draws_of, gathered
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.seeding import torch_stream

CPU = torch.device("cpu")
QUICK = InverseTraining(steps=120, batch_size=16, width=8)
TINY = InverseTraining(steps=3, batch_size=4, width=4)

Blobs = Callable[..., Images]


def trained(
    auxiliary: Images, defense: PixelNoise, training: InverseTraining, *, observations: int = 1, seed: int = 1
) -> LearntInverse:
    stream = torch_stream(seed, "inverse")
    draws = draws_of(
        defense.data,
        auxiliary,
        artefacts=training.artefacts,
        observations=observations,
        local_steps=1,
        device=CPU,
        stream=stream,
    )
    lessons = DefendedLessons(auxiliary, draws, device=CPU, stream=stream)
    return train_inverse(lessons, training, classes=2, device=CPU, stream=stream)


def mse(found: Tensor, x: Tensor) -> float:
    return float((found - x).square().mean())


def test_it_takes_noise_away_and_more_of_it_with_more_draws(blobs: Blobs) -> None:
    defense, auxiliary, victims = PixelNoise(strength=0.4), blobs(64, 2, side=12), blobs(64, 9, side=12)
    x, y = victims.floats(), victims.labels
    stream = torch_stream(5, "client")
    seen = torch.stack([defense.data(x, y, stream) for _ in range(4)])
    one, four = (trained(auxiliary, defense, QUICK, observations=count) for count in (1, 4))
    single = mse(one(seen[:1], y), x)
    assert single < 0.4 * mse(seen[0], x)
    assert mse(four(seen, y), x) < 0.7 * single
    # It is not told the label, and still works.
    assert mse(one(seen[:1], None), x) < 0.4 * mse(seen[0], x)
    # What it says of itself holds on images of others.
    assert one.curve.error == pytest.approx(single, rel=0.5)
    assert one.curve.steps[-1] == QUICK.steps
    assert not one.curve.flat


def test_what_is_worse_than_what_it_undoes_is_not_used(blobs: Blobs) -> None:
    victims = blobs(8, 9, side=12)
    x, y = victims.floats(), victims.labels
    weak = PixelNoise(strength=0.01)
    draws = torch.stack([weak.data(x, y, torch_stream(number, "client")) for number in range(2)])
    for count in (1, 2):
        inverse = trained(blobs(64, 2, side=12), weak, TINY, observations=count)
        # The mean of so many draws is off by noise of .01 over their root, less what is cut off at 0 and 1.
        assert inverse.error == inverse.plain == pytest.approx(1e-4 / count, rel=0.4)
        assert inverse.error < inverse.curve.error
        assert torch.equal(inverse(draws, y), draws.mean(0))
    strong = trained(blobs(64, 2, side=12), PixelNoise(strength=0.4), QUICK)
    assert strong.error == strong.curve.error < strong.plain


def test_it_is_a_function_of_its_stream(blobs: Blobs) -> None:
    def weights(seed: int) -> Tensor:
        inverse = trained(blobs(8, 2, side=12), PixelNoise(), TINY, seed=seed)
        assert not inverse.network.training
        return torch.cat([p.flatten() for p in inverse.network.parameters()])

    first = weights(1)
    torch.rand(3)
    assert torch.equal(first, weights(1))
    assert not torch.equal(first, weights(2))


def test_it_sees_fresh_noise_with_every_batch_and_measures_on_images_that_it_never_trains_on(blobs: Blobs) -> None:
    auxiliary = blobs(10, 2, side=12)
    batches: list[Tensor] = []

    def defend(x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        batches.append(torch.randn(2, generator=stream))
        assert y is not None
        assert len(x) == len(y)
        return x

    stream = torch_stream(1, "inverse")
    lessons = DefendedLessons(auxiliary, Draws(defend, 2, 3, 0.0), device=CPU, stream=stream)
    inverse = train_inverse(lessons, TINY, classes=2, device=CPU, stream=stream)
    # One for the held-out images, one for each step.
    assert len(batches) == 1 + TINY.steps
    assert len({str(noise.tolist()) for noise in batches}) == len(batches)
    assert inverse.observations == 2


def test_a_draw_is_the_mean_over_local_steps_and_half_of_a_batch_carries_artefacts() -> None:
    shift = iter(range(100))

    def defend(x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        assert len(x) == 2 * 3 * 4
        return torch.arange(6.0).repeat_interleave(4).view(-1, 1, 1, 1).expand_as(x) / 10 + next(shift)

    x, y = torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)
    stream = torch_stream(1, "draws")
    draws = Draws(defend, 2, 3, 0.0)(x, y, stream)
    assert draws.shape == (2, 4, 1, 8, 8)
    torch.testing.assert_close(draws[:, 0, 0, 0, 0], torch.tensor([0.1, 0.4]))
    plain = Draws(lambda x, y, stream: x, 1, 1, 0.5)
    grey = torch.full((4, 1, 8, 8), 0.5)
    noisy = plain(grey, y, stream)[0]
    assert [bool((image == 0.5).all()) for image in noisy] == [True, False, True, False]
    assert torch.equal(plain(grey, y, stream, clean=True)[0], grey)


def test_of_a_defence_that_draws_nothing_one_draw_tells_all(blobs: Blobs) -> None:
    def drawn(defend: Callable[[Tensor, Tensor | None, torch.Generator], Tensor]) -> tuple[int, int]:
        draws = draws_of(
            defend,
            blobs(8, 2),
            artefacts=0.0,
            observations=5,
            local_steps=2,
            device=CPU,
            stream=torch_stream(1, "inverse"),
        )
        return draws.observations, draws.local_steps

    assert drawn(lambda x, y, stream: x / 2) == (1, 1)
    assert drawn(PixelNoise(strength=0.1).data) == (5, 2)


def test_the_draws_that_there_are_are_brought_to_what_is_looked_at() -> None:
    draws = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1, 1)
    assert gathered(draws, 3) is draws
    assert gathered(draws, 1).flatten().tolist() == [0.5]
    with pytest.raises(ValueError, match="trained for 2 draws of an image, got 3"):
        gathered(draws, 2)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"width": 0}, "width is 0"),
        ({"tolerance": -0.1}, "tolerance is -0.1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
    ],
)
def test_impossible_settings_are_refused(setting: dict[str, float], message: str) -> None:
    with pytest.raises(FedveilError, match=f"inverse: {message}"):
        replace(InverseTraining(), **setting)  # type: ignore[arg-type]


def test_it_may_go_on_from_a_network_which_stays_as_it_is(blobs: Blobs) -> None:
    auxiliary, noise, stream = blobs(60, 0), PixelNoise(strength=0.2), torch_stream(1, "begin")
    draws = draws_of(noise.data, auxiliary, artefacts=0.0, observations=1, local_steps=1, device=CPU, stream=stream)
    lessons = DefendedLessons(auxiliary, draws, device=CPU, stream=stream)
    first = train_inverse(lessons, QUICK, classes=2, device=CPU, stream=stream)
    before = [parameter.clone() for parameter in first.network.parameters()]
    short = replace(QUICK, steps=1, learning_rate=1e-9)
    further = train_inverse(lessons, short, classes=2, device=CPU, stream=stream, begin=first.network)
    assert further.network is not first.network
    for parameter, old, new in zip(first.network.parameters(), before, further.network.parameters(), strict=True):
        assert torch.equal(parameter, old)
        torch.testing.assert_close(new, old, rtol=0, atol=1e-6)
