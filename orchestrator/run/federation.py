"""From a setup to a federation: the defence learns on public images, then prepares itself with each client."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from fedveil.defense.base import Defense, DefenseContext, PreparedDefense
from fedveil.fl.data import Images
from fedveil.fl.executor import Executor, Handle, Slot
from fedveil.fl.progress import doing
from fedveil.fl.rounds import Client, Federation, ServerState
from fedveil.fl.sent_once import sent_once
from fedveil.fl.training import LocalTraining
from fedveil.fl.trust import Trust
from fedveil.orchestrator.config import Experiment
from fedveil.orchestrator.run.references import public_weights
from fedveil.orchestrator.run.setup import Setup


def pretrain(defense: Defense[Any], context: DefenseContext, executor: Executor) -> Any:
    """Let the defence learn on a slot what needs public images alone; see `Defense.pretrain`.

    What it returns is held by each client's defence, and by attackers': workers get it once.
    """
    return sent_once(executor.map(_pretrain, [defense], shared=(context,))[0], executor)


def build_federation(
    experiment: Experiment, setup: Setup, context: DefenseContext, public: Any, executor: Executor
) -> tuple[Federation, dict[str, float]]:
    """Prepare the defence with every client, on slots.

    Args:
        experiment: what is run.
        setup: its images.
        context: for the defence.
        public: from `pretrain`.
        executor: where to prepare.

    Returns:
        The federation, and the clients' mean diagnostics, ``defense/<name>`` each; of ``k``, also the least: ``privacy/k``.
    """
    fl = experiment.fl
    shards = [executor.broadcast(shard) for shard in setup.shards]
    prepared = executor.map(_prepare, list(enumerate(shards)), shared=(experiment.build_defense(), context, public))
    strategy = fl.build_strategy()
    federation = Federation(
        model=setup.model,
        clients=tuple(
            Client(number, len(own), shard, executor.broadcast(hooks))
            for number, (own, shard, hooks) in enumerate(zip(setup.shards, shards, prepared, strict=True))
        ),
        strategy=strategy,
        training=LocalTraining(
            kind=strategy.local_kind,
            epochs=fl.epochs,
            steps=fl.local_steps,
            batch_size=fl.batch_size,
            learning_rate=fl.learning_rate,
            proximal=strategy.proximal,
            optimizer=fl.build_optimizer(),
            augmentation=tuple(fl.augmentation),
            replay=fl.replay_public,
            sampling=fl.sampling,
        ),
        cohort=fl.cohort_size,
        client_chunks=fl.client_chunks,
        seed=experiment.seed,
        learning_rate_decay=fl.learning_rate_decay,
        public=executor.broadcast(setup.public) if fl.replay_public else None,
        trust=Trust(fl.quorum, fl.max_update_norm),
    )
    numbers = [one.diagnostics() for one in prepared]
    means = {f"defense/{key}": sum(n[key] for n in numbers) / len(numbers) for key in numbers[0]}
    if "defense/k" in means:
        means["privacy/k"] = min(n["k"] for n in numbers)
    return federation, means


def first_state(
    experiment: Experiment, setup: Setup, federation: Federation, executor: Executor, *, cache: Path | None
) -> ServerState:
    """Return the server's state before round 0, with random weights or those of the public classifier (``fl.start``).

    Args:
        experiment: says which.
        setup: its images.
        federation: from `build_federation`.
        executor: where to train.
        cache: folder where the public classifier's weights are kept.
    """
    if experiment.fl.start == "random":
        return ServerState.initial(federation)
    return ServerState.initial(federation, public_weights(experiment, setup, executor, cache=cache))


def _pretrain(slot: Slot, defense: Defense[Any], context: DefenseContext) -> Any:
    return defense.pretrain(replace(context, device=slot.device))


def _prepare(
    slot: Slot, client: tuple[int, Handle[Images]], defense: Defense[Any], context: DefenseContext, public: Any
) -> PreparedDefense:
    number, shard = client
    with doing(f"client {number}"):
        return defense.prepare(shard.get(), replace(context, device=slot.device), public, client=number)
