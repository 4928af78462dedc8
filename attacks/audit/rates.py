"""Learning rates of weight changes that were handed over without one: some attacks take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fedveil.attacks.base import Observation
from fedveil.attacks.labels import likeliest_rate
from fedveil.attacks.target.model import TargetModel
from fedveil.fl.errors import FedveilError


def with_likely_rates(
    target: TargetModel, seen: Sequence[Observation], *, counted: bool
) -> tuple[list[Observation], list[str]]:
    """Return the observations, those of unknown learning rate with the likeliest one where it is needed, and notes.

    An update of an optimiser that is no plain SGD stays as it is: no learning rate makes a mean gradient of it.

    No auxiliary images are used: not every attack is granted them.

    Args:
        target: the classifier.
        seen: what was observed.
        counted: labels of batches have to be counted, from sizes.
    """
    found, notes = list(seen), []
    for at, one in enumerate(seen):
        if one.update.rate_known or not one.update.plain:
            continue
        what = f"the learning rate of update {at} is not known"
        how = "fv.Update.delta(..., learning_rate=, local_steps=) says it"
        if not (counted and one.batch_size > 1) and one.update.local_steps == 1:
            notes.append(f"{what}: taken for one local step, it is matched in direction alone; {how}")
            continue
        try:
            rate = likeliest_rate(one.update, batch_size=one.batch_size, target=target, weights=one.weights)
        except FedveilError as error:
            notes.append(f"{what}, and cannot be guessed ({error}); {how}")
            continue
        found[at] = replace(one, update=replace(one.update, learning_rate=rate))
        notes.append(f"{what}, and labels or replayed steps take it: taken for {rate:.2g}, the likeliest; {how}")
    return found, notes
