from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedveil.fl import rounds
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError, SettingError
from fedveil.fl.executor import Executor, Handle, SerialExecutor
from fedveil.fl.hooks import NoHooks
from fedveil.fl.messages import ClientUpdate, UpdateKind
from fedveil.fl.models import ModelSpec, build_model
from fedveil.fl.rounds import Client, Federation, RoundReport, ServerState, Simulation
from fedveil.fl.strategies import FedAdam, FedAvg, FedSGD, Krum, Median, Strategy, TrimmedMean
from fedveil.fl.training import LocalTraining, exchanged
from fedveil.fl.trust import Due, Rejection, Trust, listed

torch.set_num_threads(1)

SHARD = 6
CLIENTS = 6
Lie = Callable[[ClientUpdate], Any]


def _tensors(change: Callable[[dict[str, Any]], dict[Any, Any]]) -> Lie:
    return lambda update: replace(update, tensors=change(dict(update.tensors)))


def _head(change: Callable[[Tensor], Any]) -> Lie:
    return _tensors(lambda tensors: {**tensors, "head.bias": change(tensors["head.bias"])})


def _one(value: float) -> Callable[[Tensor], Tensor]:
    return lambda bias: torch.cat([bias[:-1], torch.tensor([value])])


LIES: dict[str, tuple[Lie, str]] = {
    "nan": (_head(_one(math.nan)), "head.bias is not finite"),
    "infinity": (_head(_one(-math.inf)), "head.bias is not finite"),
    "a buffer": (
        lambda update: replace(update, buffers={name: b * math.nan for name, b in update.buffers.items()}),
        "body.0.1.running_mean is not finite",
    ),
    "long": (_head(_one(1e30)), "its norm is 1e+30, above fl.max_update_norm 1000"),
    "too long to square": (_head(_one(3e38)), "its norm is 3e+38, above fl.max_update_norm 1000"),
    "shape": (_head(lambda bias: bias[:2]), "head.bias has the shape (2,), not (3,)"),
    "broadcasts": (_head(lambda bias: bias[:1]), "head.bias has the shape (1,), not (3,)"),
    "type": (_head(lambda bias: bias.double()), "head.bias is torch.float64, not torch.float32"),
    "whole numbers": (_head(lambda bias: bias.long()), "head.bias is torch.int64, not torch.float32"),
    "no tensor": (_head(lambda bias: bias.tolist()), "head.bias is a list, not a tensor"),
    "sparse": (
        _head(lambda bias: bias.to_sparse()),
        "head.bias is torch.sparse_coo on cpu, not torch.strided on cpu",
    ),
    "nowhere": (_head(lambda bias: bias.to("meta")), "head.bias is torch.strided on meta, not torch.strided on cpu"),
    "name": (_tensors(lambda tensors: {**tensors, "tail": torch.ones(3)}), "it holds 'tail', which the model lacks"),
    "odd name": (_tensors(lambda tensors: {**tensors, 7: torch.ones(3)}), "it holds 7, which the model lacks"),
    "left out": (
        _tensors(lambda tensors: {n: t for n, t in tensors.items() if n != "head.bias"}),
        "head.bias is missing",
    ),
    "no mapping": (
        lambda update: replace(update, tensors=[torch.ones(3)]),
        "its tensors are a list, not a mapping by name",
    ),
    "no update": (lambda update: None, "a NoneType was sent, not a ClientUpdate"),
    "kind": (lambda update: replace(update, kind="theirs"), "its kind is theirs, not"),
    "weight": (lambda update: replace(update, examples=10**9), f"it claims 1000000000 examples of a shard of {SHARD}"),
    "no weight": (lambda update: replace(update, examples=0), f"it claims 0 examples of a shard of {SHARD}"),
    "nan weight": (lambda update: replace(update, examples=math.nan), f"it claims nan examples of a shard of {SHARD}"),
}


class Liar(NoHooks):
    def __init__(self, lie: str) -> None:
        self.lie = lie

    def update(self, update: ClientUpdate, stream: torch.Generator) -> ClientUpdate:
        changed: ClientUpdate = LIES[self.lie][0](update)
        return changed


def images(seed: int) -> Images:
    stream = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (SHARD, 1, 12, 12), generator=stream, dtype=torch.uint8)
    return Images(pixels, torch.randint(3, (SHARD,), generator=stream))


def federate(
    strategy: Strategy, liars: dict[int, str], *, chunks: int = CLIENTS, trust: Trust | None = None
) -> Federation:
    return Federation(
        model=ModelSpec("convnet", (1, 12, 12), classes=3, norm="batch", width=4),
        clients=tuple(
            Client(k, SHARD, Handle(images(k)), Handle(Liar(liars[k]) if k in liars else NoHooks()))
            for k in range(CLIENTS)
        ),
        strategy=strategy,
        training=LocalTraining(strategy.local_kind, 1, batch_size=3, learning_rate=0.1),
        cohort=CLIENTS,
        client_chunks=chunks,
        seed=0,
        trust=trust or Trust(0.5, max_norm=1000),
    )


def one_round(federation: Federation, executor: Executor | None = None) -> tuple[ServerState, RoundReport]:
    simulation = Simulation(federation, executor or SerialExecutor())
    report = simulation.round()
    return simulation.state, report


def same_bits(left: ServerState, right: ServerState) -> bool:
    return all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in ((left.weights, right.weights), (left.optimizer, right.optimizer))
    )


STRATEGIES = [FedAvg(), FedSGD(), FedAdam(), Median(), TrimmedMean(trim=0.2), Krum()]


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(STRATEGIES),
    st.dictionaries(st.integers(0, CLIENTS - 1), st.sampled_from(sorted(LIES)), max_size=CLIENTS // 2),
)
def test_a_rejected_client_changes_nothing(strategy: Strategy, liars: dict[int, str]) -> None:
    state, report = one_round(federate(strategy, liars))
    honest = [client for client in range(CLIENTS) if client not in liars]
    with patch.object(rounds, "draw_cohort", return_value=honest):
        expected, alone = one_round(federate(strategy, {}))
    assert same_bits(state, expected)
    assert (report.loss, report.update_bytes) == (alone.loss, alone.update_bytes)
    assert [rejection.client for rejection in report.rejections] == sorted(liars)
    assert alone.rejections == ()


@settings(deadline=None, max_examples=15)
@given(st.sampled_from(STRATEGIES), st.permutations(range(3)), st.sampled_from(sorted(LIES)))
def test_neither_the_order_of_the_work_nor_of_an_updates_names_changes_a_bit(
    strategy: Strategy, order: list[int], lie: str
) -> None:
    class Ordered(SerialExecutor):
        def map(self, task: Any, items: Any, *, shared: Any = (), on_lost: Any = None) -> list[Any]:
            done = {at: super(Ordered, self).map(task, [items[at]], shared=shared)[0] for at in order}
            return [done[at] for at in range(len(items))]

    federation = federate(strategy, {1: lie, 4: "nan"}, chunks=3)
    expected, report = one_round(federation)
    state, other = one_round(federation, Ordered())
    assert same_bits(state, expected)
    assert report == other
    due = _due(federation)
    honest = _honest(due)
    turned = replace(honest, tensors=dict(reversed(honest.tensors.items())))
    changed, as_well = (LIES[lie][0](update) for update in (honest, turned))
    assert due.fault(changed, shard=SHARD) == due.fault(as_well, shard=SHARD)


def _due(federation: Federation) -> Due:
    model = build_model(federation.model)
    return Due.of(model, exchanged(model), federation.training.kind, federation.trust)


def _honest(due: Due) -> ClientUpdate:
    zeros = ({name: torch.zeros_like(like) for name, like in part.items()} for part in (due.tensors, due.buffers))
    return ClientUpdate(next(zeros), SHARD, due.kind, 2, 0.1, next(zeros))


@pytest.mark.parametrize("lie", LIES)
def test_what_is_wrong_is_said(lie: str) -> None:
    due = _due(federate(FedAvg(), {}))
    change, reason = LIES[lie]
    assert due.fault(_honest(due), shard=SHARD) is None
    said = due.fault(change(_honest(due)), shard=SHARD)
    assert said is not None
    assert said.startswith(reason)
    assert len(said) < 120


def test_frozen_parameters_are_neither_owed_nor_taken() -> None:
    model = build_model(federate(FedAvg(), {}).model)
    full = Due.of(model, exchanged(model), UpdateKind.DELTA, Trust())
    model.get_parameter("head.bias").requires_grad_(False)
    frozen = Due.of(model, exchanged(model), UpdateKind.DELTA, Trust())
    assert full.tensors.keys() - frozen.tensors.keys() == {"head.bias"}
    assert frozen.fault(_honest(frozen), shard=SHARD) is None
    assert frozen.fault(_honest(full), shard=SHARD) == "it holds 'head.bias', which the model lacks"


def test_the_norm_is_that_of_all_that_is_sent() -> None:
    due = Due(UpdateKind.DELTA, {"a": torch.zeros(1), "b": torch.zeros(1)}, {"c": torch.zeros(2)}, max_norm=13)
    update = ClientUpdate.delta(
        {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}, buffers={"c": torch.tensor([0.0, 12.0])}
    )
    assert due.fault(update, shard=1) is None, "3, 4 and 12 make 13"
    assert replace(due, max_norm=12.9).fault(update, shard=1) == "its norm is 13, above fl.max_update_norm 12.9"


def test_without_a_limit_any_update_is_taken_whose_sums_do_not_overflow() -> None:
    due = replace(_due(federate(FedAvg(), {})), max_norm=None)

    def of_length(norm: float) -> ClientUpdate:
        honest = _honest(due)
        tensors = dict(honest.tensors)
        name, first = next(iter(tensors.items()))
        tensors[name] = torch.full_like(first, norm / first.numel() ** 0.5)
        return replace(honest, tensors=tensors)

    assert due.fault(of_length(0.99e18), shard=SHARD) is None
    said = "its norm is 1.01e+18, above 1e+18: sums of such updates overflow"
    assert due.fault(of_length(1.01e18), shard=SHARD) == said
    assert str(due.fault(LIES["too long to square"][0](_honest(due)), shard=SHARD)).startswith("its norm is")


@pytest.mark.parametrize(
    ("quorum", "clients", "needed"),
    [(0.5, 5, 3), (0.5, 6, 3), (1.0, 7, 7), (0.07, 100, 7), (1e-9, 5, 1), (0.5, 1, 1)],
)
def test_a_quorum_is_rounded_up_to_whole_clients(quorum: float, clients: int, needed: int) -> None:
    trust = Trust(quorum)
    assert trust.needed(clients) == needed
    turned_away = [Rejection(client, "b is not finite") for client in range(clients)]
    trust.check(0, clients, turned_away[needed:])
    with pytest.raises(FedveilError):
        trust.check(0, clients, turned_away[needed - 1 :])


def test_too_few_updates_end_the_run_with_a_sentence_and_leave_the_state() -> None:
    liars = {0: "nan", 2: "shape", 3: "infinity", 5: "name"}
    simulation = Simulation(federate(FedAvg(), liars), SerialExecutor())
    before = simulation.state
    with pytest.raises(FedveilError) as caught:
        simulation.round()
    assert str(caught.value) == (
        "round 0: 2 of 6 clients' updates can be trusted, and fl.quorum 0.5 asks for 3; rejected: client 0 (head.bias is"
        " not finite), client 2 (head.bias has the shape (2,), not (3,)), client 3 (head.bias is not finite) and 1 more"
    )
    assert simulation.state is before


def test_a_rule_that_lacks_clients_says_which_were_turned_away() -> None:
    with pytest.raises(FedveilError) as caught:
        one_round(federate(Krum(byzantine=1), {2: "nan", 4: "nan"}))
    assert str(caught.value).startswith(
        "round 0 without 2 rejected update(s), client 2 (head.bias is not finite), client 4 (head.bias is not finite):"
        " strategy krum: 4 updates; byzantine 1 and keep 1 need at least 5"
    )


@pytest.mark.parametrize(
    ("key", "value"), [("quorum", 0), ("quorum", 1.1), ("quorum", math.nan), ("max_norm", 0), ("max_norm", math.inf)]
)
def test_settings_that_make_no_sense_are_refused(key: str, value: float) -> None:
    with pytest.raises(SettingError, match=key):
        Trust(**{key: value})


def test_many_rejections_are_counted() -> None:
    assert listed([Rejection(client, "why") for client in (1, 2, 3, 4, 9)]) == (
        "client 1 (why), client 2 (why), client 3 (why) and 2 more"
    )
