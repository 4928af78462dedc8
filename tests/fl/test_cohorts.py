"""Who takes part in a round, and how a cohort is cut into pieces of work."""

from dataclasses import replace
from typing import Any

import torch
from federations import SIZES, federate, rounds, same_bits
from hypothesis import given
from hypothesis import strategies as st

from fedveil.fl.executor import Handle
from fedveil.fl.rounds import Client, client_chunks, draw_cohort
from fedveil.fl.strategies import FedAvg

torch.set_num_threads(1)


class Locked(Handle[Any]):
    """A handle that nobody may open."""

    def get(self) -> Any:
        raise AssertionError("this client does not take part")


def test_the_cut_into_chunks_changes_rounding_at_most() -> None:
    states = [rounds(federate(FedAvg(), chunks=chunks), 1)[0] for chunks in (1, 2, 6)]
    for state in states[1:]:
        for name, tensor in states[0].weights.items():
            torch.testing.assert_close(state.weights[name], tensor, atol=1e-6, rtol=1e-5)


@given(st.lists(st.integers(0, 99), min_size=1, max_size=40), st.integers(1, 50))
def test_a_cohort_is_cut_in_order_into_even_pieces(cohort: list[int], count: int) -> None:
    pieces = client_chunks(cohort, count)
    assert [client for piece in pieces for client in piece] == cohort
    assert len(pieces) == min(count, len(cohort))
    sizes = [len(piece) for piece in pieces]
    assert max(sizes) - min(sizes) <= 1


def test_a_cut_worked_by_hand() -> None:
    assert client_chunks([0, 1, 2, 3, 4, 5, 6], 3) == [(0, 1), (2, 3), (4, 5, 6)]


def test_cohorts_are_drawn_evenly_and_anew_for_each_round() -> None:
    federation = federate(FedAvg(), cohort=2)
    drawn = [draw_cohort(federation, number) for number in range(600)]
    assert all(len(cohort) == 2 and cohort == sorted(set(cohort)) for cohort in drawn)
    assert drawn == [draw_cohort(federation, number) for number in range(600)]
    assert drawn != [draw_cohort(replace(federation, seed=1), number) for number in range(600)]
    counts = torch.bincount(torch.tensor(drawn).flatten(), minlength=len(SIZES))
    # Binomial(600, 1/3): mean 200, standard deviation 11.5.
    assert counts.min() > 150
    assert counts.max() < 250


def test_the_whole_federation_is_a_cohort_too() -> None:
    assert draw_cohort(federate(FedAvg()), 3) == list(range(len(SIZES)))


def test_only_the_cohort_trains() -> None:
    federation = federate(FedAvg(), cohort=2)
    cohort = draw_cohort(federation, 0)
    locked: Handle[Any] = Locked(None)
    clients = tuple(
        c if c.number in cohort else Client(c.number, c.examples, locked, locked) for c in federation.clients
    )
    state, _ = rounds(replace(federation, clients=clients), 1)
    assert same_bits(state, rounds(federation, 1)[0])
