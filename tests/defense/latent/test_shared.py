from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedveil.defense.latent.grouping import Grouping, group_by_class
from fedveil.defense.latent.shared import PreparedShared, Shared, distinct, prepare_shared
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError

K = 2


def flat(*greys: int, label: int = 0) -> Images:
    """Images of one grey each."""
    pixels = torch.tensor(greys, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).clone()
    return Images(pixels, torch.full((len(greys),), label))


def both(one: Images, other: Images) -> Images:
    return Images(torch.cat([one.pixels, other.pixels]), torch.cat([one.labels, other.labels]))


def bright(images: Images) -> Tensor:
    return images.floats().flatten(1)


def share(images: Images, stream: torch.Generator) -> Shared:
    """Similar is who is about as bright; a group's image is its mean."""
    grouping = group_by_class(bright(images), images.labels, K)
    return Shared(grouping, (grouping.means(images.floats()) * 255).round().to(torch.uint8))


def prepare(private: Images) -> PreparedShared:
    private = distinct(private)
    return prepare_shared("shares", private, share(private, stream()), share, similar=bright, client=3)


def stream() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def greys(images: Images) -> list[int]:
    assert bool((images.pixels == images.pixels[:, :, :1, :1]).all())
    return images.pixels[:, 0, 0, 0].tolist()


PRIVATE = both(flat(10, 20, 100, 120), flat(50, label=1))


def test_each_image_of_a_group_is_trained_on_as_the_same_image_with_its_label() -> None:
    prepared = prepare(PRIVATE)
    found = prepared.images(PRIVATE)
    assert greys(found) == [15, 15, 110, 110]
    assert found.labels.tolist() == [0, 0, 0, 0]
    # By pixels, in the order that is asked for, some or several times.
    assert greys(prepared.images(PRIVATE.take(torch.tensor([3, 0, 4, 3])))) == [110, 15, 110]
    assert prepared.diagnostics() == {"k": 2.0, "left_out": 0.2}


def test_what_a_group_scatters_is_the_least_error_of_any_answer() -> None:
    prepared = prepare(PRIVATE)
    # 10 and 20 lie 5 from their mean, 100 and 120 lie 10
    expected = torch.tensor([5.0, 10.0, 5.0, 10.0], dtype=torch.float64).div(255).square()
    asked = PRIVATE.take(torch.tensor([0, 2, 1, 3]))
    torch.testing.assert_close(prepared.indistinct_error(asked, PRIVATE), expected)
    # 10 three times and 20 once: their mean is 12.5, three lie 2.5 from it and one 7.5.
    often = both(PRIVATE, flat(10, 10))
    found = prepared.indistinct_error(flat(20), often)
    torch.testing.assert_close(found, torch.tensor([(3 * 2.5**2 + 7.5**2) / 4 / 255**2], dtype=torch.float64))
    # The one image of class 1 waits for another.
    with pytest.raises(FedveilError, match=r"^shares: image 1 of 2 is in no group"):
        prepared.indistinct_error(PRIVATE.take(torch.tensor([0, 4])), PRIVATE)


@given(
    greys_of_members=st.lists(st.integers(0, 255), min_size=4, max_size=9).filter(lambda g: len(set(g)) > 1),
    answer=st.floats(0, 1),
)
def test_no_answer_is_nearer_to_the_images_of_a_group_on_average(greys_of_members: list[int], answer: float) -> None:
    members = flat(*greys_of_members)
    prepared = prepare(members)
    seen = prepared.images(members)
    for image in seen.pixels.flatten(1).unique(dim=0):
        alike = members.take((seen.pixels.flatten(1) == image).all(1).nonzero()[:, 0])
        # Groups that happen to share a mean only get harder to tell apart.
        error = (alike.floats().double() - answer).square().mean()
        assert float(error) >= float(prepared.indistinct_error(alike, members).mean()) - 1e-12


def test_an_image_that_is_not_known_is_refused() -> None:
    with pytest.raises(
        FedveilError, match=r"^shares: image 1 of 2 is not among the 5 that the client prepared with.*`joined_by`"
    ):
        prepare(PRIVATE).images(flat(10, 11))
    # Nor is a known one under another label, which is in no group of that class.
    with pytest.raises(FedveilError, match="image 0 of 1"):
        prepare(PRIVATE).images(flat(10, label=1))


def test_a_client_without_a_group_is_refused() -> None:
    with pytest.raises(FedveilError, match=r"^shares: client 3 has no class with k = 2 different images.* allowed: a"):
        prepare(both(flat(10, 10), flat(20, label=1)))


def test_repeats_of_an_image_are_one_image() -> None:
    """Else a group of k repeats would show the image, and two groups what they have in common."""
    private = flat(10, 10, 10, 20, 100, 120, 10)
    prepared = prepare(private)
    assert greys(prepared.private) == [10, 20, 100, 120]
    assert greys(prepared.images(private)) == [15, 15, 15, 15, 110, 110, 15]


def test_late_images_wait_until_a_group_is_full_and_old_groups_stay() -> None:
    prepared = prepare(PRIVATE)
    waiting = prepared.joined_by(flat(200, label=0), stream())
    assert greys(waiting.images(flat(200))) == []
    assert greys(waiting.images(PRIVATE)) == greys(prepared.images(PRIVATE))
    assert waiting.diagnostics() == {"k": 2.0, "left_out": pytest.approx(2 / 6)}
    full = waiting.joined_by(both(flat(220), flat(70, label=1)), stream())
    assert torch.equal(full.shared.images[:2], prepared.shared.images)
    assert torch.equal(full.shared.grouping.of[:4], prepared.shared.grouping.of)
    everyone = both(both(PRIVATE, flat(200, 220)), flat(70, label=1))
    assert greys(full.images(everyone)) == [15, 15, 110, 110, 60, 210, 210, 60]
    assert full.images(everyone).labels.tolist() == [0, 0, 0, 0, 1, 0, 0, 1]
    assert full.diagnostics() == {"k": 2.0, "left_out": 0.0}
    # The first one is as it was.
    with pytest.raises(FedveilError, match="image 0 of 1"):
        prepared.images(flat(200))


def test_a_late_image_that_is_known_joins_no_second_group() -> None:
    prepared = prepare(PRIVATE)
    again = prepared.joined_by(both(flat(10, 20), flat(50, 50, label=1)), stream())
    assert len(again.shared.grouping) == 2
    assert greys(again.images(PRIVATE)) == [15, 15, 110, 110]
    assert greys(again.waiting) == [50]
    assert len(again.joined_by(flat(200, 200, 200), stream()).shared.grouping) == 2


def test_an_attacker_rehearses_on_its_own_images_what_a_client_does_with_its() -> None:
    surrogate = prepare(PRIVATE).surrogate()
    assert surrogate.data is None
    assert surrogate.complete
    assert surrogate.similar is bright
    assert surrogate.rehearse is not None
    own = both(flat(30, label=1), flat(5, 7, 5, 200, 202))
    found = surrogate.rehearse(own, stream())
    assert found.kept.tolist() == [1, 2, 4, 5]
    assert greys(found.trained) == [6, 6, 201, 201]
    assert found.trained.labels.tolist() == [0, 0, 0, 0]


def test_it_can_be_sent_before_and_after_its_first_use() -> None:
    prepared = prepare(PRIVATE)
    for _ in range(2):
        sent = pickle.loads(pickle.dumps(prepared))  # noqa: S301
        assert torch.equal(sent.images(PRIVATE).pixels, prepared.images(PRIVATE).pixels)


def test_its_repr_shows_no_image() -> None:
    assert repr(prepare(PRIVATE)) == "PreparedShared(name='shares')"


def test_a_grouping_with_no_group_left_says_so() -> None:
    nobody = Shared(Grouping(torch.full((5,), -1), K), torch.zeros(0, 1, 4, 4, dtype=torch.uint8))
    with pytest.raises(FedveilError, match="fewer clients"):
        prepare_shared("shares", PRIVATE, nobody, share, similar=bright, client=0)
