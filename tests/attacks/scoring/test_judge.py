import pickle
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import recall_score
from stripes import SIDE, stripes
from torch import Tensor

from fedveil.attacks.scoring import (
    Judge,
    JudgeQuality,
    judge,
    mse,
    train_judge,
)
from fedveil.attacks.scoring.augment import augment, class_keeping_mirrors
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.seeding import torch_stream


@cache
def trained() -> Judge:
    torch.set_num_threads(1)
    return train_judge(stripes(64, 1), classes=2, seed=0, steps=60)


def quality(judge: Judge, images: Images) -> JudgeQuality:
    return JudgeQuality.of(images.labels.tolist(), judge.labels(images.floats()).tolist(), classes=2)


def test_the_judge_reads_fresh_images_and_survives_pickling() -> None:
    fresh = stripes(60, 5)
    assert quality(trained(), fresh).accuracy > 0.95
    assert quality(trained(), fresh).fit
    copy = pickle.loads(pickle.dumps(trained()))  # noqa: S301
    assert torch.equal(copy.labels(fresh.floats()), trained().labels(fresh.floats()))


def test_the_judge_reads_images_of_any_size() -> None:
    large = Images(stripes(40, 1).pixels.repeat_interleave(4, 2).repeat_interleave(4, 3), stripes(40, 1).labels)
    assert quality(train_judge(large, classes=2, seed=0, steps=60), large).accuracy > 0.95


def test_the_judge_is_a_function_of_its_seed_and_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    one, two, other = (train_judge(stripes(16, 1), classes=2, seed=seed, steps=2) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    weights = [torch.cat([p.flatten() for p in e.model.parameters()]) for e in (one, two, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_judge_refuses_nothing_and_out_of_range_images() -> None:
    with pytest.raises(FedveilError, match="needs images"):
        train_judge(stripes(0, 1), classes=2, seed=0)
    with pytest.raises(FedveilError, match=r"in \[0, 1\]"):
        trained().labels(torch.full((1, 1, SIDE, SIDE), 1.5))


def test_the_judge_is_trained_until_the_held_out_curve_is_flat(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[Tensor] = []

    def spy(images: Tensor, stream: torch.Generator, *, mirrored: Sequence[int]) -> Tensor:
        batches.append(images)
        return images

    monkeypatch.setattr("fedveil.attacks.scoring.judge.augment", spy)
    # a learning rate of 0: no look is better than the first, so that four more end it
    train_judge(stripes(40, 1), classes=2, seed=0, learning_rate=0.0, check_every=3)
    assert len(batches) == 15
    # 8 of 40 images are held out: 32 are drawn from, a quarter of which is below the least batch
    assert {len(batch) for batch in batches} == {16}
    assert len({str(image.tolist()) for batch in batches for image in batch}) <= 32


def test_a_rare_class_is_seen_as_often_as_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    some = stripes(200, 1)
    rare = some.take(torch.cat([(some.labels == 0).nonzero()[:, 0], (some.labels == 1).nonzero()[:10, 0]]))
    seen: list[Tensor] = []

    def spy(images: Tensor, stream: torch.Generator, *, mirrored: Sequence[int]) -> Tensor:
        seen.append(images)
        return images

    monkeypatch.setattr("fedveil.attacks.scoring.judge.augment", spy)
    train_judge(rare, classes=2, seed=0, steps=40)
    # class 0 is bright at the top
    tops = [image[:, : SIDE // 2].mean() > image[:, SIDE // 2 :].mean() for batch in seen for image in batch]
    assert sum(map(bool, tops)) / len(tops) == pytest.approx(0.5, abs=0.06)


def test_augmented_images_are_new_in_range_and_a_function_of_the_stream() -> None:
    images = stripes(32, 2, channels=3).floats()
    before = images.clone()
    one, two = (augment(images, torch_stream(0, "augment")) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(images, before)
    assert one.shape == images.shape
    assert 0.0 <= float(one.min()) <= float(one.max()) <= 1.0
    assert bool((mse(one, images) > 0).all())
    # the class of an image stays readable: bright half above or below
    halves = one[:, :, : SIDE // 2].mean((1, 2, 3)) < one[:, :, SIDE // 2 :].mean((1, 2, 3))
    assert torch.equal(halves.long(), stripes(32, 2).labels)


def test_images_are_mirrored_only_where_that_keeps_the_class() -> None:
    # bright above or below: mirrored top to bottom the class is the other one, left to right the same
    assert class_keeping_mirrors(stripes(20, 3), stripes(60, 4)) == (3,)
    corner = torch.zeros(200, 1, SIDE, SIDE)
    corner[:, :, :6, :6] = 1.0
    turned = augment(corner, torch_stream(0, "mirrors"), mirrored=(3,))
    left, right = (half.mean((1, 2, 3)) for half in turned.chunk(2, dim=3))
    assert 60 < int((left > right).sum()) < 140
    above, below = (half.mean((1, 2, 3)) for half in turned.chunk(2, dim=2))
    assert bool((above > below).all())


# How good the judge is


def test_quality_worked_by_hand() -> None:
    # class 0: 3 of 4 right, class 1: 1 of 2; balanced (.75 + .5) / 2, where plain accuracy is 4 / 6
    found = JudgeQuality.of([0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0], classes=2)
    assert found.accuracy == pytest.approx(0.625)
    assert found.chance == 0.5
    # Wilson with n = 2^2 / (1/4 + 1/2) = 16/3 and z = 1.96, z^2 = 3.8415:
    # (.625 + .36014 - 1.96 * sqrt(.234375 * 3 / 16 + .033763)) / 1.72028 = .25506
    assert found.low == pytest.approx(0.25506, abs=1e-4)
    assert not found.fit


def test_few_images_read_rightly_prove_little() -> None:
    few, many = (JudgeQuality.of(list(range(2)) * n, list(range(2)) * n, classes=2) for n in (1, 50))
    assert few.accuracy == many.accuracy == 1.0
    assert few.low == pytest.approx(2 / (2 + 3.8415), abs=1e-4)
    assert (few.fit, many.fit) == (False, True)


def test_a_judge_that_names_one_class_is_at_chance_whatever_the_shares() -> None:
    found = JudgeQuality.of([0] * 90 + [1] * 10, [0] * 100, classes=2)
    assert found.accuracy == found.chance == 0.5
    assert not found.fit


def test_fit_needs_a_tenth_of_the_way_from_chance_to_one() -> None:
    assert not JudgeQuality(0.6, low=0.54, chance=0.5).fit
    assert JudgeQuality(0.6, low=0.56, chance=0.5).fit
    assert not JudgeQuality(0.3, low=0.27, chance=0.2).fit
    assert JudgeQuality(0.35, low=0.29, chance=0.2).fit


def test_a_judge_that_was_shown_one_class_is_not_fit_however_often_it_was_right() -> None:
    found = JudgeQuality.of([2] * 50, [2] * 50, classes=8)
    assert (found.accuracy, found.constant, found.fit) == (1.0, 1.0, False)
    two = JudgeQuality.of([2, 3] * 25, [2, 3] * 25, classes=8)
    assert (two.constant, two.fit) == (0.5, True)


def test_quality_of_nothing_is_an_error() -> None:
    with pytest.raises(FedveilError, match="at least one untouched image"):
        JudgeQuality.of([], [], classes=2)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
@settings(max_examples=60)
def test_quality_agrees_with_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    labels, read = ([pair[i] for pair in pairs] for i in (0, 1))
    found = JudgeQuality.of(labels, read, classes=5)
    recalls = [recall_score(labels, read, labels=[c], average="macro", zero_division=0.0) for c in sorted(set(labels))]
    assert found.accuracy == pytest.approx(sum(recalls) / len(recalls))
    assert 0.0 <= found.low <= found.accuracy


def test_a_judge_from_the_cache_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def judge_from_cache() -> Judge:
        return judge.cached_judge(stripes(12, 1), classes=2, seed=0, device=torch.device("cpu"), cache=tmp_path)

    first = judge_from_cache()
    monkeypatch.setattr(judge, "train_judge", lambda *_, **__: pytest.fail("trained again"))
    shown = stripes(12, 3).floats()
    assert torch.equal(first.labels(shown), judge_from_cache().labels(shown))
