from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stripes import SIDE, stripes
from torch import Tensor, nn

from fedveil.attacks.scoring import (
    ClassMeanGuess,
    Gallery,
    Judge,
    JudgeQuality,
    Scorer,
    build_scorer,
    in_order,
    mse,
)
from fedveil.attacks.scoring.scorer import labels_recovered
from fedveil.attacks.scoring.victims import VictimBatch
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import PrivacyRecord, Reconstruction, ThreatModel
from fedveil.fl.seeding import torch_stream

GRANTED = ThreatModel(labels=True, auxiliary_data=True)


class BrighterHalf(nn.Module):
    """Reads class 0 in images whose top half is the brighter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * torch.stack([half.flatten(1).mean(1) for half in images.chunk(2, dim=2)], 1)


@pytest.fixture
def victims() -> Images:
    return stripes(8, 7)


@pytest.fixture
def scorer(victims: Images) -> Scorer:
    baseline = ClassMeanGuess.of(stripes(64, 1), classes=2)
    return Scorer(Judge(BrighterHalf()), Gallery(victims.pixels), baseline, 3)


def batch_of(victims: Images, indices: list[int], trained_on: Tensor | None = None) -> VictimBatch:
    images = victims.take(torch.tensor(indices))
    trained_on = images.floats() if trained_on is None else trained_on
    return VictimBatch(0, 2, tuple(i + 100 for i in indices), images, tuple(indices), (trained_on,))


def score(
    scorer: Scorer, batch: VictimBatch, images: Tensor, labels: Tensor | None = None, *, reads_class: bool = True
) -> list[PrivacyRecord]:
    found = Reconstruction(images, batch.labels if labels is None else labels, 0.0)
    return score_all_of(scorer, batch, found, reads_class=reads_class)


def score_all_of(
    scorer: Scorer, batch: VictimBatch, found: Reconstruction, *, reads_class: bool = True
) -> list[PrivacyRecord]:
    matched = in_order(found, batch.originals, attack="exact")
    return scorer.score(batch, matched, attack="exact", threat_model=GRANTED, round=4, reads_class=reads_class)


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


def test_the_baseline_is_the_auxiliary_mean_of_the_true_class(scorer: Scorer, victims: Images) -> None:
    batch = batch_of(victims, [1, 2])
    auxiliary = stripes(64, 1)
    guesses = torch.stack([auxiliary.floats()[auxiliary.labels == k].mean(0) for k in batch.labels.tolist()])
    records = score(scorer, batch, torch.full_like(batch.originals, 0.5))
    assert [r.baseline_mse for r in records] == pytest.approx(mse(guesses, batch.originals).tolist(), rel=1e-4)


def test_a_repeated_reconstruction_counts_for_one_victim_only(scorer: Scorer, victims: Images) -> None:
    batch = batch_of(victims, [0, 2, 4])
    records = score(scorer, batch, batch.originals[:1].expand(3, -1, -1, -1).clone())
    assert sum(r.mse == 0.0 for r in records) == 1
    assert [r.identified for r in records].count(True) == 1


def test_a_wrong_label_is_not_recovered(scorer: Scorer, victims: Images) -> None:
    batch = batch_of(victims, [0, 1])
    records = score(scorer, batch, batch.originals.clone(), torch.tensor([0, 0]))
    assert [r.label_recovered for r in records] == [True, False]


def test_a_batch_in_another_order_is_no_error_of_recovery(scorer: Scorer, victims: Images) -> None:
    batch = batch_of(victims, [0, 1])
    swapped = score(scorer, batch, batch.originals.clone(), batch.labels.flip(0))
    assert [r.label_recovered for r in swapped] == [True, True]


def test_labels_count_once_and_first_where_the_image_matches() -> None:
    # True 0 0 1 2, used 1 0 0 0: both zeros and the one are there, the two is not.
    assert labels_recovered(torch.tensor([0, 0, 1, 2]), torch.tensor([1, 0, 0, 0])) == [True, True, True, False]
    # One zero of two: that whose image was given it.
    assert labels_recovered(torch.tensor([0, 0, 1]), torch.tensor([2, 0, 2])) == [False, True, False]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12))
def test_as_many_labels_are_recovered_as_the_batches_share(pairs: list[tuple[int, int]]) -> None:
    true, used = torch.tensor(pairs).unbind(dim=1)
    answers = labels_recovered(true, used)
    shared = Counter(true.tolist()) & Counter(used.tolist())
    assert sum(answers) == shared.total()
    assert sum(labels_recovered(true, used.flip(0))) == shared.total()
    assert all(answer for answer, one, other in zip(answers, true, used, strict=True) if one == other)


def test_scoring_changes_none_of_its_inputs(scorer: Scorer, victims: Images) -> None:
    batch = batch_of(victims, [3, 0], trained_on=victims.batch(torch.tensor([3, 0]))[0] * 0.5)
    assert batch.trained is not None
    images = batch.originals.flip(0) * 0.7
    inputs = (batch.images.pixels, batch.trained, batch.labels, images, victims.pixels)
    before = [t.clone() for t in inputs]
    score(scorer, batch, images)
    for old, new in zip(before, inputs, strict=True):
        assert torch.equal(old, new)


def test_what_an_audit_lacks_is_left_open_and_the_rest_is_scored(victims: Images) -> None:
    bare = Scorer(None, None, None, 3)
    batch = replace(batch_of(victims, [0, 3]), draws=(), gallery=None)
    for record in score(bare, batch, batch.originals * 0.9):
        left_open = (record.mse_to_perturbed, record.trained_mse, record.baseline_mse)
        assert left_open == (None, None, None)
        assert (record.attacker_label, record.identified) == (None, None)
        assert record.mse > 0
        assert record.label_recovered


def test_victims_without_positions_are_not_looked_up_in_a_gallery(scorer: Scorer, victims: Images) -> None:
    batch = replace(batch_of(victims, [0]), gallery=None)
    assert [r.identified for r in score(scorer, batch, batch.originals)] == [None]


def test_no_class_is_read_from_images_that_only_show_what_the_attack_was_told(scorer: Scorer, victims: Images) -> None:
    batch = batch_of(victims, [0, 1])
    assert [r.attacker_label for r in score(scorer, batch, batch.originals, reads_class=False)] == [None, None]


def test_everything_that_an_attack_returns_follows_the_same_matching(scorer: Scorer, victims: Images) -> None:
    batch = batch_of(victims, [0, 1, 5])  # classes 0 1 1
    turned = torch.tensor([2, 0, 1])
    back = batch.originals[turned]

    def likeness(candidates: Tensor) -> Tensor:  # the right image of the gallery for the first two that come back
        assert torch.equal(candidates, victims.floats())
        return nn.functional.one_hot(torch.tensor([5, 0, 7]), len(candidates)).float()

    found = Reconstruction(
        back, batch.labels[turned], 0.0, blind=back.flip(2), classes=torch.tensor([1, 0, 0]), likeness=likeness
    )
    records = score_all_of(scorer, batch, found)
    assert [r.mse for r in records] == [0.0] * 3
    assert [r.attacker_label for r in records] == [1, 0, 0], "upside down the classes are the other ones"
    assert [r.adaptive_label for r in records] == [0, 0, 1]
    assert [r.identified_forward for r in records] == [True, False, True]
    assert [r.identified for r in records] == [True] * 3


def test_a_likeness_has_to_compare_every_candidate(scorer: Scorer, victims: Images) -> None:
    batch = batch_of(victims, [0])
    for scores in (torch.zeros(2, 8), torch.zeros(1, 7), torch.full((1, 8), float("nan"))):
        found = Reconstruction(batch.originals, batch.labels, 0.0, likeness=lambda candidates, s=scores: s)
        with pytest.raises(FedveilError, match=r"likeness: expected finite numbers \(1, 8\)"):
            score_all_of(scorer, batch, found)


def test_originals_that_a_defence_overwrote_in_place_are_refused(scorer: Scorer, victims: Images) -> None:
    # breaching users.py: the noise goes into the very tensor that is returned as the true data
    batch = batch_of(victims.take(torch.arange(8)), [0, 1])
    batch.images.pixels.sub_(7)
    with pytest.raises(FedveilError, match=r"originals: 2 of 2 differ from the gallery.*never write"):
        score(scorer, batch, batch.originals)


def test_victims_that_carry_the_defence_s_transform_are_refused(scorer: Scorer, victims: Images) -> None:
    # ATS: the evaluation set itself passed the policy's transform
    batch = batch_of(victims, [0, 1])
    flipped = replace(batch, images=Images(batch.images.pixels.flip(3), batch.labels))
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


def test_labels_and_positions_that_do_not_fit_are_refused(scorer: Scorer, victims: Images) -> None:
    batch = batch_of(victims, [0, 1])
    with pytest.raises(FedveilError, match="from 0 to 7"):
        score(scorer, replace(batch, gallery=(0, 8)), batch.originals)
    with pytest.raises(FedveilError, match=r"expected \(2,\) labels, got \(1,\)"):
        score(scorer, batch, batch.originals, torch.tensor([0]))


def test_nearest_equals_the_slow_search_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedveil.attacks.scoring.gallery._CHUNK", 7)
    pixels = stripes(40, 11, channels=3).pixels
    noise = 0.2 * torch.rand(4, 3, SIDE, SIDE, generator=torch_stream(0))
    queries = (pixels[[33, 0, 12, 39]].float() / 255 + noise).clamp(0, 1)
    slow = [((pixels.float() / 255 - q) ** 2).flatten(1).mean(1).argmin().item() for q in queries]
    assert Gallery(pixels).nearest(queries).tolist() == slow == [33, 0, 12, 39]


def test_finding_a_repeat_of_the_victim_identifies_it(victims: Images) -> None:
    gallery = Gallery(torch.cat([victims.pixels, victims.pixels[:1]]))
    assert gallery.same(torch.tensor([0, 1]), torch.tensor([8, 8])).tolist() == [True, False]
    scorer = Scorer(Judge(BrighterHalf()), gallery, ClassMeanGuess.of(victims, classes=2), 0)
    batch = replace(batch_of(victims, [0]), gallery=(8,))
    assert score(scorer, batch, batch.originals.clone())[0].identified


def test_gallery_refuses_floats_and_other_sizes(victims: Images) -> None:
    with pytest.raises(FedveilError, match=r"gallery: expected .* uint8"):
        Gallery(victims.floats())
    with pytest.raises(FedveilError, match=r"expected \(1, 12, 12\) as in the gallery, got \(3, 12, 12\)"):
        Gallery(victims.pixels).nearest(torch.zeros(1, 3, SIDE, SIDE))


def test_baseline_guess_worked_by_hand_with_an_absent_class() -> None:
    pixels = torch.tensor([0, 102, 255], dtype=torch.uint8).view(3, 1, 1, 1)
    baseline = ClassMeanGuess.of(Images(pixels, torch.tensor([0, 0, 2])), classes=3)
    assert baseline.guess(torch.tensor([0, 1, 2])).flatten().tolist() == pytest.approx([0.2, 357 / 765, 1.0])
    with pytest.raises(FedveilError, match="labels from 0 to 1"):
        ClassMeanGuess.of(Images(pixels, torch.tensor([0, 0, 2])), classes=2)
    with pytest.raises(FedveilError, match="at least one image"):
        ClassMeanGuess.of(Images(pixels[:0], torch.tensor([], dtype=torch.int64)), classes=2)


def test_a_scorer_has_the_parts_for_which_there_are_images(victims: Images, tmp_path: Path) -> None:
    gallery, cpu = Gallery(victims.pixels), torch.device("cpu")
    bare = build_scorer(None, gallery, classes=2, seed=0, device=cpu, untouched=victims)
    assert (bare.judge, bare.baseline, bare.judge_quality) == (None, None, None)
    whole, again = (
        build_scorer(stripes(12, 1), gallery, classes=2, seed=0, device=cpu, untouched=shown, cache=tmp_path)
        for shown in (victims, None)
    )
    assert len(list(tmp_path.iterdir())) == 1
    assert whole.judge is not None
    assert again.judge is not None
    assert torch.equal(whole.judge.labels(victims.floats()), again.judge.labels(victims.floats()))
    assert whole.judge_quality == JudgeQuality.of(
        victims.labels.tolist(), whole.judge.labels(victims.floats()).tolist(), classes=2
    )
    assert again.judge_quality is None
    assert whole.baseline is not None
    guess = ClassMeanGuess.of(stripes(12, 1), classes=2).guess(victims.labels)
    assert torch.equal(whole.baseline.guess(victims.labels), guess)
