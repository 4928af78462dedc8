import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from medmnist.evaluator import getAUC
from sklearn.metrics import roc_auc_score

from fedveil.fl.metrics import accuracy, macro_auc

# Eighths are exact in float32 and collide often, so that ties are tried.
eighths = st.integers(0, 8).map(lambda n: n / 8)


def test_accuracy_counts_rows_whose_largest_score_is_the_label() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.3, 0.5], [0.4, 0.6, 0.0], [3.0, -1.0, 2.0]])
    assert accuracy(scores, torch.tensor([0, 2, 0, 2])) == 0.5


def test_accuracy_counts_a_row_with_nan_as_wrong() -> None:
    scores = torch.tensor([[math.nan, 0.1], [0.9, 0.1]])
    assert accuracy(scores, torch.tensor([0, 0])) == 0.5


def test_binary_auc_by_hand() -> None:
    # First both positives beat both negatives; then 0.35 loses to 0.4, and 3 of 4 pairs are won.
    labels = torch.tensor([0, 0, 1, 1])
    positive = torch.tensor([0.1, 0.35, 0.4, 0.8])
    assert macro_auc(torch.stack([1 - positive, positive], dim=1), labels) == 1.0
    positive = torch.tensor([0.1, 0.4, 0.35, 0.8])
    assert macro_auc(torch.stack([1 - positive, positive], dim=1), labels) == 0.75


def test_binary_auc_reads_the_positive_column_only() -> None:
    probabilities = torch.tensor([[0.0, 0.1], [0.0, 0.2], [0.0, 0.9]])
    assert macro_auc(probabilities, torch.tensor([0, 0, 1])) == 1.0


def test_a_tie_counts_half() -> None:
    assert macro_auc(torch.full((4, 2), 0.5), torch.tensor([0, 1, 1, 0])) == 0.5


def test_three_classes_by_hand() -> None:
    # One-versus-rest: class 0 wins all 2 pairs, class 1 wins 1 of 2, class 2 wins 0 of 2.
    probabilities = torch.tensor([[0.8, 0.1, 0.1], [0.3, 0.4, 0.3], [0.2, 0.8, 0.0]])
    assert macro_auc(probabilities, torch.tensor([0, 1, 2])) == pytest.approx((1 + 0.5 + 0) / 3)


def test_an_absent_class_is_left_out_of_the_mean() -> None:
    probabilities = torch.tensor([[0.8, 0.2, 0.0], [0.3, 0.7, 0.0], [0.6, 0.4, 0.0]])
    assert macro_auc(probabilities, torch.tensor([0, 1, 0])) == 1.0


@pytest.mark.parametrize("classes", [2, 3])
def test_one_class_alone_has_no_auc(classes: int) -> None:
    assert math.isnan(macro_auc(torch.rand(3, classes, generator=torch.Generator()), torch.zeros(3).long()))


@given(scores=hnp.arrays(np.float32, (12, 2), elements=eighths), positives=st.integers(1, 11))
def test_binary_auc_equals_medmnist(scores: np.ndarray, positives: int) -> None:
    labels = (np.arange(12) < positives).astype(np.int64)
    expected = getAUC(labels[:, None], scores, "binary-class")
    assert macro_auc(torch.from_numpy(scores), torch.from_numpy(labels)) == pytest.approx(expected, abs=1e-12)


@given(
    scores=hnp.arrays(np.float32, (14, 4), elements=eighths),
    extra=st.lists(st.integers(0, 3), min_size=10, max_size=10),
)
def test_multiclass_auc_equals_medmnist_where_all_classes_are_there(scores: np.ndarray, extra: list[int]) -> None:
    labels = np.array([0, 1, 2, 3, *extra])
    expected = getAUC(labels[:, None], scores, "multi-class")
    assert macro_auc(torch.from_numpy(scores), torch.from_numpy(labels)) == pytest.approx(expected, abs=1e-12)


@given(
    scores=hnp.arrays(np.float32, (10, 5), elements=eighths),
    labels=hnp.arrays(np.int64, 10, elements=st.integers(0, 4)).filter(lambda a: len(np.unique(a)) > 1),
)
def test_multiclass_auc_is_the_mean_over_the_classes_that_are_there(scores: np.ndarray, labels: np.ndarray) -> None:
    expected = np.mean([roc_auc_score(labels == c, scores[:, c]) for c in np.unique(labels)])
    assert macro_auc(torch.from_numpy(scores), torch.from_numpy(labels)) == pytest.approx(expected, abs=1e-12)


def test_a_score_that_is_not_a_number_has_no_auc() -> None:
    scores = torch.tensor([[0.1, 0.9], [math.nan, math.nan], [0.8, 0.2]])
    assert math.isnan(macro_auc(scores, torch.tensor([1, 0, 0])))
