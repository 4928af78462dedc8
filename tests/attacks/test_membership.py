from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fedveil.attacks.inverse.shared_law import SharedLaw
from fedveil.attacks.membership.attack import membership
from fedveil.attacks.membership.score import MembershipScore, scored
from fedveil.defense import PixelNoise
from fedveil.defense.base import Rehearsal, Surrogate
from fedveil.defense.inverse.lessons import rehearsed_lessons
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.seeding import torch_stream

Blobs = Callable[..., Images]
SIDE = 12


def textures(count: int, seed: int, classes: int = 2) -> Images:
    """Nine smooth patterns, each in an amount of its own, on grey: few enough that means of many are like others."""
    stream, side = torch_stream(seed, "textures"), torch.arange(SIDE) / SIDE
    waves = torch.stack([(3.14159 * n * side).cos() for n in (1, 2, 3)])
    patterns = torch.stack([one[:, None] * other[None] for one in waves for other in waves])
    amounts = 0.06 * torch.randn((count, len(patterns)), generator=stream)
    x = (0.5 + torch.einsum("np,phw->nhw", amounts, patterns)).clamp(0, 1)[:, None]
    return Images((x * 255).round().to(torch.uint8), torch.arange(count) % classes)


def features(images: Images) -> Tensor:
    return images.floats().unfold(2, 3, 3).unfold(3, 3, 3).mean((-1, -2)).flatten(1)


def means_of(k: int) -> Callable[[Images, torch.Generator], Rehearsal]:
    """Each k images of a class, as they come, share their mean."""

    def rehearse(images: Images, stream: torch.Generator) -> Rehearsal:
        kept, became = [], []
        for label in images.labels.unique().tolist():
            own = (images.labels == label).nonzero()[:, 0]
            for group in own[: len(own) // k * k].split(k):
                kept.append(group)
                became.append(images.floats()[group].mean(0, keepdim=True).expand(k, -1, -1, -1))
        at, order = torch.cat(kept).sort()
        return Rehearsal(at, Images((torch.cat(became)[order] * 255).round().to(torch.uint8), images.labels[at]))

    return rehearse


def tried(surrogate: Surrogate, *, law: bool = False, seed: int = 0) -> MembershipScore:
    private, others, auxiliary = textures(60, 1), textures(90, 2), textures(240, 3)
    trained, members = private, private
    if surrogate.rehearse is not None:
        found = surrogate.rehearse(private, torch_stream(4, "client"))
        trained, members = found.trained, private.take(found.kept)
    elif surrogate.data is not None:
        x = surrogate.data(private.floats(), private.labels, torch_stream(4, "client"))
        trained = Images((x * 255).round().to(torch.uint8), private.labels)
    own = None
    if law:
        assert surrogate.rehearse is not None
        stream = torch_stream(5, "law")
        own = SharedLaw.of(
            rehearsed_lessons(auxiliary, surrogate.rehearse, artefacts=0, device=torch.device("cpu"), stream=stream)
        )
    return membership(trained, members, others, surrogate, auxiliary, features=features, law=own, seed=seed)


def test_an_undefended_image_is_always_recognised() -> None:
    found = tried(Surrogate())
    assert (found.auc, found.auc_low, found.auc_high) == (1, 1, 1)
    assert (found.tpr, found.tpr_low, found.tpr_high) == (1, 1, 1)
    assert found.members == found.outsiders == 60


def test_grey_images_tell_nothing() -> None:
    found = tried(Surrogate(data=lambda x, y, stream: torch.full_like(x, 0.5)))
    assert found.auc_low <= 0.5 <= found.auc_high
    assert found.auc == pytest.approx(0.5, abs=0.15)
    assert found.tpr <= 0.15


def test_sharing_tells_the_less_the_more_images_share() -> None:
    two, three, thirty = (tried(Surrogate(rehearse=means_of(k))).auc for k in (2, 3, 30))
    assert 0.55 < three < 0.95
    assert two > three > thirty


def test_the_law_of_sharing_is_one_more_way() -> None:
    # What is shown is a negative, so that distances of pixels mislead.
    def rehearse(images: Images, stream: torch.Generator) -> Rehearsal:
        found = means_of(3)(images, stream)
        return Rehearsal(found.kept, Images(255 - found.trained.pixels, found.trained.labels))

    surrogate = Surrogate(rehearse=rehearse)
    assert tried(surrogate, law=True).auc > 0.55


def test_noise_hides_no_image_that_is_known() -> None:
    found = tried(Surrogate(data=PixelNoise(strength=0.1).data))
    assert found.auc > 0.9
    assert found == tried(Surrogate(data=PixelNoise(strength=0.1).data))


def test_classes_are_balanced_and_those_without_outsiders_left_out() -> None:
    private, auxiliary = textures(30, 1, classes=3), textures(90, 3, classes=3)
    others = textures(40, 2, classes=4)
    others = others.take((others.labels != 2).nonzero()[:, 0][:12])
    found = membership(private, private, others, Surrogate(), auxiliary, features=features, seed=0)
    # Of classes 0 and 1 four outsiders each, as many members; of class 2 there are none, of 3 no members.
    assert (found.members, found.outsiders) == (8, 8)
    only = others.take((others.labels == 3).nonzero()[:, 0])
    with pytest.raises(FedveilError, match="membership: members and outsiders have no class in common; allowed"):
        membership(private, private, only, Surrogate(), auxiliary, features=features, seed=0)


def test_an_attacker_whose_images_are_all_left_out_cannot_try_it() -> None:
    nobody = Surrogate(rehearse=lambda images, stream: Rehearsal(torch.zeros(0, dtype=torch.int64), images.take([])))  # type: ignore[arg-type]
    private = textures(10, 1)
    with pytest.raises(
        FedveilError, match=r"membership: of \d+ images .* keeps none, .* larger data.auxiliary_fraction"
    ):
        membership(private, private, textures(10, 2), nobody, textures(20, 3), features=features, seed=0)


def test_scores_by_hand() -> None:
    found = scored(np.arange(100.0) + 0.5, np.arange(200.0) / 2, seed=1)
    # Member i + 0.5 ties with outsider 2 i + 1 and lies above 2 i + 1 others: (2 i + 1.5) / 200, on average.
    assert found.auc == pytest.approx(np.mean([(2 * at + 1.5) / 200 for at in range(100)]))
    # Two of 200 outsiders may score higher than the threshold, 98.5: one member does.
    assert found.tpr == pytest.approx(0.01)
    assert found.auc_low < found.auc < found.auc_high
    assert (found.members, found.outsiders) == (100, 200)
    same = scored(np.zeros(5), np.zeros(7), seed=1)
    assert (same.auc, same.auc_low, same.auc_high, same.tpr) == (0.5, 0.5, 0.5, 0)
