"""The settings of several trials: what all of them share, and in what they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Settings = Mapping[str, Any]
_ABSENT = object()


def flat(settings: Settings, prefix: str = "") -> dict[str, Any]:
    """Return settings by dotted key; lists, and sections without keys, are values.

    >>> flat({"fl": {"rounds": 3, "augmentation": []}, "seed": 0})
    {'fl.rounds': 3, 'fl.augmentation': [], 'seed': 0}
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def values_of(all_settings: Sequence[Settings], key: str) -> list[Any]:
    """Return the distinct values that trials have for a dotted key, in their order.

    >>> values_of([{"fl": {"rounds": 3}}, {"fl": {"rounds": 5}}, {"fl": {"rounds": 3}}, {}], "fl.rounds")
    [3, 5]
    """
    found: list[Any] = []
    for settings in map(flat, all_settings):
        if key in settings and settings[key] not in found:
            found.append(settings[key])
    return found


def shared(all_settings: Sequence[Settings]) -> dict[str, Any]:
    """Return what all trials have with the same value, nested as in a file.

    >>> shared([{"fl": {"rounds": 3, "clients": 2}}, {"fl": {"rounds": 5, "clients": 2}}])
    {'fl': {'clients': 2}}
    """
    if not all_settings:
        return {}
    first, *others = all_settings
    common: dict[str, Any] = {}
    for key, value in first.items():
        theirs = [other.get(key, _ABSENT) for other in others]
        if all(one == value for one in theirs):
            common[key] = value
        elif isinstance(value, Mapping) and all(isinstance(one, Mapping) for one in theirs):
            below = shared([value, *theirs])
            if below:
                common[key] = below
    return common


def own(settings: Settings, common: Settings) -> dict[str, Any]:
    """Return, by dotted key, what a trial has beyond what all share.

    >>> own({"fl": {"rounds": 3, "clients": 2}}, {"fl": {"clients": 2}})
    {'fl.rounds': 3}
    """
    theirs = flat(common)
    return {key: value for key, value in flat(settings).items() if key not in theirs}
