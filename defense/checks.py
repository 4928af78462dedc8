"""What settings may be: checks that name whose setting it is, the key, the value and what is allowed."""

from __future__ import annotations

import math

from fedveil.fl.errors import SettingError

MOST = 1_000_000_000
"""Above any count that makes sense, and well inside what the libraries below take."""
MOST_STEPS = 10_000_000


def at_least(defense: str, **settings: tuple[float, float]) -> None:
    """Check that each setting, given as (value, least), is finite and at least that.

    Raises:
        FedveilError: naming the first that is not.
    """
    for key, (value, least) in settings.items():
        if not (isinstance(value, int | float) and least <= value < math.inf):
            raise SettingError(defense, key, value, f"it has to be at least {least:g} and finite")


def whole(owner: str, *, most: int = MOST, **settings: tuple[int, int]) -> None:
    """Check that each setting, given as (value, least), is a whole number, at least that and at most ``most``.

    Raises:
        FedveilError: naming the first that is not.
    """
    for key, (value, _) in settings.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise SettingError(owner, key, value, f"it has to be a whole number, not {type(value).__name__}")
    at_least(owner, **settings)
    for key, (value, _) in settings.items():
        if value > most:
            raise SettingError(owner, key, value, f"it has to be at most {most}")


def above_zero(defense: str, **settings: float) -> None:
    """Check that each setting is finite and above 0.

    Raises:
        FedveilError: naming the first that is not.
    """
    for key, value in settings.items():
        if not (isinstance(value, int | float) and 0 < value < math.inf):
            raise SettingError(defense, key, value, "it has to be above 0 and finite")
