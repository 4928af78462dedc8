from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fedveil.attacks.inverse import shared_law as module
from fedveil.attacks.inverse.shared_law import SharedLaw, leading
from fedveil.defense.base import Rehearsal
from fedveil.defense.inverse.lessons import rehearsed_lessons
from fedveil.fl.data.images import Images
from fedveil.fl.seeding import torch_stream

CPU = torch.device("cpu")


def textures(count: int, seed: int) -> Images:
    """Eight smooth patterns, each in an amount of its own, on grey."""
    stream, side = torch_stream(seed, "textures"), torch.arange(12) / 12
    waves = torch.stack([(3.14159 * n * side).cos() for n in (1, 2, 3)])
    patterns = torch.stack([one[:, None] * other[None] for one in waves for other in waves])
    amounts = 0.06 * torch.randn((count, len(patterns)), generator=stream)
    x = (0.5 + torch.einsum("np,phw->nhw", amounts, patterns)).clamp(0, 1)[:, None]
    return Images((x * 255).round().to(torch.uint8), torch.zeros(count, dtype=torch.int64))


@dataclass(frozen=True)
class Mixed:
    """What is trained on is the mean of k images, and a negative where asked."""

    k: int
    negative: bool = False

    def __call__(self, images: Images, stream: torch.Generator) -> Rehearsal:
        kept = torch.randperm(len(images), generator=stream)[: len(images) // self.k * self.k].sort().values
        of = torch.randperm(len(kept), generator=stream) % (len(kept) // self.k)
        x = images.floats()[kept]
        means = torch.zeros(len(kept) // self.k, *x.shape[1:]).index_add_(0, of, x) / self.k
        shown = 1 - means if self.negative else means
        return Rehearsal(kept, Images((shown[of] * 255).round().to(torch.uint8), images.labels[kept]))


def law(rehearse: Mixed) -> SharedLaw:
    auxiliary = textures(240, seed=1)
    lessons = rehearsed_lessons(auxiliary, rehearse, artefacts=0.0, device=CPU, stream=torch_stream(1, "law"))
    return SharedLaw.of(lessons)


def found(rehearse: Mixed) -> tuple[float, float]:
    """How often a member stands first among a hundred by the law, and by the distance to what was trained on."""
    private = textures(100, seed=2)
    seen = rehearse(private, torch_stream(3, "client"))
    x = private.floats()

    def first(scores: Tensor) -> float:
        return float((scores.argmax(1) == seen.kept).float().mean())

    shown = seen.trained.floats()
    return first(law(rehearse)(shown, x)), first(-torch.cdist(shown.flatten(1), x.flatten(1)))


def test_it_knows_an_image_alone_forwards_and_backwards() -> None:
    for negative in (False, True):
        by_law, _ = found(Mixed(1, negative))
        assert by_law > 0.95


def test_it_recognises_members_of_a_group_better_than_chance_and_what_a_distance_cannot() -> None:
    by_law, by_distance = found(Mixed(2, negative=True))
    assert by_law > 0.1
    assert by_law > 3 * by_distance
    # One of two cannot be told from the other: a half at most, but for luck.
    assert by_law < 0.6


def test_scores_are_a_likelihood_of_what_remains() -> None:
    """Larger for nearer ones; of each candidate for each image, whatever else is asked."""
    own = law(Mixed(1))
    x = textures(5, seed=4).floats()
    scores = own(x[:3], x)
    assert scores.shape == (3, 5)
    assert bool((scores <= 0).all())
    torch.testing.assert_close(own(x[1:2], x[2:4]), scores[1:2, 2:4], rtol=1e-3, atol=1e-2)
    assert scores.argmax(1).tolist() == [0, 1, 2]


def test_few_images_still_give_a_law() -> None:
    auxiliary = textures(9, seed=1)
    lessons = rehearsed_lessons(auxiliary, Mixed(2), artefacts=0.0, device=CPU, stream=torch_stream(1, "law"))
    scores = SharedLaw.of(lessons)(auxiliary.floats()[:2], auxiliary.floats())
    assert bool(scores.isfinite().all())


@pytest.mark.parametrize(("points", "side"), [(12, 6), (60, 6), (40, 4)], ids=["few", "as many", "many"])
def test_leading_components_are_those_of_the_plain_decomposition(points: int, side: int) -> None:
    stream = torch_stream(5, "leading")
    scales = 0.8 ** torch.arange(side * side)
    distinct = torch.randn((points, side * side), generator=stream) * scales + 3
    at = torch.cat([torch.arange(points), torch.randint(points, (points,), generator=stream)])
    x = distinct[at]
    found = leading(x, [bytes([number]) for number in at.tolist()], 8)
    plain = torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[:8].T
    torch.testing.assert_close(found.T @ found, torch.eye(8), atol=1e-5, rtol=0)
    # Each but for its sign.
    torch.testing.assert_close((found * plain).sum(0).abs(), torch.ones(8), atol=1e-4, rtol=0)


def test_no_component_is_made_of_nothing() -> None:
    """Three points lie in a plane."""
    x = torch.tensor([[1.0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [1, 0, 0, 0, 0]])
    found = leading(x, [b"a", b"b", b"c", b"a"], 5)
    assert found.shape == (5, 2)
    assert float(found[3:].abs().max()) < 1e-6
    assert leading(torch.ones(4, 5), [b"a"] * 4, 3).shape == (5, 0)


def plainly(x: Tensor, names: object, count: int) -> Tensor:
    centred = x - x.mean(0)
    return torch.linalg.svd(centred, full_matrices=False).Vh[: min(count, int(torch.linalg.matrix_rank(centred)))].T


def test_the_law_is_that_of_the_plain_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 144 columns more than there are images, and more images than columns."""
    for count in (60, 400):
        auxiliary = textures(count, seed=1)
        lessons = rehearsed_lessons(auxiliary, Mixed(2), artefacts=0.0, device=CPU, stream=torch_stream(1, "law"))
        quick = SharedLaw.of(lessons)
        with monkeypatch.context() as patch:
            patch.setattr(module, "leading", plainly)
            plain = SharedLaw.of(lessons)
        x = textures(6, seed=4).floats()
        torch.testing.assert_close(quick(x, x), plain(x, x), rtol=2e-2, atol=2e-2)
