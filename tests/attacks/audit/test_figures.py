import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from fedveil.attacks.audit.figures import draw_reconstructions, draw_rows, mse_text, save
from fedveil.fl.errors import FedveilError


@pytest.mark.parametrize("channels", [1, 3])
def test_a_row_per_source_with_its_error(channels: int, tmp_path: Path) -> None:
    originals = torch.full((4, channels, 16, 16), 0.5)
    trained = originals + 0.1
    attacks = {"inverting_gradients": originals.clone(), "adaptive": originals - 0.2}
    captions = ["normal", "pneumonia", "normal", "normal"]
    figure = draw_reconstructions(originals, trained, attacks, captions)
    grid = [figure.axes[i : i + 4] for i in range(0, 16, 4)]
    assert [row[0].get_ylabel().replace("\n", " ") for row in grid] == [
        "original",
        "what the client trained on",
        "attack: inverting gradients",
        "attack: adaptive",
    ]
    assert [row[1].get_xlabel() for row in grid] == ["", "MSE 0.0100", "MSE 0", "MSE 0.0400"]
    assert [axes.get_title() for axes in grid[0]] == captions
    path = tmp_path / "made" / "reconstructions.png"
    save(figure, path)
    with Image.open(path) as image:
        assert image.width > 4 * 150
        assert image.height > 4 * 150


def test_without_originals_there_is_no_error_to_show() -> None:
    grey = torch.full((3, 1, 12, 12), 0.5)
    figure = draw_reconstructions(None, None, {"one": grey, "two": grey})
    assert [axes.get_ylabel() for axes in figure.axes] == ["attack:\none", "", "", "attack:\ntwo", "", ""]
    assert {axes.get_xlabel() for axes in figure.axes} == {""}


def test_grey_levels_are_shown_as_they_are_and_titles_stay_inside_the_picture() -> None:
    originals = torch.full((2, 1, 12, 12), 0.5)
    figure = draw_reconstructions(originals, originals, {"an_attack_with_a_long_name": originals})
    # stretching each image to its own range would make constant greys alike
    assert {axes.images[0].get_clim() for axes in figure.axes} == {(0.0, 1.0)}
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    figure.draw(renderer)
    assert all(axes.yaxis.label.get_window_extent(renderer).x0 >= 0 for axes in figure.axes)
    assert figure.axes[2].get_xlabel() == "MSE 0"  # also where the very originals were trained on


def test_images_out_of_range_and_of_other_shapes_are_refused() -> None:
    originals = torch.zeros(1, 1, 12, 12)
    with pytest.raises(FedveilError, match=r"in \[0, 1\]"):
        draw_rows(originals, {"too bright": originals + 2})
    with pytest.raises(FedveilError, match=r"alone: expected values in \[0, 1\]"):
        draw_rows(None, {"alone": originals + 2})
    with pytest.raises(FedveilError, match="differ in shape"):
        draw_rows(originals, {"wide": torch.zeros(1, 1, 12, 14)})


@pytest.mark.parametrize(("error", "text"), [(0.01234, "0.0123"), (4e-5, "4e-05"), (0.0, "0")])
def test_a_small_error_does_not_read_as_an_exact_copy(error: float, text: str) -> None:
    assert mse_text(error) == text


def test_matplotlib_and_scipy_are_not_loaded_before_they_are_needed() -> None:
    # workers import the floor and never draw
    code = "import sys, fedveil.attacks.audit.report; print([m for m in ('matplotlib', 'scipy.stats') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_captions_of_neighbours_do_not_meet() -> None:
    names = ["platelet", "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)", "eosinophil", ""]
    figure = draw_rows(torch.rand(4, 1, 8, 8), {"attack": torch.rand(4, 1, 8, 8)}, names)
    figure.draw_without_rendering()
    titles = [axes.title for axes in figure.axes[:4]]
    boxes = [title.get_window_extent() for title in titles if title.get_text()]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    assert all(box.y1 <= figure.bbox.y1 for box in boxes)
    assert titles[1].get_text().startswith("immature")
    assert titles[1].get_text().endswith("…")
