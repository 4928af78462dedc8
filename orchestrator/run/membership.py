"""Whose images took part? Measured once a trial is over, for a few clients; see `fedveil.attacks.membership`."""

from __future__ import annotations

from dataclasses import replace

import torch

from fedveil.attacks.audit.capture import trains_on
from fedveil.attacks.inverse.shared_law import SharedLaw
from fedveil.attacks.membership.attack import as_images, membership
from fedveil.attacks.membership.score import MembershipScore
from fedveil.attacks.scoring.victims import VictimBatch
from fedveil.defense.base import DefenseContext, PreparedDefense
from fedveil.defense.latent.pool import make_pool
from fedveil.fl.data.images import Images
from fedveil.fl.executor import Executor, Slot
from fedveil.fl.rounds import Client, Federation
from fedveil.fl.seeding import derive_seed, torch_stream
from fedveil.orchestrator.config import Experiment
from fedveil.orchestrator.run.setup import Setup

CLIENTS = 2
"""So many clients are asked about, the first ones that have victims."""


def measure_membership(
    experiment: Experiment,
    setup: Setup,
    federation: Federation,
    context: DefenseContext,
    law: SharedLaw | None,
    executor: Executor,
) -> dict[str, float]:
    """Return ``privacy/membership_...``, of the client whose images are told best.

    Outsiders are other clients' images, which come from the same source as its own; test images may not. With one client
    they are test images.

    Args:
        experiment: what is run.
        setup: its images.
        federation: with the clients' prepared defences.
        context: of the defence. The attacker's features are those by which a sharing defence groups, or those of a network
            trained on public images.
        law: from the attacker's preparation.
        executor: where to measure.
    """
    clients = sorted({batch.client for batch in setup.victims})[:CLIENTS]
    items = []
    for number in clients:
        others = [shard for at, shard in enumerate(setup.shards) if at != number] or [setup.data.test]
        outsiders = Images(torch.cat([one.pixels for one in others]), torch.cat([one.labels for one in others]))
        items.append((federation.clients[number], outsiders))
    shared = (setup.auxiliary, context, law, derive_seed(experiment.seed, "membership"))
    found = executor.map(_measure, items, shared=shared)
    worst = max(found, key=lambda score: score.auc)
    ends = ("auc", "auc_low", "auc_high", "tpr", "tpr_low", "tpr_high")
    return {f"privacy/membership_{end}": getattr(worst, end) for end in ends}


def _measure(
    slot: Slot,
    item: tuple[Client, Images],
    auxiliary: Images,
    context: DefenseContext,
    law: SharedLaw | None,
    seed: int,
) -> MembershipScore:
    client, outsiders = item
    hooks, shard = client.hooks.get(), client.shard.get()
    assert isinstance(hooks, PreparedDefense)  # `build_federation` has put it there
    here = replace(context, device=slot.device)
    surrogate = hooks.surrogate()
    features = surrogate.similar
    if features is None:
        features = make_pool(here, random=0, trained=1).similar(slot.device)
    own = [VictimBatch(at, client.number, (at,), shard.take(torch.tensor([at]))) for at in range(len(shard))]
    kept = torch.tensor([at for at, one in enumerate(own) if trains_on(hooks, one)])
    members, seen = shard.take(kept), hooks.images(shard)
    stream = torch_stream(seed, "client", client.number)
    parts = []
    for at in torch.arange(len(seen)).split(256):
        x, y = seen.batch(at)
        parts.append(hooks.data(x.to(slot.device), y.to(slot.device), stream).cpu())
    return membership(
        as_images(torch.cat(parts), seen.labels),
        members,
        outsiders,
        surrogate,
        auxiliary,
        features=features,
        law=law,
        seed=derive_seed(seed, client.number),
    )
