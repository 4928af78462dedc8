"""Learning rates of weight changes that were handed over without one: counting a batch's labels takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fedveil.attacks.audit.inputs import Updates
from fedveil.attacks.base import Observation
from fedveil.attacks.labels import likeliest_rate
from fedveil.attacks.target.model import TargetModel
from fedveil.fl.messages import ClientUpdate, UpdateKind


def with_likely_rates(
    target: TargetModel, given: Updates, seen: Sequence[Observation]
) -> tuple[list[Observation], list[str]]:
    """Return the observations, those of unknown learning rate with the likeliest one, and a note for each of these.

    No auxiliary images are used: not every attack is granted them.

    Args:
        target: the classifier.
        given: the updates as the user gave them: an `fv.Update` says its rate, an array of weights does not.
        seen: the same, as they were understood. Of one image the rate tells nothing that is needed.
    """
    each = given if isinstance(given, list | tuple) and len(given) == len(seen) else [given] * len(seen)
    said = [isinstance(one, ClientUpdate) for one in each]
    found, notes = list(seen), []
    for at, (one, known) in enumerate(zip(seen, said, strict=True)):
        if known or one.update.kind is not UpdateKind.DELTA or one.batch_size == 1:
            continue
        rate = likeliest_rate(one.update, batch_size=one.batch_size, target=target, weights=one.weights)
        found[at] = replace(one, update=replace(one.update, learning_rate=rate))
        notes.append(
            f"the learning rate of update {at} is not known, and labels are counted from sizes: taken for {rate:.2g}, under"
            " which it is likeliest; fv.Update.delta(..., learning_rate=) says it"
        )
    return found, notes
