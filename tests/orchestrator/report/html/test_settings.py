from __future__ import annotations

import doctest

from hypothesis import given
from hypothesis import strategies as st

from fedveil.orchestrator.report.html import settings, words
from fedveil.orchestrator.report.html.settings import flat, own, shared, values_of

FILES = st.lists(
    st.fixed_dictionaries(
        {"seed": st.integers(0, 2), "fl": st.fixed_dictionaries({"rounds": st.integers(0, 2), "clients": st.just(3)})},
        optional={"defense": st.lists(st.sampled_from("ab"))},
    ),
    min_size=1,
    max_size=4,
)


@given(FILES)
def test_what_all_share_and_its_own_make_up_a_trials_settings(files: list[dict[str, object]]) -> None:
    common = shared(files)
    for file in files:
        assert {**flat(common), **own(file, common)} == flat(file)
    for key in flat(common):
        assert len(values_of(files, key)) == 1


def test_nothing_is_shared_by_none() -> None:
    assert shared([]) == {}
    assert own({"a": {}}, {}) == {"a": {}}


def test_examples() -> None:
    for module in (settings, words):
        failures, tried = doctest.testmod(module)
        assert failures == 0
        assert tried > 0
