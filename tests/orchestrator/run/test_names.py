from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fedveil.orchestrator.run.names import panel_names, trial_name


def test_trial_names_say_what_is_varied() -> None:
    assert trial_name({"defense.strength": 1.23456, "fl.rounds": 3}) == "strength=1.235_rounds=3"
    assert trial_name({"defense": ["latent", {"name": "top_k", "keep": 0.1}]}) == "latent_top_k_keep=0.1"


def test_an_option_that_all_entries_of_a_defence_share_is_left_out() -> None:
    panel = [
        {"defense": "none"},
        {"defense": {"name": "latent", "strength": 1.0, "steps": 60}},
        {"defense": {"name": "latent", "strength": 2.0, "steps": 60}},
        {"defense": {"name": "pixel_noise", "strength": 0.1}},
        {"defense": {"name": "latent_noise", "strength": 1.0, "public_steps": 9}},
        {"defense": {"name": "latent_noise", "strength": 1.0}},
    ]
    assert panel_names(panel) == [
        "none",
        "latent_strength=1",
        "latent_strength=2",
        "pixel_noise_strength=0.1",
        "latent_noise_public_steps=9",
        "latent_noise",
    ]


def test_equal_entries_are_numbered() -> None:
    same = {"defense": {"name": "latent", "strength": 1.0}}
    assert panel_names([same, same]) == ["latent_strength=1", "latent_strength=1_2"]


_parts = st.one_of(
    st.sampled_from(["none", "latent"]),
    st.fixed_dictionaries({"name": st.sampled_from(["latent", "top_k"])}, optional={"strength": st.integers(1, 3)}),
)
_overrides = st.fixed_dictionaries(
    {}, optional={"defense": st.one_of(_parts, st.lists(_parts, max_size=2)), "fl.rounds": st.integers(1, 3)}
)


@given(st.lists(_overrides, max_size=6))
def test_names_are_as_many_as_entries_and_distinct(panel: list[dict[str, Any]]) -> None:
    names = panel_names(panel)
    assert len(names) == len(set(names)) == len(panel)
