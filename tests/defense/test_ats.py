from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedveil.defense import ATS, DefenseContext, TrainedOn
from fedveil.defense.ats import PLACES, PreparedATS, accuracy_score, privacy_score
from fedveil.defense.transforms import TRANSFORMS, applied
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_transformations_by_hand() -> None:
    x = torch.tensor([[0.0, 0.2], [0.6, 1.0]]).view(1, 1, 2, 2)
    by_hand = {
        "invert": [1, 0.8, 0.4, 0],
        "mirror": [0.2, 0, 1, 0.6],
        "brighter_0.2": [0.2, 0.4, 0.8, 1],
        "posterise_2": [0, 0, 1, 1],
        "solarise_0.5": [0, 0.2, 0.4, 0],
        "contrast_0.4": [0.27, 0.35, 0.51, 0.67],  # the mean is 0.45
        "smooth": [2.6 / 9, 3.4 / 9, 4.6 / 9, 5.6 / 9],  # edges go on
    }
    for name, expected in by_hand.items():
        assert applied((name,), x).flatten().tolist() == pytest.approx(expected, abs=1e-4), name
    dot = torch.zeros(1, 1, 20, 20)
    dot[0, 0, 5, 5] = 1
    for name, place in {"right_0.15": (5, 8), "down_0.3": (11, 5), "right_-0.15": (5, 2)}.items():
        found = applied((name,), dot)[0, 0]
        assert divmod(int(found.argmax()), 20) == place, name
        assert float(found.sum()) == pytest.approx(1, abs=1e-3)


@settings(max_examples=30)
@given(st.lists(st.sampled_from(sorted(TRANSFORMS)), max_size=4), st.integers(0, 99))
def test_images_stay_images_whatever_the_row(names: list[str], seed: int) -> None:
    x = torch.rand((2, 3, 12, 12), generator=stream(seed))
    found = applied(tuple(names), x)
    assert found.shape == x.shape
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    assert torch.equal(found[:1], applied(tuple(names), x[:1])), "each image by itself"


def test_scores_of_a_linear_network_by_hand() -> None:
    """Logits W x have the same slope for all images: correlations of 1, eigenvalues 2 and 0 of two images."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    x = torch.rand((2, 1, 2, 2), generator=stream())
    expected = -((math.log(2 + 1e-5) + 1 / (2 + 1e-5)) + (math.log(1e-5) + 1e5)) / 2
    # What is 0 in theory is rounded, beside a floor of 1e-5.
    assert accuracy_score(model, x) == pytest.approx(expected, rel=1e-4)
    # Its gradient is (p - y) x^T: two images' are as alike as the images, for p - y of two classes has one direction.
    start = torch.rand((2, 1, 2, 2), generator=stream(1))
    cosines = []
    for image, begin in zip(x.flatten(1), start.flatten(1), strict=True):
        for at in range(PLACES):
            between = image + (1 - (at + 0.5) / PLACES) * (begin - image)
            cosines.append(float(torch.cosine_similarity(image, between, dim=0)))
    found = privacy_score(model, x, torch.tensor([0, 1]), start)
    assert found == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)
    assert privacy_score(model, x, torch.tensor([0, 1]), x) == pytest.approx(1, abs=1e-6)


def test_the_search_returns_the_rows_that_lead_worst_of_those_that_teach_well(context: DefenseContext) -> None:
    defense = ATS(length=2, candidates=12, policies=2, scored=4)
    assert defense.trained_on is TrainedOn.PUBLIC
    found = defense.pretrain(context)
    assert len(found) == 2
    assert all(len(policy) == 2 and set(policy) <= set(TRANSFORMS) for policy in found)
    assert defense.pretrain(context) == found
    every = ATS(length=2, candidates=12, policies=12, scored=4, accurate=1.0).pretrain(context)
    assert set(found) <= set(every)
    assert [policy for policy in every if policy in found] == list(found), "in the order of their privacy"


def test_each_image_passes_one_of_the_rows_and_a_finished_model_sees_untouched_ones(private: Images) -> None:
    policies = (("invert",), ("mirror", "invert"))
    prepared = PreparedATS(policies)
    x, y = private.floats(), private.labels
    assert prepared.data(x, None, stream()) is x
    shown = prepared.data(x, y, stream(2))
    made = [applied(policy, x) for policy in policies]

    def equal(one: Tensor) -> Tensor:
        return (shown == one).flatten(1).all(1)

    first, second = (equal(one) for one in made)
    assert bool((first | second).all())
    assert 20 < int(first.sum()) < 60
    surrogate = prepared.surrogate()
    assert surrogate.data is not None
    assert torch.equal(surrogate.data(x, None, stream(2)), shown)


def test_more_rows_in_use_than_are_kept_are_refused() -> None:
    with pytest.raises(FedveilError, match="of 4 candidates 2 are kept for their accuracy"):
        ATS(candidates=4, accurate=0.5, policies=3)
    assert ATS(candidates=4, accurate=0.5, policies=2).policies == 2
