from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedveil.defense import DefenseContext, LatentPerturbation
from fedveil.defense.inverse.learnt import InverseTraining
from fedveil.defense.inverse.network import UNTOLD
from fedveil.defense.latent import game
from fedveil.defense.latent.game import Adversary, Stake, guess_error, public_set
from fedveil.defense.latent.grouping import Grouping
from fedveil.defense.latent.learner import Networks
from fedveil.defense.latent.shared import PreparedShared
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError

QUICK = LatentPerturbation(k=5, steps=10, random_networks=1, trained_networks=1, privacy_weight=3.0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(game, "TRAINING", InverseTraining(steps=40, batch_size=16, width=8))
    monkeypatch.setattr(game, "ROUNDS", 2)
    monkeypatch.setattr(game, "SETS", 2)
    monkeypatch.setattr(game, "MOST", 40)


def test_a_stake_is_the_adversarys_mean_error_on_each_original_of_a_group(
    private: Images, adversary: Adversary
) -> None:
    images = private.take(torch.arange(7))
    grouping = Grouping(torch.tensor([0, 1, 0, 1, 0, -1, 0]), 2)
    shown = torch.rand((2, *images.shape), generator=torch.Generator().manual_seed(0))
    told = torch.tensor([0, UNTOLD])  # it has not met the second group's class
    rebuilt = adversary.network(shown[None], told)
    x = images.floats()
    expected = []
    for group in (0, 1):
        each = [float((rebuilt[group] - one).square().mean()) for one in x[grouping.of == group]]
        expected.append(sum(each) / len(each) / 0.2)
    stake = Stake.of(images, grouping, adversary)
    found = stake(shown, torch.tensor([0, 1]))
    torch.testing.assert_close(found, torch.tensor(expected).clamp(max=1), rtol=1e-4, atol=1e-5)
    assert float(found.max()) < 1
    capped = Stake.of(images, grouping, replace(adversary, baseline=1e-6))
    assert capped(shown, torch.tensor([1, 0])).tolist() == [1, 1]


def test_a_set_holds_a_part_of_each_class_or_views_until_there_are_k(public: Images) -> None:
    few = public.take(torch.cat([torch.arange(0, 100, 2), torch.tensor([1, 3, 5])]))
    rows, images = public_set(few, 5, (), torch.Generator().manual_seed(0))
    labels = images.labels
    assert labels.bincount().tolist() == [20, 5], "MOST is 40 for two classes"
    assert torch.equal(labels, few.labels[rows])
    assert len(rows[labels == 0].unique()) == 20
    # Of three images of class 1 two are in it, and three views of them; the third one is left to start from.
    assert len(rows[labels == 1].unique()) == 2
    seen: set[int] = set()
    for row, pixels in zip(rows.tolist(), images.pixels, strict=True):
        untouched = torch.equal(pixels, few.pixels[row])
        assert untouched == (row not in seen)
        seen.add(row)
    again = public_set(few, 5, ("flip",), torch.Generator().manual_seed(1))[0]
    assert not torch.equal(rows, again)


def test_what_a_guess_is_worth_counts_no_image_in_its_own_mean(public: Images) -> None:
    some = public.take(torch.tensor([0, 2, 4, 1]))
    x = some.floats()
    guesses = [(x[1] + x[2]) / 2, (x[0] + x[2]) / 2, (x[0] + x[1]) / 2, x[:3].mean(0)]
    expected = sum(float((one - guess).square().mean()) for one, guess in zip(x, guesses, strict=True)) / 4
    assert guess_error(some) == pytest.approx(expected, rel=1e-4)
    assert guess_error(some.take(torch.tensor([0]))) == 1e-6


def shared(settings: LatentPerturbation, images: Images, context: DefenseContext, networks: Networks) -> PreparedShared:
    found = settings.prepare(images, context, networks, client=0)
    assert isinstance(found, PreparedShared)
    return found


def test_the_game_is_played_on_public_images_alone_and_kept(
    context: DefenseContext, public: Images, private: Images, tmp_path: Path
) -> None:
    here = replace(context, cache=tmp_path, public=public.take(torch.arange(40)))
    networks = QUICK.pretrain(here)
    assert networks is not None
    adversary = networks.adversary
    assert adversary is not None
    written = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = QUICK.pretrain(here)
    assert again is not None
    assert again.adversary is not None
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == written
    assert again.adversary.diagnostics() == adversary.diagnostics()
    for one, other in zip(adversary.network.parameters(), again.adversary.network.parameters(), strict=True):
        assert torch.equal(one, other)
    # It tells what it was worth, beside the size of the groups.
    prepared = shared(QUICK, private, here, networks)
    numbers = prepared.diagnostics()
    assert numbers["adversary_gap"] == adversary.error / adversary.fresh_error
    assert 0.2 < numbers["adversary_gap"] < 5
    assert numbers["adversary_error"] == adversary.fresh_error / adversary.baseline
    assert 0 < numbers["adversary_error"] < 2
    # Of another client's images, and of other groups, nothing shows.
    grouping = prepared.shared.grouping
    own = (grouping.of == 0).nonzero()[:, 0]
    alone = shared(QUICK, prepared.private.take(own), here, networks)
    assert torch.equal(alone.shared.images, prepared.shared.images[:1])


def test_against_an_adversary_images_are_learnt_that_it_rebuilds_worse(
    context: DefenseContext, private: Images
) -> None:
    networks = QUICK.pretrain(context)
    assert networks is not None
    assert networks.adversary is not None
    adversary = replace(networks.adversary, baseline=1.0)  # nothing is capped

    def error(settings: LatentPerturbation, against: Adversary | None) -> float:
        found = shared(settings, private, context, replace(networks, adversary=against))
        grouping = found.shared.grouping
        stake = Stake.of(found.private, grouping, adversary)
        shown: Tensor = found.shared.images.float() / 255
        return float(stake(shown, torch.arange(len(grouping))).mean())

    plain = error(replace(QUICK, privacy_weight=0.0), None)
    strong = error(replace(QUICK, privacy_weight=100.0), adversary)
    assert strong > 1.3 * plain


def test_without_a_weight_there_is_no_game_and_impossible_weights_are_refused(context: DefenseContext) -> None:
    plain = replace(QUICK, privacy_weight=0.0).pretrain(context)
    assert plain is not None
    assert plain.adversary is None
    with pytest.raises(FedveilError, match="latent: privacy_weight is -1; it has to be at least 0"):
        LatentPerturbation(privacy_weight=-1)
    with pytest.raises(FedveilError, match="latent: utility_weight is 0; it has to be above 0"):
        LatentPerturbation(utility_weight=0)
