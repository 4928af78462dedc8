import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from fedveil.attacks.scoring import ClassMeanGuess, Gallery, Judge, Scorer, VictimBatch, mse, train_judge
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import PrivacyRecord, Reconstruction, ThreatModel
from fedveil.fl.seeding import torch_stream

SIDE = 12
GRANTED = ThreatModel(labels=True, auxiliary_data=True)


def stripes(n: int, seed: int, channels: int = 1) -> Images:
    """Two easy classes: bright rows at the top (0) or at the bottom (1), with noise."""
    stream = torch_stream(seed, "stripes")
    labels = torch.arange(n) % 2
    pixels = torch.randint(0, 80, (n, channels, SIDE, SIDE), generator=stream)
    pixels[labels == 0, :, : SIDE // 2] += 150
    pixels[labels == 1, :, SIDE // 2 :] += 150
    return Images(pixels.to(torch.uint8), labels)


class BrighterHalf(nn.Module):
    """Reads class 0 in images whose top half is the brighter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * torch.stack([half.flatten(1).mean(1) for half in images.chunk(2, dim=2)], 1)


@cache
def trained() -> Judge:
    torch.set_num_threads(1)
    return train_judge(stripes(64, 1), classes=2, seed=0, epochs=4, batch_size=16)


@pytest.fixture
def victims() -> Images:
    return stripes(8, 7)


@pytest.fixture
def scorer(victims: Images) -> Scorer:
    floor = ClassMeanGuess.from_public(stripes(64, 1), classes=2)
    return Scorer(Judge(BrighterHalf()), Gallery(victims.pixels), floor, 3)


def batch_of(victims: Images, indices: list[int], trained_on: Tensor | None = None) -> VictimBatch:
    positions = torch.tensor(indices)
    originals, labels = victims.batch(positions)
    return VictimBatch(
        round=4,
        client=2,
        victims=positions + 100,
        originals=originals,
        trained=originals.clone() if trained_on is None else trained_on,
        labels=labels,
        gallery_index=positions,
    )


def score(scorer: Scorer, batch: VictimBatch, images: Tensor, labels: Tensor | None = None) -> list[PrivacyRecord]:
    used = batch.labels if labels is None else labels
    return scorer.score(batch, Reconstruction(images, used, 0.0), attack="exact", threat_model=GRANTED)


def test_a_perfect_reconstruction(scorer: Scorer, victims: Images) -> None:
    batch = batch_of(victims, [0, 1, 5])
    records = score(scorer, batch, batch.originals.clone())
    assert [r.victim for r in records] == [100, 101, 105]
    for record, label in zip(records, [0, 1, 1], strict=True):
        assert (record.attack, record.threat_model, record.seed) == ("exact", GRANTED, 3)
        assert (record.round, record.client, record.label) == (4, 2, label)
        assert (record.mse, record.psnr, record.trained_mse) == (0.0, 100.0, 0.0)
        assert record.ssim == pytest.approx(1.0, abs=1e-6)
        assert (record.attacker_label, record.identified, record.label_recovered) == (label, True, True)


def test_every_number_follows_one_matching_to_the_originals(scorer: Scorer, victims: Images) -> None:
    # the trained images are in the other order of brightness: matched to them, the pairs would cross
    originals, labels = victims.batch(torch.tensor([0, 1]))
    batch = batch_of(victims, [0, 1], trained_on=originals.flip(0))
    returned = originals.flip(0)
    records = score(scorer, batch, returned, labels.flip(0))
    across = mse(originals[:1], originals[1:]).item()
    for record in records:
        assert record.mse == 0.0
        assert record.mse_to_perturbed == pytest.approx(across)
        assert record.trained_mse == pytest.approx(across)
        assert record.identified
        assert record.label_recovered


def test_scores_are_against_the_original_with_the_error_to_the_trained_image_beside(
    scorer: Scorer, victims: Images
) -> None:
    originals, _ = victims.batch(torch.tensor([0, 3]))
    perturbed = originals * 0.9
    records = score(scorer, batch_of(victims, [0, 3], trained_on=perturbed), perturbed.clone())
    expected = (0.01 * originals.square()).flatten(1).mean(1).tolist()
    assert [r.mse for r in records] == pytest.approx(expected, rel=1e-4)
    assert [r.trained_mse for r in records] == pytest.approx(expected, rel=1e-4)
    assert [r.mse_to_perturbed for r in records] == [0.0, 0.0]


def test_the_floor_is_the_public_mean_of_the_true_class(scorer: Scorer, victims: Images) -> None:
    batch = batch_of(victims, [1, 2])
    public = stripes(64, 1)
    guesses = torch.stack([public.floats()[public.labels == k].mean(0) for k in batch.labels.tolist()])
    records = score(scorer, batch, torch.full_like(batch.originals, 0.5))
    assert [r.baseline_mse for r in records] == pytest.approx(mse(guesses, batch.originals).tolist(), rel=1e-4)


def test_a_repeated_reconstruction_counts_for_one_victim_only(scorer: Scorer, victims: Images) -> None:
    batch = batch_of(victims, [0, 2, 4])
    records = score(scorer, batch, batch.originals[:1].expand(3, -1, -1, -1).clone())
    assert sum(r.mse == 0.0 for r in records) == 1
    assert sum(r.identified for r in records) == 1


def test_a_wrong_label_is_not_recovered(scorer: Scorer, victims: Images) -> None:
    batch = batch_of(victims, [0, 1])
    records = score(scorer, batch, batch.originals.clone(), torch.tensor([0, 0]))
    assert [r.label_recovered for r in records] == [True, False]


def test_scoring_changes_none_of_its_inputs(scorer: Scorer, victims: Images) -> None:
    batch = batch_of(victims, [3, 0], trained_on=victims.batch(torch.tensor([3, 0]))[0] * 0.5)
    images = batch.originals.flip(0) * 0.7
    before = [t.clone() for t in (batch.originals, batch.trained, batch.labels, images, victims.pixels)]
    score(scorer, batch, images)
    for old, new in zip(before, (batch.originals, batch.trained, batch.labels, images, victims.pixels), strict=True):
        assert torch.equal(old, new)


def test_originals_that_a_defence_overwrote_in_place_are_refused(scorer: Scorer, victims: Images) -> None:
    # breaching users.py: the noise goes into the very tensor that is returned as the true data
    originals, _ = victims.batch(torch.tensor([0, 1]))
    batch = batch_of(victims, [0, 1], trained_on=originals)
    batch.originals.mul_(0.95)
    with pytest.raises(FedveilError, match=r"originals: 2 of 2 differ from the gallery.*never write"):
        score(scorer, batch, originals)


def test_victims_that_carry_the_defence_s_transform_are_refused(scorer: Scorer, victims: Images) -> None:
    # ATS: the evaluation set itself passed the policy's transform
    batch = batch_of(victims, [0, 1])
    flipped = replace(batch, originals=batch.originals.flip(3))
    with pytest.raises(FedveilError, match="differ from the gallery"):
        score(scorer, flipped, batch.originals)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x * float("nan"), r"attack 'exact': reconstruction: expected values in \[0, 1\], got nan"),
        (lambda x: x * 2 - 1, r"attack 'exact': reconstruction: expected values in \[0, 1\]"),
        (lambda x: x[:1], r"attack 'exact': expected \(2, 1, 12, 12\), got \(1, 1, 12, 12\)"),
    ],
)
def test_reconstructions_out_of_range_are_refused_by_the_attack_s_name(
    scorer: Scorer, victims: Images, spoil: Callable[[Tensor], Tensor], message: str
) -> None:
    batch = batch_of(victims, [0, 1])
    with pytest.raises(FedveilError, match=message):
        score(scorer, batch, spoil(batch.originals))


def test_labels_and_positions_of_the_wrong_shape_are_refused(scorer: Scorer, victims: Images) -> None:
    batch = batch_of(victims, [0, 1])
    with pytest.raises(FedveilError, match=r"labels: expected \(2,\) int64"):
        replace(batch, labels=batch.labels[:1])
    with pytest.raises(FedveilError, match=r"gallery_index.*float32"):
        replace(batch, gallery_index=batch.gallery_index.float())
    with pytest.raises(FedveilError, match="trained on"):
        replace(batch, trained=batch.trained[:, :, :6])
    with pytest.raises(FedveilError, match="from 0 to 7"):
        score(scorer, replace(batch, gallery_index=torch.tensor([0, 8])), batch.originals)
    with pytest.raises(FedveilError, match="labels"):
        score(scorer, batch, batch.originals, torch.tensor([0]))


def test_nearest_equals_the_slow_search_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attacks.scoring.gallery._CHUNK", 7)
    pixels = stripes(40, 11, channels=3).pixels
    noise = 0.2 * torch.rand(4, 3, SIDE, SIDE, generator=torch_stream(0))
    queries = (pixels[[33, 0, 12, 39]].float() / 255 + noise).clamp(0, 1)
    slow = [((pixels.float() / 255 - q) ** 2).flatten(1).mean(1).argmin().item() for q in queries]
    assert Gallery(pixels).nearest(queries).tolist() == slow == [33, 0, 12, 39]


def test_finding_a_repeat_of_the_victim_identifies_it(victims: Images) -> None:
    gallery = Gallery(torch.cat([victims.pixels, victims.pixels[:1]]))
    assert gallery.same(torch.tensor([0, 1]), torch.tensor([8, 8])).tolist() == [True, False]
    scorer = Scorer(Judge(BrighterHalf()), gallery, ClassMeanGuess.from_public(victims, classes=2), 0)
    batch = replace(batch_of(victims, [0]), gallery_index=torch.tensor([8]))
    assert score(scorer, batch, batch.originals.clone())[0].identified


def test_gallery_refuses_floats_and_other_sizes(victims: Images) -> None:
    with pytest.raises(FedveilError, match=r"gallery: expected .* uint8"):
        Gallery(victims.floats())
    with pytest.raises(FedveilError, match=r"expected \(1, 12, 12\) as in the gallery, got \(3, 12, 12\)"):
        Gallery(victims.pixels).nearest(torch.zeros(1, 3, SIDE, SIDE))


def test_floor_guess_worked_by_hand_with_an_absent_class() -> None:
    pixels = torch.tensor([0, 102, 255], dtype=torch.uint8).view(3, 1, 1, 1)
    floor = ClassMeanGuess.from_public(Images(pixels, torch.tensor([0, 0, 2])), classes=3)
    assert floor.guess(torch.tensor([0, 1, 2])).flatten().tolist() == pytest.approx([0.2, 357 / 765, 1.0])
    with pytest.raises(FedveilError, match="labels from 0 to 1"):
        ClassMeanGuess.from_public(Images(pixels, torch.tensor([0, 0, 2])), classes=2)
    with pytest.raises(FedveilError, match="at least one image"):
        ClassMeanGuess.from_public(Images(pixels[:0], torch.tensor([], dtype=torch.int64)), classes=2)


def test_the_evaluator_learns_and_survives_pickling() -> None:
    fresh = stripes(60, 5)
    assert trained().accuracy(fresh) > 0.95
    copy = pickle.loads(pickle.dumps(trained()))  # noqa: S301
    assert torch.equal(copy.labels(fresh.floats()), trained().labels(fresh.floats()))


def test_the_evaluator_is_a_function_of_its_seed_and_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    one, two, other = (train_judge(stripes(16, 1), classes=2, seed=seed, epochs=1, batch_size=8) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    weights = [torch.cat([p.flatten() for p in e.model.parameters()]) for e in (one, two, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_evaluator_refuses_nothing_and_out_of_range_images() -> None:
    with pytest.raises(FedveilError, match="needs images"):
        train_judge(stripes(0, 1), classes=2, seed=0)
    with pytest.raises(FedveilError, match=r"in \[0, 1\]"):
        trained().labels(torch.full((1, 1, SIDE, SIDE), 1.5))
