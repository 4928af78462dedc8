"""What a server sees under secure aggregation: the sum of several clients' updates, as if of one batch."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedveil.attacks.base import Observation
from fedveil.attacks.scoring.victims import VictimBatch
from fedveil.fl.data.images import Images
from fedveil.fl.strategies import Totals


def in_sums(batches: Sequence[VictimBatch], clients: int) -> list[tuple[VictimBatch, ...]]:
    """Put batches together of which a server sees the sum: of so many different clients each.

    The clients that have the most batches left come first, in the batches' order among equals; what makes no whole sum is
    left out.
    """
    if clients == 1:
        return [(batch,) for batch in batches]
    left: dict[int, deque[VictimBatch]] = defaultdict(deque)
    for batch in batches:
        left[batch.client].append(batch)
    sums: list[tuple[VictimBatch, ...]] = []
    while True:
        fullest = sorted((own for own in left.values() if own), key=len, reverse=True)[:clients]
        if len(fullest) < clients:
            return sums
        sums.append(tuple(own.popleft() for own in fullest))


def aggregated(seen: Sequence[tuple[Observation, VictimBatch]]) -> tuple[Observation, VictimBatch]:
    """Return what a server sees of several clients, and the truth behind it. It goes by the first one's number and client.

    Args:
        seen: what each of them sent, of batches of one size, and what is behind that.
    """
    (first, truth), batches = seen[0], [batch for _, batch in seen]
    if len(seen) == 1:
        return first, truth
    rounds = [_sum([one.series[at] for one, _ in seen]) for at in range(len(first.series))]
    images = Images(torch.cat([b.images.pixels for b in batches]), torch.cat([b.images.labels for b in batches]))
    galleries = [batch.gallery for batch in batches]
    return replace(rounds[0], repeats=tuple(rounds[1:])), VictimBatch(
        truth.number,
        truth.client,
        tuple(victim for batch in batches for victim in batch.victims),
        images,
        None if None in galleries else tuple(at for gallery in galleries if gallery for at in gallery),
        tuple(torch.cat(draws) for draws in zip(*(batch.draws for batch in batches), strict=True)),
    )


def sum_note(model: nn.Module, clients: int, local_steps: int) -> str | None:
    """Return what the reader of an attack on sums has to know: where a sum is not what one batch of all clients would send.

    It is for one step of plain SGD, in which images do not depend on each other.

    Args:
        model: the classifier.
        clients: in a sum; 1 where there is none.
        local_steps: of each of them.
    """
    norms = [name for name, part in model.named_modules() if isinstance(part, _BatchNorm)]
    reasons = [f"clients take {local_steps} steps each"] if local_steps > 1 else []
    reasons += [f"{norms[0]} is BatchNorm, whose statistics are each client's own"] if norms else []
    if clients == 1 or not reasons:
        return None
    return (
        f"the sum of {clients} clients is attacked as if it were one batch's, which is not exact ({'; '.join(reasons)}): an"
        " attacker who models each client may find more"
    )


def _sum(sent: Sequence[Observation]) -> Observation:
    first, totals = sent[0], Totals.of(sent[0].update)
    for other in sent[1:]:
        totals = totals + Totals.of(other.update)
    tensors, buffers = totals.mean()
    update = replace(first.update, tensors=tensors, buffers=buffers, examples=totals.examples)
    return replace(first, update=update, batch_size=sum(one.batch_size for one in sent), repeats=())
