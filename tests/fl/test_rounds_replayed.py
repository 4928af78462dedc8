"""The same bits in any order, after any loss and from a saved state; and what clients keep between rounds."""

import io
from dataclasses import replace

import pytest
import torch
from federations import SIZES, Delayed, Noise, ShufflingExecutor, federate, rounds, same_bits

from fedveil.fl.executor import SerialExecutor
from fedveil.fl.hooks import Memory, NoHooks, Turn
from fedveil.fl.messages import ClientUpdate
from fedveil.fl.models import build_model
from fedveil.fl.rounds import ServerState, Simulation, draw_cohort
from fedveil.fl.seeding import torch_stream
from fedveil.fl.strategies import FedAdam, FedAvg, FedProx, FedSGD, Krum, Median, Strategy, TrimmedMean
from fedveil.fl.training import local_update

torch.set_num_threads(1)

STRATEGIES: list[Strategy] = [
    FedAvg(),
    FedSGD(server_lr=0.5),
    FedProx(mu=0.3),
    FedAdam(),
    Median(),
    TrimmedMean(trim=0.2),
    Krum(byzantine=1, keep=2),
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_neither_order_nor_slot_nor_replay_changes_a_bit(strategy: Strategy) -> None:
    federation = federate(strategy, hooks=[Noise(), Delayed()] * len(SIZES), norm="batch", cohort=5)
    serial, _ = rounds(federation, 2)
    assert not torch.equal(serial.weights["head.weight"], ServerState.initial(federation).weights["head.weight"])
    for seed in range(3):
        executor = ShufflingExecutor(seed)
        state, reports = rounds(federation, 2, executor=executor)
        assert same_bits(state, serial)
        assert [r.failed_clients for r in reports] == [len(share.numbers) for share in executor.lost]


def test_a_client_that_is_lost_twice_counts_once() -> None:
    federation = federate(FedAvg(), chunks=6)
    _, [report] = rounds(federation, 1, executor=ShufflingExecutor(0, deaths=2))
    assert report.failed_clients == 1


@pytest.mark.parametrize("strategy", [FedAvg(), FedAdam(), FedSGD()], ids=repr)
def test_a_run_goes_on_from_a_saved_state_as_if_never_stopped(strategy: Strategy) -> None:
    federation = federate(strategy, hooks=[Noise(), Delayed()] * len(SIZES), norm="batch", cohort=4)
    straight, _ = rounds(federation, 4)
    half, _ = rounds(federation, 2)
    disk = io.BytesIO()
    torch.save(vars(half), disk)
    disk.seek(0)
    resumed = ServerState(**torch.load(disk, weights_only=True))
    assert same_bits(rounds(federation, 2, state=resumed)[0], straight)


def test_what_a_client_keeps_is_there_in_its_next_turn_and_only_there() -> None:
    federation = federate(FedSGD(server_lr=1e-9), hooks=[Delayed()] * len(SIZES), cohort=2, batch_size=64)
    simulation = Simulation(federation, SerialExecutor())
    assert simulation.state.memories == {}
    seen: set[int] = set()
    for number in range(6):
        before = simulation.state.memories
        simulation.round()
        after = simulation.state.memories
        seen |= set(draw_cohort(federation, number))
        assert set(after) == seen
        rest = set(before) - set(draw_cohort(federation, number))
        assert all(after[client] is before[client] for client in rest)
    # With the server's weights where they were, half of the same gradient is kept each time: all of it is sent.
    client = federation.clients[0]
    stream = torch_stream(0, "any")
    slot = build_model(federation.model)
    arguments = (slot, simulation.state.weights, client.shard.get())
    first = local_update(*arguments, Delayed(), federation.training, stream)
    second = local_update(*arguments, Delayed(), federation.training, stream, memory=first.memory)
    plain = local_update(*arguments, NoHooks(), federation.training, stream)
    for name, tensor in plain.update.tensors.items():
        torch.testing.assert_close(first.update.tensors[name] * 2, tensor)
        torch.testing.assert_close(second.update.tensors[name], tensor)


def test_a_client_whose_update_is_rejected_keeps_what_it_had() -> None:
    class Broken(Delayed):
        def carry(self, update: ClientUpdate, turn: Turn, stream: torch.Generator) -> tuple[ClientUpdate, Memory]:
            sent, memory = super().carry(update, turn, stream)
            return (replace(sent, examples=0), memory) if turn.memory else (sent, memory)

    federation = federate(FedAvg(), hooks=[Broken(), *[NoHooks()] * (len(SIZES) - 1)])
    once, _ = rounds(federation, 1)
    twice, [report] = rounds(federation, 1, state=once)
    assert [rejection.client for rejection in report.rejections] == [0]
    assert set(twice.memories) == {0}
    assert twice.memories[0] is once.memories[0]


def test_a_round_leaves_the_state_before_it_alone() -> None:
    federation = federate(FedAdam(), norm="batch")
    before, _ = rounds(federation, 1)
    copy = ServerState(
        before.round,
        {n: t.clone() for n, t in before.weights.items()},
        {n: t.clone() for n, t in before.optimizer.items()},
    )
    rounds(federation, 1, state=before)
    assert same_bits(before, copy)
