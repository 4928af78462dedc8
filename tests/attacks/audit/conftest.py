from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from worlds import CPU, SPEC, TARGET, Blobs, MakeWorld, World

from fedveil.attacks import Attack
from fedveil.attacks.adaptive.preparation import preparation_key, prepare_attacker
from fedveil.attacks.audit.updates import Attacker
from fedveil.attacks.scoring import ClassMeanGuess, Gallery, Judge, Scorer, train_judge
from fedveil.attacks.scoring.victims import VictimBatch
from fedveil.defense import Defense, DefenseContext
from fedveil.fl.seeding import torch_stream


@pytest.fixture(scope="session")
def judge(blobs: Blobs) -> Judge:
    return train_judge(blobs(12, 100, side=12), classes=2, seed=0, steps=2)


@pytest.fixture
def make_world(blobs: Blobs, judge: Judge) -> MakeWorld:
    def make(
        defense: Defense[Any],
        attacks: Sequence[Attack],
        *,
        victims: int = 3,
        batch_size: int = 1,
        clients: int = 2,
        labels_known: bool = True,
        local_steps: int = 1,
    ) -> World:
        public, auxiliary = blobs(12, 200, side=12), blobs(12, 100, side=12)
        shards = tuple(blobs(6, c, side=12) for c in range(clients))
        context = DefenseContext(public, SPEC, CPU, seed=0)
        learnt = defense.pretrain(context)
        prepared = tuple(defense.prepare(shard, context, learnt, client=c) for c, shard in enumerate(shards))
        batches = []
        for number in range(victims // batch_size):
            ids = tuple(range(number * batch_size, (number + 1) * batch_size))
            client, turn = number % clients, number // clients
            rows = torch.arange(turn * batch_size, (turn + 1) * batch_size)
            batches.append(VictimBatch(number, client, ids, shards[client].take(rows), gallery=ids))
        pixels = [batch.images.pixels for batch in batches]
        keys = {preparation_key(a, defense.trained_on, batch.client) for a in attacks for batch in batches} - {None}
        shadow = defense.shadow(auxiliary, replace(context, seed=5), learnt)
        attacker = Attacker(
            target=TARGET,
            attacks=tuple(attacks),
            auxiliary=auxiliary,
            preparations={
                key: prepare_attacker(
                    prepared[key.client or 0] if key.modules else shadow,
                    auxiliary,
                    key,
                    classes=SPEC.classes,
                    device=CPU,
                    stream=torch_stream(5, "inverse"),
                )
                for key in keys
                if key is not None
            },
            trained_on=defense.trained_on,
            labels_known=labels_known,
            seed=7,
        )
        scorer = Scorer(judge, Gallery(torch.cat(pixels)), ClassMeanGuess.of(auxiliary, classes=2), seed=0)
        return World(shards, prepared, attacker, tuple(batches), scorer, local_steps)

    return make
