import subprocess
import sys
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from fedveil.attacks.audit.figures import draw_reconstructions, draw_rows, mse_text, save
from fedveil.fl.errors import FedveilError


def lines(figure: Figure) -> list[list[str]]:
    """What is written, line by line from above, each from the left."""
    (axes,) = figure.axes
    written = defaultdict(list)
    for text in sorted(axes.texts, key=lambda text: text.get_position()[0]):
        written[round(text.get_position()[1], 6)].append(text.get_text())
    return [written[height] for height in sorted(written, reverse=True)]


def pictures(figure: Figure) -> list[list[tuple[float, float, float, float]]]:
    """Left, right, bottom and top of the images, row by row from above, each from the left."""
    (axes,) = figure.axes
    rows = defaultdict(list)
    for extent in sorted(image.get_extent() for image in axes.images):
        rows[round(extent[2], 6)].append(extent)
    return [rows[bottom] for bottom in sorted(rows, reverse=True)]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_row_per_source_with_its_error(channels: int, tmp_path: Path) -> None:
    originals = torch.full((4, channels, 16, 16), 0.5)
    trained = originals + 0.1
    attacks = {"inverting_gradients": originals.clone(), "adaptive": originals - 0.2}
    captions = ["normal", "pneumonia", "normal", "normal"]
    figure = draw_reconstructions(originals, trained, attacks, captions)
    assert [[one.replace("\n", " ") for one in line] for line in lines(figure)] == [
        captions,
        ["original"],
        ["what the client trained on"],
        ["MSE 0.0100"] * 4,
        ["attack: inverting gradients"],
        ["MSE 0"] * 4,
        ["attack: adaptive"],
        ["MSE 0.0400"] * 4,
    ]
    assert [len(line) for line in pictures(figure)] == [4, 4, 4, 4]
    path = tmp_path / "made" / "reconstructions.png"
    save(figure, path)
    with Image.open(path) as image:
        assert image.width > 4 * 150
        assert image.height > 4 * 150


def test_without_originals_there_is_no_error_to_show() -> None:
    grey = torch.full((3, 1, 12, 12), 0.5)
    figure = draw_reconstructions(None, None, {"one": grey, "two": grey})
    assert lines(figure) == [["attack:\none"], ["attack:\ntwo"]]
    assert [len(line) for line in pictures(figure)] == [3, 3]


def test_grey_levels_are_shown_as_they_are_and_titles_stay_inside_the_picture() -> None:
    originals = torch.full((2, 1, 12, 12), 0.5)
    figure = draw_reconstructions(originals, originals, {"an_attack_with_a_long_name": originals})
    # stretching each image to its own range would make constant greys alike
    (axes,) = figure.axes
    assert {image.get_clim() for image in axes.images} == {(0.0, 1.0)}
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    figure.draw(renderer)
    assert all(text.get_window_extent(renderer).x0 >= 0 for text in axes.texts)
    assert lines(figure)[2] == ["MSE 0", "MSE 0"]  # also where the very originals were trained on


def test_the_errors_of_a_row_stand_below_its_images_and_above_the_next_row() -> None:
    grey = torch.full((2, 1, 12, 12), 0.5)
    figure = draw_rows(grey, {"first": grey + 0.1, "second": grey + 0.2}, ["a", "b"])
    (axes,) = figure.axes
    _, first, second = pictures(figure)
    for text in axes.texts:
        x, y = text.get_position()
        if text.get_text() == "MSE 0.0100":
            assert second[0][3] < y < first[0][2]
            assert any(left < x < right for left, right, _, _ in first)


def test_images_keep_their_shape() -> None:
    (axes,) = draw_rows(None, {"wide": torch.rand(2, 3, 8, 16)}).axes
    for left, right, bottom, top in (image.get_extent() for image in axes.images):
        assert right - left == pytest.approx(2 * (top - bottom))


def test_images_out_of_range_and_of_other_shapes_are_refused() -> None:
    originals = torch.zeros(1, 1, 12, 12)
    with pytest.raises(FedveilError, match=r"in \[0, 1\]"):
        draw_rows(originals, {"too bright": originals + 2})
    with pytest.raises(FedveilError, match=r"alone: expected values in \[0, 1\]"):
        draw_rows(None, {"alone": originals + 2})
    with pytest.raises(FedveilError, match="differ in shape"):
        draw_rows(originals, {"wide": torch.zeros(1, 1, 12, 14)})


def test_a_caption_for_each_column_and_an_image_in_each_cell() -> None:
    grey = torch.full((2, 1, 12, 12), 0.5)
    with pytest.raises(ValueError, match="zip"):
        draw_rows(grey, {"attack": grey}, ["one", "two", "three"])
    with pytest.raises(ValueError, match="zip"):
        draw_rows(None, {"two": grey, "one": grey[:1]})


@pytest.mark.parametrize(("error", "text"), [(0.01234, "0.0123"), (4e-5, "4e-05"), (0.0, "0")])
def test_a_small_error_does_not_read_as_an_exact_copy(error: float, text: str) -> None:
    assert mse_text(error) == text


# Workers draw nothing, and import the floor and train in seconds: PyTorch's compiler alone would take two more.
UNLOADED = """
import sys, torch, fedveil.attacks.audit.report
from fedveil.attacks.scoring.judge import train_judge
from fedveil.fl.data.images import Images
pixels = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8)
train_judge(Images(pixels, torch.arange(40) % 2), classes=2, seed=0, steps=2, check_every=1)
print([m for m in ("matplotlib", "scipy.stats", "torch._dynamo") if m in sys.modules])
"""


def test_what_a_worker_does_not_need_is_not_loaded() -> None:
    done = subprocess.run([sys.executable, "-c", UNLOADED], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_captions_of_neighbours_do_not_meet() -> None:
    names = ["platelet", "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)", "eosinophil", ""]
    figure = draw_rows(torch.rand(4, 1, 8, 8), {"attack": torch.rand(4, 1, 8, 8)}, names)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    titles = sorted(
        (text for text in axes.texts if text.get_fontsize() == 9.5), key=lambda text: text.get_position()[0]
    )
    assert len(titles) == 4
    boxes = [title.get_window_extent() for title in titles if title.get_text()]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    assert all(box.y1 <= figure.bbox.y1 for box in boxes)
    assert titles[1].get_text().startswith("immature")
    assert titles[1].get_text().endswith("…")
