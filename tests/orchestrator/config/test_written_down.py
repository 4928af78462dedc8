from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedveil.attacks import ATTACKS, Adaptive, DeepLeakage
from fedveil.defense import DEFENSES
from fedveil.defense.inverse.learnt import InverseTraining
from fedveil.fl.augmentation import AUGMENTATIONS
from fedveil.fl.models import MODELS
from fedveil.fl.optimizers import OPTIMIZERS
from fedveil.fl.strategies import STRATEGIES
from fedveil.orchestrator.config import ConfigError, Experiment, check, load_experiment
from fedveil.orchestrator.config.combinations import conflicts
from fedveil.orchestrator.config.options import build, options_of
from fedveil.orchestrator.config.yaml import dump, parse
from fedveil.orchestrator.tracking import ImagePolicy


def test_the_refusal_survives_the_way_out_of_a_worker() -> None:
    refusal = ConfigError(["fl.rounds: one", "seed: two", "seed: two"])
    again = pickle.loads(pickle.dumps(refusal))  # noqa: S301 - made here
    assert again.lines == refusal.lines == ("fl.rounds: one", "seed: two")
    assert str(again) == "fl.rounds: one\nseed: two"


def _setting(registry: Any, key: str = "name", leave_out: str | None = None) -> st.SearchStrategy[Any]:
    """A name, alone or with some of its options at their defaults."""

    def with_options(name: str) -> st.SearchStrategy[dict[str, Any]]:
        options = options_of(registry[name])
        keys = st.sets(st.sampled_from(sorted(options))) if options else st.just(set())
        return keys.map(lambda chosen: {key: name, **{k: options[k] for k in sorted(chosen)}})

    return st.sampled_from(sorted(set(registry) - {leave_out})).flatmap(lambda name: st.just(name) | with_options(name))


EXPERIMENTS = st.fixed_dictionaries(
    {"experiment": st.from_regex(r"[a-z][a-z0-9_.-]{0,10}", fullmatch=True).filter(lambda name: name != "cache")},
    optional={
        "data": st.fixed_dictionaries(
            {},
            optional={
                "name": st.sampled_from(["mni152", "npz:x.npz"]),
                "size": st.none() | st.integers(8, 512),
                "public_fraction": st.floats(0, 0.5, exclude_min=True),
                "auxiliary_fraction": st.floats(0, 0.5, exclude_min=True, exclude_max=True),
                "pool": st.booleans(),
                "partition": st.sampled_from(["iid", {"kind": "dirichlet", "alpha": 0.1}]),
            },
        ),
        "model": st.fixed_dictionaries(
            {}, optional={"name": st.sampled_from(sorted(MODELS)), "width": st.integers(1, 64)}
        ),
        "fl": st.fixed_dictionaries(
            {"clients": st.integers(20, 100)},
            optional={
                "strategy": _setting(STRATEGIES),
                "learning_rate": st.floats(1e-6, 10),
                "rounds": st.integers(1, 9),
                "augmentation": st.lists(st.sampled_from(sorted(AUGMENTATIONS)), unique=True),
                "replay_public": st.floats(0, 1, exclude_max=True),
                "quorum": st.floats(0, 1, exclude_min=True),
                "max_update_norm": st.none() | st.floats(1e-6, 1e6),
            },
        )
        | st.fixed_dictionaries(
            {"clients": st.just(20), "optimizer": _setting(OPTIMIZERS)},
            optional={"local_steps": st.integers(1, 99)},
        ),
        "defense": _setting(DEFENSES) | st.lists(_setting(DEFENSES, leave_out="none"), min_size=1, max_size=3),
        "audit": st.fixed_dictionaries(
            {},
            optional={
                "rounds": st.lists(st.sampled_from([0, "middle", "last"]), min_size=1),
                "attacks": st.lists(
                    st.sampled_from(sorted(ATTACKS)) | st.just({"name": "adaptive", "inverse": {"steps": 5}})
                ),
                "balanced": st.booleans(),
            },
        ),
        "tracking": st.fixed_dictionaries({}, optional={"images": st.sampled_from([None, "none", "grid", "all"])}),
        "search": st.just({"panel": [{"fl.rounds": 3}], "objectives": {"utility/auc": "max"}}),
    },
)
SEED = st.integers(0, 2**63 - 1)
SEEDS = st.fixed_dictionaries({"seed": SEED}) | st.fixed_dictionaries(
    {"seeds": st.lists(SEED, min_size=1, unique=True)}
)


@given(EXPERIMENTS, st.just({}) | SEEDS)
@settings(max_examples=60)
def test_an_experiment_written_down_is_the_same_experiment(raw: dict[str, Any], seeds: dict[str, Any]) -> None:
    # Some defences ask for one way to sample, or can't have a bound on norms: each part is in order, the pair is refused.
    assume(not conflicts(Experiment.model_validate(raw | seeds)))
    experiment = check(raw | seeds)
    written = experiment.model_dump(mode="json")
    assert check(written) == experiment
    assert check(parse(dump(written))) == experiment
    # Building it leaves nothing behind that a second build would see.
    assert experiment.build_defense() == check(written).build_defense()
    assert experiment.audit.build_attacks() == check(written).audit.build_attacks()
    assert experiment.fl.build_optimizer() == check(written).fl.build_optimizer()


def test_what_is_written_down_names_the_seed_or_the_seeds() -> None:
    assert "seeds" not in check({"experiment": "x"}).model_dump()
    several = check({"experiment": "x", "seeds": [5, 2]})
    assert several.model_dump()["seeds"] == [5, 2]
    assert "seed" not in several.model_dump()
    assert check({"experiment": "x", "seed": 5, "seeds": []}) == check({"experiment": "x", "seed": 5})


def test_attacks_with_options_and_the_baseline_first() -> None:
    attacks = [
        "adaptive",
        "baseline",
        {"name": "adaptive", "inversion": {"name": "deep_leakage", "steps": 50}, "inverse": {"steps": 800}},
    ]
    audit = check({"experiment": "x", "audit": {"attacks": attacks}}).audit
    assert audit.attack_labels() == ["baseline", "adaptive", "adaptive_2"]
    assert audit.build_attacks()[1:] == [
        Adaptive(),
        Adaptive(inversion=DeepLeakage(steps=50), inverse=InverseTraining(steps=800)),
    ]


def test_a_mapping_is_as_good_as_a_file_and_stays_as_it_was() -> None:
    given = {"experiment": "x", "fl": {"rounds": 3}}
    experiment, raw = load_experiment(given, ["fl.rounds=4"])
    assert (experiment.fl.rounds, raw["fl"], given["fl"]) == (4, {"rounds": 4}, {"rounds": 3})


def test_images_keep_their_type() -> None:
    experiment = check({"experiment": "x", "tracking": {"images": "all"}})
    assert experiment.tracking.images is ImagePolicy.ALL
    assert check({"experiment": "x"}).tracking.images is None


@pytest.mark.parametrize("name", sorted(DEFENSES))
def test_options_are_the_fields_that_the_repr_shows(name: str) -> None:
    cls = DEFENSES[name]
    made = build(cls, {})
    shown = ", ".join(f"{key}={value!r}" for key, value in options_of(cls).items())
    assert repr(made) == f"{cls.__name__}({shown})"
    assert build(cls, options_of(cls)) == made


def test_an_experiment_cannot_be_changed() -> None:
    experiment: Any = check({"experiment": "x"})
    with pytest.raises(ValueError, match="frozen"):
        experiment.seed = 3
    assert isinstance(experiment, Experiment)
