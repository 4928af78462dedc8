from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fedveil.orchestrator.run.names import (
    claimed,
    earlier_owners,
    fitted,
    panel_names,
    release_claims,
    run_token,
    trial_name,
)
from fedveil.orchestrator.run.paths import ExperimentPaths


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


def test_the_only_entry_of_a_defence_goes_by_its_name_and_dial() -> None:
    panel = [
        {"defense": {"name": "latent", "k": 5, "steps": 60, "random_networks": 4}},
        {"defense": {"name": "latent_autoencoder", "steps": 60}},
        {"defense": {"name": "not_registered", "strength": 2.0, "steps": 60}},
    ]
    assert panel_names(panel) == ["latent_k=5", "latent_autoencoder", "not_registered_strength=2"]


def test_equal_entries_are_numbered() -> None:
    same = {"defense": {"name": "latent", "strength": 1.0}}
    assert panel_names([same, same]) == ["latent_strength=1", "latent_strength=1_2"]


def test_a_name_too_long_for_a_folder_is_cut_and_stays_distinct(tmp_path: Path) -> None:
    """With a seed and a number behind it, too, and counted in bytes."""
    many = [{"defense": [{"name": "top_k", "keep": 0.1}] * 40 + [last]} for last in ("none", "latent", "latent")]
    names = panel_names(many)
    assert len(set(names)) == 3
    assert all(name.startswith("top_k_") for name in names)
    for name in (*names, trial_name({"data.name": "ü" * 300}), fitted("+".join(["latent"] * 60))):
        for _ in range(2):
            ExperimentPaths(tmp_path / "runs" / "e").new_trial(f"{name}-seed{2**63 - 1}")
    assert fitted("x" * 200) == "x" * 200
    assert fitted("x" * 201) != fitted("x" * 202)


def test_runs_of_a_sweep_are_told_apart_by_name_and_seed_and_found_again() -> None:
    trials = list(itertools.product(["sweep", "later"], ["none", "none-2"], [0, 1]))
    tokens = [run_token(*trial) for trial in trials]
    assert len(set(tokens)) == 8
    assert tokens[0] == run_token("sweep", "none", 0)


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


def test_a_name_is_one_trials_own_also_where_many_claim_it_at_once_and_again(tmp_path: Path) -> None:
    owners = [f"search/{number}" for number in range(20)]
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda owner: claimed(tmp_path / "names", "rate=0.1", owner), owners))
    assert sorted(names) == sorted(["rate=0.1", *(f"rate=0.1-{number}" for number in range(2, 21))])
    assert [claimed(tmp_path / "names", "rate=0.1", owner) for owner in owners] == names
    assert claimed(tmp_path / "names", "rate=0.2", owners[3]) == "rate=0.2"


def test_a_name_whose_trial_tune_forgot_is_its_successors_who_learns_of_it(tmp_path: Path) -> None:
    names = tmp_path / "names"
    for owner in ("search/old_0", "panel/old_0"):
        claimed(names, "rate=0.1", owner)
    for successor in ("search/new_0", "search/newer_0"):
        release_claims(names, "search/")
        assert claimed(names, "rate=0.1", successor) == "rate=0.1"
    assert earlier_owners(names, "rate=0.1") == ["search/old_0", "search/new_0"]
    assert claimed(names, "rate=0.1", "panel/old_0") == "rate=0.1-2"
    assert earlier_owners(names, "rate=0.1-2") == []
    release_claims(tmp_path / "none", "search/")
