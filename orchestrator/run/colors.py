"""The colour of a trial's run in MLflow's charts: a hue for each defence, darker the larger its dial."""

from __future__ import annotations

import colorsys
from dataclasses import fields

from fedveil.defense import DEFENSES
from fedveil.orchestrator.config import Experiment
from fedveil.orchestrator.run.names import params_of

_PALE, _DARK, _FULL = 0.74, 0.30, 0.62
_GREY = "#555555"


def run_color(experiment: Experiment) -> str:
    """Return ``#rrggbb``; the setting's own default lies in the middle, a trial without defence is grey."""
    first = str(experiment.defense[0]["name"])
    if first == "none":
        return _GREY
    kind, params, names = DEFENSES[first], params_of(experiment), list(DEFENSES)
    value = float(params.get(f"defense.{kind.dial}", 0.0))
    defaults = [one.default for one in fields(kind) if one.name == kind.dial and isinstance(one.default, int | float)]
    usual = abs(defaults[0]) if defaults and defaults[0] else 1.0
    share = abs(value) / (abs(value) + usual)
    rgb = colorsys.hls_to_rgb(names.index(first) / len(names), _PALE + share * (_DARK - _PALE), _FULL)
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)
