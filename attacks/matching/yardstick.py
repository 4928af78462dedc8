"""One yardstick for all attacks: what a client would send that trained on the reconstruction, against what it sent.

An attack's own loss means something only within that attack. This one needs no truth either, and no attack was tuned to it
alone, so it tells whose reconstruction of a victim to believe, and whether any is to be believed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from fedveil.attacks.base import Knowledge, Observation
from fedveil.attacks.engine.distances import cosine_distance
from fedveil.attacks.engine.unrolled import replayed
from fedveil.attacks.matching.attack import Visible, problem_of, shares_for, target_gradient
from fedveil.fl.messages import Reconstruction

_TOGETHER = 64
"""Victims that are replayed at once; bounds memory."""


@torch.no_grad()
def misfit(
    observations: Sequence[Observation],
    found: Sequence[Reconstruction],
    knowledge: Knowledge,
    visible: Visible | None = None,
) -> list[float]:
    """Return how far what each client would send, had it trained on the reconstruction, is from what it sent.

    Args:
        observations: of one number of local steps and one optimiser.
        found: a reconstruction of each, with the labels to train on.
        knowledge: what the attacker holds.
        visible: says which entries tell anything; None for all.

    Returns:
        Cosine distances; the best an attack can do is 0. Over repeated observations it is the mean.
    """
    sums = [0.0] * len(observations)
    # One image has to explain all that was observed of it.
    jobs = [(at, seen) for at, first in enumerate(observations) for seen in (first, *first.repeats)]
    for begin in range(0, len(jobs), _TOGETHER):
        some = jobs[begin : begin + _TOGETHER]
        seen = [one for _, one in some]
        masks = visible and [visible(target_gradient(one.update)) for one in seen]
        problem = problem_of(seen, knowledge, [0.0] * len(seen), masks)
        labels = shares_for(seen, torch.stack([found[at].labels for at, _ in some]))
        problem = replace(problem, labels=labels.to(knowledge.device))
        images = torch.stack([found[at].images for at, _ in some]).to(knowledge.device)
        rates = torch.tensor([one.update.learning_rate for one in seen], device=knowledge.device)
        like = seen[0].update
        sent = replayed(problem, images, steps=like.local_steps, rates=rates, optimizer=like.optimizer)
        masked = [
            one if problem.visible is None else {n: t * problem.visible[n] for n, t in one.items()}
            for one in (sent, problem.target)
        ]
        # In double precision: good reconstructions differ in digits that 1 - cosine loses in single.
        distance, _ = cosine_distance(*({n: t.double() for n, t in one.items()} for one in masked))
        # An image without a number never wins.
        for (at, _), own in zip(some, distance.nan_to_num(2.0).tolist(), strict=True):
            sums[at] += own / (1 + len(observations[at].repeats))
    return sums
