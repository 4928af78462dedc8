from __future__ import annotations

import colorsys
import itertools
from typing import Any

from fedveil.defense import DEFENSES
from fedveil.orchestrator.config import check
from fedveil.orchestrator.run.colors import run_color


def hls(defense: Any) -> tuple[float, float, float]:
    color = run_color(check({"experiment": "colours", "defense": defense}))
    assert color[0] == "#"
    assert len(color) == 7
    red, green, blue = (int(color[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return colorsys.rgb_to_hls(red, green, blue)


def test_a_hue_for_each_defence_and_darker_with_its_setting() -> None:
    weak, usual, strong = (hls({"name": "pixel_noise", "strength": strength}) for strength in (0.01, 0.1, 1.0))
    assert abs(weak[0] - strong[0]) < 0.02
    assert weak[1] > usual[1] > strong[1]
    others = [hls({"name": name})[0] for name in ("latent", "latent_noise", "top_k", "update_noise", "group_mean")]
    hues = sorted([weak[0], *others])
    # As far apart as so many defences let them be, up to the rounding of colours to bytes.
    assert min(after - before for before, after in itertools.pairwise(hues)) > 1 / len(list(DEFENSES)) - 0.01


def test_no_defence_is_grey() -> None:
    assert hls("none")[2] < 0.01
