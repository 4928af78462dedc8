import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import ClientUpdate, UpdateKind
from fedveil.fl.strategies import (
    STRATEGIES,
    FedAdam,
    FedAvg,
    FedProx,
    FedSGD,
    Krum,
    Median,
    Strategy,
    Totals,
    TrimmedMean,
)

WEIGHTS = {"w": torch.tensor([1.0, 2.0]), "mean": torch.tensor([0.5])}
MEAN_RULES: list[Strategy] = [FedSGD(), FedAvg(), FedProx(), FedAdam()]
ROBUST_RULES: list[Strategy] = [Median(), TrimmedMean(), Krum(byzantine=1)]
seeds = st.integers(0, 2**31)
numbers = st.floats(-100, 100, width=32)


def update(values: Sequence[float], buffer: float = 0.0, examples: int = 1) -> ClientUpdate:
    return ClientUpdate(
        tensors={"w": torch.tensor(values)},
        buffers={"mean": torch.tensor([buffer])},
        examples=examples,
        kind=UpdateKind.DELTA,
        local_steps=1,
        learning_rate=0.1,
    )


def random_updates(seed: int, count: int) -> list[ClientUpdate]:
    stream = torch.Generator().manual_seed(seed)
    values = torch.randn(count, 3, generator=stream).tolist()
    return [update(v[:2], v[2], examples=1 + i) for i, v in enumerate(values)]


def total(updates: Sequence[ClientUpdate]) -> Totals:
    result = Totals.of(updates[0])
    for one in updates[1:]:
        result = result + Totals.of(one)
    return result


def step(strategy: Strategy, updates: Sequence[ClientUpdate]) -> dict[str, Tensor]:
    totals = None if strategy.needs_single_updates else total(updates)
    return strategy.step(WEIGHTS, strategy.init(WEIGHTS), totals, updates)[0]


def assert_close(actual: dict[str, Tensor], w: Sequence[float], mean: float) -> None:
    torch.testing.assert_close(actual, {"w": torch.tensor(w), "mean": torch.tensor([mean])})


def test_totals_weight_by_examples() -> None:
    both = Totals.of(update([1.0, 2.0], 3.0, examples=2)) + Totals.of(update([10.0, 0.0], 1.0, examples=3))
    assert (both.examples, both.updates) == (5, 2)
    assert both.tensors["w"].tolist() == [32.0, 4.0]
    assert both.buffers["mean"].tolist() == [9.0]


@given(seed=seeds, cut=st.integers(1, 6))
def test_partial_sums_add_up_to_the_whole(seed: int, cut: int) -> None:
    updates = random_updates(seed, 7)
    whole, parts = total(updates), total(updates[:cut]) + total(updates[cut:])
    assert (whole.examples, whole.updates) == (parts.examples, parts.updates)
    torch.testing.assert_close(parts.tensors, whole.tensors)
    torch.testing.assert_close(parts.buffers, whole.buffers)


def test_totals_of_different_models_do_not_add() -> None:
    other = ClientUpdate({"v": torch.zeros(1)}, 1, UpdateKind.DELTA, 1, 0.1)
    with pytest.raises(FedveilError, match="v, w on one side only"):
        Totals.of(update([0.0, 0.0])) + Totals.of(other)


@pytest.mark.parametrize("rule", [*MEAN_RULES, *ROBUST_RULES], ids=repr)
def test_weights_that_no_update_moves_stay_as_they_are(rule: Strategy) -> None:
    partial = ClientUpdate({"w": torch.ones(2)}, 1, UpdateKind.DELTA, 1, 0.1)
    new = step(rule, [partial] * 5)
    assert torch.equal(new["mean"], WEIGHTS["mean"])
    assert not torch.equal(new["w"], WEIGHTS["w"])


@pytest.mark.parametrize("rule", [FedAvg(), Median()], ids=repr)
def test_an_update_of_what_the_weights_lack_is_refused(rule: Strategy) -> None:
    other = ClientUpdate({"w": torch.zeros(2), "v": torch.zeros(2)}, 1, UpdateKind.DELTA, 1, 0.1)
    with pytest.raises(FedveilError, match="does not fit the weights: they lack v"):
        step(rule, [other])


def test_fedsgd_by_hand() -> None:
    # Mean gradient (1 * 4 + 3 * 0) / 4 = 1 and (1 * 0 + 3 * 8) / 4 = 6; buffer (1 * 1 + 3 * 5) / 4 = 4.
    new = step(FedSGD(server_lr=0.5), [update([4.0, 0.0], 1.0, examples=1), update([0.0, 8.0], 5.0, examples=3)])
    assert_close(new, [0.5, -1.0], 4.5)


def test_fedavg_by_hand() -> None:
    updates = [update([4.0, 0.0], 1.0, examples=1), update([0.0, 8.0], 5.0, examples=3)]
    assert_close(step(FedAvg(), updates), [2.0, 8.0], 4.5)
    # A server learning rate is for parameters, not for statistics.
    assert_close(step(FedAvg(server_lr=0.5), updates), [1.5, 5.0], 4.5)


@given(values=st.tuples(numbers, numbers), sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=6))
def test_fedavg_of_equal_updates_is_that_update(values: tuple[float, float], sizes: list[int]) -> None:
    new = step(FedAvg(), [update(values, 0.25, examples=size) for size in sizes])
    expected = WEIGHTS["w"] + torch.tensor(values)
    torch.testing.assert_close(new["w"], expected, rtol=1e-5, atol=1e-4)


def test_fedprox_is_fedavg_on_the_server_and_a_term_on_the_client() -> None:
    updates = random_updates(3, 4)
    torch.testing.assert_close(step(FedProx(mu=0.1), updates), step(FedAvg(), updates), rtol=0, atol=0)
    assert FedProx(mu=0.1).proximal == 0.1
    assert [rule.proximal for rule in (FedSGD(), FedAvg(), FedAdam(), Median(), Krum())] == [0.0] * 5


def test_fedadam_by_hand() -> None:
    rule = FedAdam(server_lr=0.5, beta1=0.5, beta2=0.75, tau=1.0)
    # Step 1, delta 2: m = 1, v = 0.75 * 1 + 0.25 * 4 = 1.75. Delta 0: m = 0, v = 0.75.
    new, state = rule.step(WEIGHTS, rule.init(WEIGHTS), total([update([2.0, 0.0], 1.0)]), [])
    assert_close(new, [1 + 0.5 * 1 / (math.sqrt(1.75) + 1), 2.0], 1.5)
    # Step 2, delta -4: m = 0.5 - 2 = -1.5, v = 1.3125 + 4 = 5.3125. Delta 1: m = 0.5, v = 0.8125.
    last, state = rule.step(new, state, total([update([-4.0, 1.0], 0.0)]), [])
    moves = [-0.5 * 1.5 / (math.sqrt(5.3125) + 1), 0.5 * 0.5 / (math.sqrt(0.8125) + 1)]
    assert_close(last, (new["w"] + torch.tensor(moves)).tolist(), 1.5)
    assert state["m.w"].tolist() == [-1.5, 0.5]
    assert state["v.w"].tolist() == [5.3125, 0.8125]


def test_fedadam_starts_at_tau_squared() -> None:
    state = FedAdam(tau=0.5).init({"w": torch.tensor([3.0])})
    assert {name: value.item() for name, value in state.items()} == {"m.w": 0.0, "v.w": 0.25}


@given(seed=seeds, size=st.floats(0.1, 1000))
def test_fedadam_moves_no_further_than_its_learning_rate_allows(seed: int, size: float) -> None:
    # |m| = (1 - beta1) |delta| and v >= (1 - beta2) delta^2, so |move| <= lr (1 - beta1) / sqrt(1 - beta2).
    delta = [size * x for x in torch.randn(2, generator=torch.Generator().manual_seed(seed)).tolist()]
    moved = step(FedAdam(server_lr=0.1), [update(delta)])["w"] - WEIGHTS["w"]
    assert moved.abs().max() <= 0.1 * 0.1 / math.sqrt(0.01) + 1e-6


def test_median_by_hand() -> None:
    odd = [update([1.0, -9.0], 3.0), update([5.0, 0.0], 1.0, examples=1000), update([2.0, 4.0], 2.0)]
    assert_close(step(Median(), odd), [3.0, 2.0], 2.5)
    even = [*odd, update([4.0, 1.0], 10.0)]
    assert_close(step(Median(), even), [1 + 3.0, 2 + 0.5], 0.5 + 2.5)


def test_trimmed_mean_by_hand() -> None:
    updates = [update([x, 1.0], x) for x in (0.0, 100.0, 3.0, 5.0, -70.0)]
    assert_close(step(TrimmedMean(trim=0.2), updates), [1 + 8 / 3, 3.0], 0.5 + 8 / 3)
    assert_close(step(TrimmedMean(trim=0.4), updates), [4.0, 3.0], 3.5)
    assert_close(step(TrimmedMean(trim=0.0), updates), [1 + 38 / 5, 3.0], 0.5 + 38 / 5)


@pytest.mark.parametrize(("trim", "clients", "cut"), [(0.1, 4, 1), (0.07, 100, 7), (0.1, 10, 1), (0.3, 10, 3)])
def test_trimmed_mean_rounds_up_to_whole_clients(trim: float, clients: int, cut: int) -> None:
    ordered = torch.arange(clients, dtype=torch.float32) ** 2
    assert TrimmedMean(trim=trim).centre(ordered) == ordered[cut : clients - cut].mean()


def test_trimmed_mean_that_leaves_none_says_so() -> None:
    with pytest.raises(FedveilError, match=r"trim 0\.1 cuts 1 of 2 updates on each side and leaves none"):
        step(TrimmedMean(), random_updates(0, 2))


@given(
    honest=st.lists(numbers, min_size=3, max_size=9),
    wild=st.one_of(st.floats(width=32), st.sampled_from([math.nan, math.inf, -math.inf])),
    rule=st.sampled_from([Median(), TrimmedMean(trim=0.1)]),
)
def test_one_outlier_cannot_leave_the_range_of_the_honest(honest: list[float], wild: float, rule: Strategy) -> None:
    change = step(rule, [update([x, x], x) for x in [*honest, wild]])["w"] - WEIGHTS["w"]
    assert change.min() >= min(honest) - 1e-4
    assert change.max() <= max(honest) + 1e-4


def test_krum_by_hand() -> None:
    # n = 5, f = 1: a score sums the 2 smallest squared distances. Positions 0, 1, 3, 4.5, 100 score
    # 1 + 9, 1 + 4, 2.25 + 4, 2.25 + 12.25, ...: the second wins, and the third is next.
    updates = [update([x, 0.0], x) for x in (0.0, 1.0, 3.0, 4.5, 100.0)]
    assert_close(step(Krum(byzantine=1), updates), [2.0, 2.0], 1.5)
    assert_close(step(Krum(byzantine=1, keep=2), updates), [3.0, 2.0], 2.5)


def test_krum_counts_parameters_and_not_buffers() -> None:
    updates = [update([x, 0.0], 1000 * x) for x in (0.0, 1.0, 3.0, 4.5, 100.0)]
    assert_close(step(Krum(byzantine=1), updates), [2.0, 2.0], 1000.5)


@given(seed=seeds, wild=st.sampled_from([50.0, -1e6, math.inf, math.nan]), place=st.integers(0, 6))
def test_krum_picks_an_inlier(seed: int, wild: float, place: int) -> None:
    updates = random_updates(seed, 6)
    updates.insert(place, update([wild, wild], wild))
    change = step(Krum(byzantine=1), updates)["w"] - WEIGHTS["w"]
    assert any(torch.allclose(change, u.tensors["w"], atol=1e-5) for i, u in enumerate(updates) if i != place)


@given(seed=seeds)
def test_krum_agrees_with_a_plain_loop(seed: int) -> None:
    updates = random_updates(seed, 8)
    points = [u.tensors["w"].double() for u in updates]
    scores = [
        sum(sorted(float(((p - q) ** 2).sum()) for j, q in enumerate(points) if j != i)[: 8 - 2 - 2])
        for i, p in enumerate(points)
    ]
    best = updates[scores.index(min(scores))].tensors["w"]
    torch.testing.assert_close(step(Krum(byzantine=2), updates)["w"], WEIGHTS["w"] + best)


@pytest.mark.parametrize(
    ("rule", "clients", "needed"),
    [(Krum(), 2, 3), (Krum(byzantine=1), 4, 5), (Krum(byzantine=1, keep=6), 6, 7)],
)
def test_krum_with_too_few_clients_says_how_many(rule: Krum, clients: int, needed: int) -> None:
    with pytest.raises(FedveilError, match=rf"{clients} updates; .* need at least {needed} \(2 \* byzantine \+ 3"):
        step(rule, random_updates(0, clients))


@given(seed=seeds, rule=st.sampled_from(MEAN_RULES + ROBUST_RULES), order=st.permutations(range(6)))
def test_the_order_of_clients_does_not_matter(seed: int, rule: Strategy, order: list[int]) -> None:
    updates = random_updates(seed, 6)
    torch.testing.assert_close(step(rule, [updates[i] for i in order]), step(rule, updates))


@pytest.mark.parametrize("rule", MEAN_RULES + ROBUST_RULES, ids=repr)
def test_a_step_changes_none_of_its_arguments(rule: Strategy) -> None:
    updates, weights = random_updates(1, 6), {name: value.clone() for name, value in WEIGHTS.items()}
    state = rule.init(weights)
    kept = {name: value.clone() for name, value in state.items()}
    rule.step(weights, state, total(updates), updates)
    torch.testing.assert_close(weights, WEIGHTS, rtol=0, atol=0)
    torch.testing.assert_close(state, kept, rtol=0, atol=0)
    torch.testing.assert_close(
        [u.tensors["w"] for u in updates], [u.tensors["w"] for u in random_updates(1, 6)], rtol=0, atol=0
    )


@pytest.mark.parametrize("rule", MEAN_RULES + ROBUST_RULES, ids=repr)
def test_a_round_without_updates_is_an_error(rule: Strategy) -> None:
    with pytest.raises(FedveilError, match="without any update"):
        rule.step(WEIGHTS, rule.init(WEIGHTS), None, [])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("fedprox", {"mu": -0.1}),
        ("fedadam", {"beta1": 1.0}),
        ("fedadam", {"beta2": -0.1}),
        ("fedadam", {"tau": 0.0}),
        ("trimmed_mean", {"trim": 0.5}),
        ("krum", {"byzantine": -1}),
        ("krum", {"keep": 0}),
    ],
)
def test_impossible_settings_are_refused(name: str, arguments: dict[str, float]) -> None:
    with pytest.raises(FedveilError, match=f"strategy {name}: .*{next(iter(arguments))}"):
        STRATEGIES[name](**arguments)


def test_names_and_kinds() -> None:
    assert list(STRATEGIES) == ["fedadam", "fedavg", "fedprox", "fedsgd", "krum", "median", "trimmed_mean"]
    assert [n for n in STRATEGIES if STRATEGIES[n].needs_single_updates] == ["krum", "median", "trimmed_mean"]
    assert [n for n in STRATEGIES if STRATEGIES[n].local_kind is UpdateKind.GRADIENT] == ["fedsgd"]
