from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from fedveil.fl.errors import FedveilError
from fedveil.fl.seeding import torch_stream
from fedveil.orchestrator.report import TrialRow
from fedveil.orchestrator.report.comparison import MARGIN, comparison_figure, representatives


def trial(
    name: str, defense: str, accuracy: float, error: float, status: str = "FINISHED", **others: float
) -> TrialRow:
    metrics = {"utility/accuracy": accuracy, "privacy/mse": error, "privacy/complete": 1.0, **others}
    return TrialRow(name, status, {"defense.name": defense}, metrics)


def test_each_defence_is_represented_at_its_most_private_that_keeps_accuracy() -> None:
    rows = [
        trial("a", "none", 0.9, 0.001),
        trial("b", "latent", 0.9 - MARGIN / 2, 0.02),
        trial("c", "latent", 0.9 - MARGIN / 4, 0.01),
        trial("d", "latent", 0.9 - 2 * MARGIN, 0.09),
        trial("e", "pixel_noise", 0.4, 0.08),
        trial("f", "pixel_noise", 0.6, 0.03),
        trial("g", "latent", 0.99, 0.5, status="FAILED"),
        trial("h", "latent", 0.99, 0.5, **{"defense/collapsed": 1.0}),
    ]
    assert [row.name for row in representatives(rows)] == ["a", "b", "f"]
    assert representatives(rows[-2:]) == []


def test_the_seeds_of_a_setting_count_together() -> None:
    rows = [
        TrialRow(f"{name}-seed{seed}", "FINISHED", {"seed": seed}, trial("", "", accuracy, error + seed / 1000).metrics)
        for name, accuracy, error in (("a", 0.9, 0.001), ("b", 0.9, 0.01))
        for seed in (0, 1)
    ]
    (chosen,) = representatives(rows)
    assert [row.name for row in chosen.members] == ["b-seed0", "b-seed1"]


def test_the_figure_has_a_row_for_the_originals_and_two_per_defence(tmp_path: Path) -> None:
    def images() -> torch.Tensor:
        return torch.rand((3, 1, 8, 8), generator=torch_stream(0, "figure"))

    heights = []
    for count in (1, 2):
        panels = {f"defence {n}": (images(), "inverting_gradients", images()) for n in range(count)}
        comparison_figure(tmp_path / f"{count}.png", images(), panels)
        heights.append(Image.open(tmp_path / f"{count}.png").size[1])
    # 3 and 5 rows of images.
    assert heights[1] / heights[0] == pytest.approx(5 / 3, rel=0.15)


def test_images_of_another_shape_are_refused(tmp_path: Path) -> None:
    panels = {"none": (torch.zeros(2, 1, 8, 8), "baseline", torch.zeros(3, 1, 8, 8))}
    with pytest.raises(FedveilError):
        comparison_figure(tmp_path / "figure.png", torch.zeros(2, 1, 8, 8), panels)
