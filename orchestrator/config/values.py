"""The kinds of values that settings have, each with its own words for what is allowed."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field

from fedveil.defense.checks import MOST
from fedveil.orchestrator.cluster.connection import LEAST_SHARE
from fedveil.orchestrator.config.options import normalise
from fedveil.orchestrator.config.uri import runs_fault, uri_fault
from fedveil.orchestrator.tracking import ImagePolicy


def _one(value: Any, allowed: str) -> Any:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"allowed: {allowed}")
    return value


def _named(key: str) -> BeforeValidator:
    return BeforeValidator(lambda value: _one(normalise(value, key), f"a name or {{{key}: NAME, option: value}}"))


def _several(value: Any) -> Any:
    allowed = "a name, {name: NAME, option: value}, or a list of these"
    return [_one(normalise(part), allowed) for part in (value if isinstance(value, list) else [value])]


def _round(value: Any) -> Any:
    number = isinstance(value, int) and not isinstance(value, bool)
    if not (value >= 0 if number else value in get_args(RoundName)):
        raise ValueError(f"allowed: round numbers from 0, {', '.join(get_args(RoundName))}")
    return value


def _image_policy(value: Any) -> ImagePolicy:
    names = [policy.value for policy in ImagePolicy]
    if value not in names:
        raise ValueError(f"allowed: {', '.join(names)}")
    return ImagePolicy(value)


def _tracking_uri(uri: str) -> str:
    fault = uri_fault(uri)
    if fault is not None:
        raise ValueError(fault)
    return uri


def _runs_dir(place: str) -> str:
    fault = runs_fault(place)
    if fault is not None:
        raise ValueError(fault)
    return place


def _gpu_share(share: float) -> float:
    if 0 < share < LEAST_SHARE:
        raise ValueError(f"allowed: 0, or {LEAST_SHARE} or more")
    return share


EXPERIMENT = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}"
"""What an experiment may be called: it is a folder, too."""


def _experiment_name(name: str) -> str:
    if not re.fullmatch(EXPERIMENT, name):
        raise ValueError("allowed: up to 100 letters, digits, '_', '-' and '.', a letter or digit first")
    if name == "cache":
        raise ValueError("this name is taken by the folder runs/cache")
    return name


def _share(value: float) -> float:
    if not 0 < value <= 1:
        raise ValueError("it is a share of the clients, not their number: above 0 and at most 1")
    return value


RoundName = Literal["middle", "last"]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Count = Annotated[int, Field(ge=1, le=MOST)]

ClientShare = Annotated[float, AfterValidator(_share), Field(json_schema_extra={"exclusiveMinimum": 0, "maximum": 1})]
Name = Annotated[str, AfterValidator(_experiment_name)]
Named = Annotated[dict[str, Any], _named("name")]
Kinded = Annotated[dict[str, Any], _named("kind")]
SeveralNamed = Annotated[list[dict[str, Any]], BeforeValidator(_several)]
Round = Annotated[int | RoundName, BeforeValidator(_round)]
Images = Annotated[ImagePolicy, BeforeValidator(_image_policy)]
RunsDir = Annotated[str, AfterValidator(_runs_dir)]
TrackingUri = Annotated[str, AfterValidator(_tracking_uri)]
GpuShare = Annotated[float, AfterValidator(_gpu_share)]
