"""The quality benchmark on a cell of two victims, and its scores against the library's."""

from __future__ import annotations

import json
from itertools import product

import pytest
import torch

import fedveil as fv
from benchmarks.peers.cells import DATA, LENET, NETWORKS, WEIGHTS, Cell, Network, work
from benchmarks.peers.make_updates import build, private_images, write
from benchmarks.peers.scores import psnrs
from benchmarks.quality import RESULTS, guess, merged, reconstruct, row, score_ours, scores
from fedveil.attacks.scoring.metrics import mse, psnr


@pytest.mark.parametrize(("batch", "steps"), [(1, 1), (2, 1), (1, 5)])
def test_a_cell_is_attacked_through_its_file_and_scored(batch, steps, tmp_path):
    cell = Cell("mni152", LENET, "initial", batch, steps)
    private, classes = private_images("mni152")
    write(cell, build(LENET, "initial", private, classes), private.take(torch.arange(2)), tmp_path)
    content = torch.load(tmp_path / f"{cell}.pt")
    found = reconstruct(cell, content, fv.DeepLeakage(steps=60))
    values = scores(cell, content["images"], found)
    guess = scores(cell, content["images"], torch.full_like(found, 0.5))
    assert len(values) == 2
    assert all(value > chance for value, chance in zip(values, guess, strict=True))


def test_only_finished_cells_are_scored(tmp_path):
    (tmp_path / "cells").mkdir()
    (tmp_path / "fedveil").mkdir()
    cell = Cell("mni152", LENET, "initial", 1, 1)
    images = torch.rand(3, 1, 8, 8)
    torch.save({"images": images}, tmp_path / "cells" / f"{cell}.pt")
    done = {"images": images + 0.1, "attack": "Mine()", "cpu_seconds": 1.0}
    torch.save(done, tmp_path / "fedveil" / f"{cell}_mine_200.pt")
    (only,) = score_ours(tmp_path, "mine")
    assert (only["attack"], only["evaluations"], only["victims"], only["network"]) == ("Mine()", 200, 3, "lenet")
    assert 20 <= only["psnr_mean"] < 22  # an error of 0.1 is 20 dB, what exceeds 1 is clipped


def test_images_of_one_update_are_matched_one_to_one():
    images = torch.rand(3, 1, 8, 8)
    found = images[[2, 0, 1]] + torch.tensor([0.01, 0.02, 0.03]).view(3, 1, 1, 1)
    expected = psnr(mse(images[[2, 0, 1]], found.clamp(0, 1)))[[1, 2, 0]]
    assert psnrs(images.numpy(), found.numpy()) == pytest.approx(expected.tolist(), rel=1e-5)


def test_a_perfect_copy_counts_100_decibels_and_no_number_counts_as_grey():
    images = torch.rand(1, 1, 8, 8)
    assert psnrs(images.numpy(), images.numpy()) == [100.0]
    assert psnrs(images.numpy(), (images * torch.nan).numpy()) == psnrs(
        images.numpy(), torch.full_like(images, 0.5).numpy()
    )


def test_a_row_counts_what_is_above_40_decibels():
    found = row(Cell("mni152", LENET, "initial", 1, 1), 200, "mine", [30.0, 41.0, 46.0], 2.0)
    assert (found["psnr_mean"], found["psnr_median"], found["psnr_least"], found["above_40_db"]) == (
        39.0,
        41.0,
        30.0,
        2,
    )


def test_every_setting_is_attacked_once_with_each_budget():
    every = [
        (Cell(data, network, weights, batch, steps), evaluations)
        for data, network, weights, batch, steps, evaluations in product(
            DATA, NETWORKS, WEIGHTS, (1, 4, 8), (1, 5), (200, 1000)
        )
    ]
    assert len(work()) == len(every)
    assert set(work()) == set(every)


def test_networks_have_names():
    assert [str(network) for network in NETWORKS] == ["lenet", "convnet", "resnet20-batch", "resnet20-group"]
    assert str(Network("convnet", width=8)) == "convnet-w8"


def test_records_whose_reconstructions_are_gone_are_kept_and_newer_ones_replace_their_own():
    cell = Cell("mni152", LENET, "initial", 1, 1)
    old = [row(cell, 200, "mine", [30.0], 1.0), row(cell, 1000, "mine", [31.0], 1.0)]
    new = [row(cell, 1000, "mine", [35.0], 1.0), row(cell, 1000, "other", [20.0], 1.0)]
    assert merged(old, new) == [old[0], *new]
    # With other settings it is the same attack; one that is still at it replaces none.
    changed, at_it = row(cell, 200, "mine(tv=2)", [29.0], 1.0), row(cell, 1000, "mine", [35.0], 1.0) | {"victims": 0}
    assert merged([*old, new[1]], [changed, at_it]) == [changed, old[1], new[1]]


def test_the_guess_on_record_is_that_of_the_victims_class_means():
    record = json.loads((RESULTS / "fedveil.json").read_text())
    assert guess("mni152") == pytest.approx(record["guess"]["mni152"], abs=5e-4)
