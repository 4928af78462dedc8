from __future__ import annotations

from fedveil.orchestrator.config import check
from fedveil.orchestrator.run.seeds import mean_metrics, one_per_seed, seeded_name


def test_an_experiment_is_repeated_once_per_seed() -> None:
    several = check({"experiment": "x", "seeds": [4, 2]})
    assert [(one.seed, one.seeds) for one in one_per_seed(several)] == [(4, []), (2, [])]
    assert one_per_seed(several)[1] == check({"experiment": "x", "seed": 2})
    (alone,) = one_per_seed(check({"experiment": "x", "seed": 7}))
    assert alone.seed == 7


def test_names_carry_the_seed_where_there_are_several() -> None:
    assert [seeded_name("none", 1, of=count) for count in (1, 2)] == ["none", "none-seed1"]


def test_the_mean_of_a_metric_is_over_the_seeds_that_have_it() -> None:
    assert mean_metrics([{"a": 1.0, "b": 5.0}, {"a": 4.0}]) == {"a": 2.5, "b": 5.0}
    assert mean_metrics([]) == {}
