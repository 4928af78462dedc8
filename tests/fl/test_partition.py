import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedveil.fl.errors import FedveilError
from fedveil.fl.partition import PARTITIONS, Dirichlet, Iid, Partition, Shards

label_tensors = st.lists(st.integers(0, 4), min_size=24, max_size=80).map(torch.tensor)
rules = st.sampled_from([Iid(), Dirichlet(alpha=1.0, min_size=1), Dirichlet(alpha=50.0), Shards(5), Shards(6)])
balanced = torch.arange(10).repeat_interleave(100)


def histogram(labels: Tensor, part: Tensor, classes: int = 10) -> Tensor:
    return torch.bincount(labels[part], minlength=classes)


def skew(rule: Partition) -> float:
    """Mean share of a client's commonest class."""
    counts = [histogram(balanced, part) for part in rule.split(balanced, 10, seed=0)]
    return sum(float(c.max() / c.sum()) for c in counts) / len(counts)


@given(labels=label_tensors, clients=st.integers(1, 4), rule=rules, seed=st.integers(0, 2**32))
def test_parts_are_disjoint_nonempty_ascending_and_cover_all(
    labels: Tensor, clients: int, rule: Partition, seed: int
) -> None:
    parts = rule.split(labels, clients, seed)
    assert len(parts) == clients
    assert all(part.dtype == torch.int64 and len(part) > 0 for part in parts)
    assert all(torch.equal(part, part.sort().values) for part in parts)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(len(labels)))


@given(rule=rules, seed=st.integers(0, 2**32))
def test_a_split_is_a_pure_function_of_its_arguments(rule: Partition, seed: int) -> None:
    before = torch.get_rng_state()
    first, second = rule.split(balanced, 5, seed), rule.split(balanced, 5, seed)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("rule", [Iid(), Dirichlet(), Shards()], ids=repr)
def test_another_seed_gives_another_split(rule: Partition) -> None:
    first, second = rule.split(balanced, 10, 0), rule.split(balanced, 10, 1)
    assert any(a.tolist() != b.tolist() for a, b in zip(first, second, strict=True))


def test_iid_sizes_differ_by_at_most_one() -> None:
    sizes = sorted(len(part) for part in Iid().split(torch.zeros(11, dtype=torch.int64), 3, seed=4))
    assert sizes == [3, 4, 4]


def test_iid_shuffles() -> None:
    assert all((histogram(balanced, part) > 0).all() for part in Iid().split(balanced, 10, seed=0))


def test_smaller_alpha_is_more_skewed() -> None:
    assert skew(Dirichlet(alpha=0.1)) > skew(Dirichlet(alpha=1.0)) > skew(Dirichlet(alpha=100.0)) > 0.1
    assert skew(Dirichlet(alpha=100.0)) < 0.2


@given(seed=st.integers(0, 2**32), min_size=st.integers(1, 20))
@settings(max_examples=30)
def test_dirichlet_keeps_the_least_size(seed: int, min_size: int) -> None:
    assert min(len(part) for part in Dirichlet(alpha=0.5, min_size=min_size).split(balanced, 10, seed)) >= min_size


def test_dirichlet_deals_rare_classes_to_all_clients_alike() -> None:
    # Fifty classes of one example each: rounding must not hand them all to one client.
    sizes = [len(part) for part in Dirichlet(alpha=10.0).split(torch.arange(50), 5, seed=0)]
    assert min(sizes) >= 4
    assert max(sizes) <= 18


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (Dirichlet(alpha=0.001, min_size=50), "raise alpha, or lower clients or min_size"),
        (Dirichlet(min_size=101), "10 clients with 1000 examples have 100 each at most"),
    ],
    ids=repr,
)
def test_dirichlet_that_cannot_be_met_says_so(rule: Dirichlet, said: str) -> None:
    with pytest.raises(FedveilError, match=said):
        rule.split(balanced, 10, seed=0)


def test_shards_of_equal_classes_are_those_of_mcmahan() -> None:
    parts = Shards(classes_per_client=2).split(balanced, 10, seed=0)
    for part in parts:
        counts = histogram(balanced, part)
        # Twenty shards of fifty, two on each client.
        assert counts[counts > 0].tolist() in ([50, 50], [100])


def test_shards_of_unequal_classes_stay_pure() -> None:
    labels = torch.tensor([0] * 90 + [1] * 10)
    parts = Shards(classes_per_client=1).split(labels, 10, seed=0)
    counts = sorted(histogram(labels, part, 2).tolist() for part in parts)
    assert counts == [[0, 10]] + [[10, 0]] * 9


@given(labels=label_tensors, clients=st.integers(5, 10), per_client=st.integers(1, 2), seed=st.integers(0, 99))
def test_no_client_has_more_classes_than_it_may(labels: Tensor, clients: int, per_client: int, seed: int) -> None:
    parts = Shards(classes_per_client=per_client).split(labels, clients, seed)
    assert all(len(set(labels[part].tolist())) <= per_client for part in parts)
    assert all(len(part) >= per_client for part in parts)


@pytest.mark.parametrize(("clients", "per_client"), [(4, 2), (3, 3), (501, 2)])
def test_shards_that_cannot_be_dealt_say_what_is_allowed(clients: int, per_client: int) -> None:
    with pytest.raises(FedveilError, match=r"shards; allowed: 10 \(the classes\) to 1000 \(the examples\)"):
        Shards(classes_per_client=per_client).split(balanced, clients, seed=0)


@pytest.mark.parametrize("clients", [0, -1, 1001])
def test_impossible_numbers_of_clients_are_refused(clients: int) -> None:
    with pytest.raises(FedveilError, match=f"{clients} clients for 1000 examples"):
        Iid().split(balanced, clients, seed=0)


@pytest.mark.parametrize(
    ("rule", "arguments"),
    [
        ("dirichlet", {"alpha": 0.0}),
        ("dirichlet", {"alpha": float("nan")}),
        ("dirichlet", {"alpha": float("inf")}),
        ("dirichlet", {"min_size": 0}),
        ("shards", {"classes_per_client": 0}),
    ],
)
def test_impossible_settings_are_refused(rule: str, arguments: dict[str, float]) -> None:
    with pytest.raises(FedveilError, match=f"partition {rule}: {next(iter(arguments))} is"):
        PARTITIONS[rule](**arguments)


def test_names() -> None:
    assert list(PARTITIONS) == ["dirichlet", "iid", "shards"]
