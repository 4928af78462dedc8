from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import fedveil.defense as defense
from fedveil.defense import (
    ATS,
    DEFENSES,
    DPSGD,
    BiDO,
    BlockAverage,
    Blur,
    ConcealedSamples,
    Defense,
    DualGradientPruning,
    FixedErasing,
    GroupMean,
    InstaHide,
    LabelFlippingPoisoning,
    LabelPreservingPoisoning,
    LatentAutoencoder,
    LatentNoise,
    LatentPerturbation,
    MixUp,
    NoDefense,
    OrthogonalPerturbation,
    Outpost,
    OutputNoise,
    OutputRounding,
    PixelDropout,
    PixelNoise,
    Precode,
    PublicReconstruction,
    Quantisation,
    RandomErasing,
    SecureAggregation,
    Sign,
    Soteria,
    Stack,
    TopK,
    UpdateNoise,
)
from fedveil.fl.errors import FedveilError

LATENT: dict[str, object] = {
    "k": 3,
    "space": "latent",
    "scope": "client",
    "grouping": "anchors",
    "start": "public",
    "strength": 0.5,
    "spread": 1.2,
    "dimensions": 5,
    "steps": 4,
    "learning_rate": 0.1,
    "utility_weight": 2.0,
    "privacy_weight": 0,
    "epsilon": 3.0,
    "delta": 1e-06,
    "clip": 0.5,
    "random_networks": 2,
    "trained_networks": 1,
    "public_steps": 7,
}
BIDO: dict[str, object] = {
    "measure": "coco",
    "strength": 0.5,
    "input_weight": 2.0,
    "label_weight": 0.0,
    "layers": ("body",),
    "kernel_width": 1.5,
    "floor_batch": 8,
}
ERASING: dict[str, object] = {"smallest": 0.2, "largest": 0.8, "fill": "mean"}
SEARCH: dict[str, object] = {"length": 2, "candidates": 5, "accurate": 0.8, "policies": 1, "scored": 4}
CONCEALED: dict[str, object] = {
    "count": 2,
    "share": 0.5,
    "steps": 3,
    "learning_rate": 0.1,
    "distance": 0.0,
    "logits": 0.0,
}
POISON = {"steps": 7, "surrogate_steps": 8, "width": 4}
OTHER_THAN_DEFAULT: list[tuple[Defense[Any], dict[str, object]]] = [
    (NoDefense(), {}),
    (PixelNoise(strength=0.4), {"strength": 0.4}),
    (LatentNoise(strength=2.5, public_steps=7), {"strength": 2.5, "public_steps": 7}),
    (UpdateNoise(strength=0.5, clip=3.0), {"strength": 0.5, "clip": 3.0}),
    (TopK(keep=0.25), {"keep": 0.25}),
    (BlockAverage(size=7), {"size": 7}),
    (
        DualGradientPruning(largest=0.1, smallest=0.5, feedback=0.5, aligned=True, public_images=7),
        {"largest": 0.1, "smallest": 0.5, "feedback": 0.5, "aligned": True, "public_images": 7},
    ),
    (Blur(strength=2.5), {"strength": 2.5}),
    (OutputNoise(strength=0.5, seed=3), {"strength": 0.5, "seed": 3}),
    (OutputRounding(decimals=2), {"decimals": 2}),
    (LabelPreservingPoisoning(strength=0.5, **POISON), {"strength": 0.5, **POISON}),
    (
        LabelFlippingPoisoning(strength=1.0, fraction=0.1, **POISON),
        {"strength": 1.0, "fraction": 0.1, **POISON},
    ),
    (ATS(**SEARCH), SEARCH),  # type: ignore[arg-type]
    (BiDO(**BIDO), BIDO),  # type: ignore[arg-type]
    (RandomErasing(**ERASING), ERASING),  # type: ignore[arg-type]
    (FixedErasing(**ERASING), ERASING),  # type: ignore[arg-type]
    (PixelDropout(**ERASING), ERASING),  # type: ignore[arg-type]
    (
        InstaHide(share=0.25, others=2, source="private", flip=False),
        {"share": 0.25, "others": 2, "source": "private", "flip": False},
    ),
    (MixUp(alpha=0.5), {"alpha": 0.5}),
    (Precode(strength=0.5, size=7), {"strength": 0.5, "size": 7}),
    (ConcealedSamples(**CONCEALED), CONCEALED),  # type: ignore[arg-type]
    (Quantisation(bits=2, scale="l2"), {"bits": 2, "scale": "l2"}),
    (Sign(scale="fixed", size=0.5), {"scale": "fixed", "size": 0.5}),
    (OrthogonalPerturbation(strength=0.5), {"strength": 0.5}),
    (Outpost(strength=0.5, share=0.1, prune=0.0), {"strength": 0.5, "share": 0.1, "prune": 0.0}),
    (Soteria(prune=0.5, layer="head", probes=0), {"prune": 0.5, "layer": "head", "probes": 0}),
    (PublicReconstruction(public_steps=7), {"public_steps": 7}),
    (
        DPSGD(strength=0.5, clip=2.0, delta=1e-06, accountant="prv"),
        {"strength": 0.5, "clip": 2.0, "delta": 1e-06, "accountant": "prv"},
    ),
    (GroupMean(k=3), {"k": 3}),
    (SecureAggregation(clients=3), {"clients": 3}),
    (LatentPerturbation(**LATENT), LATENT),  # type: ignore[arg-type]
    (
        LatentAutoencoder(
            strength=0.5,
            privacy_weight=2.0,
            utility_weight=3.0,
            error_cap=0.75,
            adversary_steps=4,
            scope="public",
            steps=5,
            client_steps=6,
            public_steps=7,
        ),
        {
            "strength": 0.5,
            "privacy_weight": 2.0,
            "utility_weight": 3.0,
            "error_cap": 0.75,
            "adversary_steps": 4,
            "scope": "public",
            "steps": 5,
            "client_steps": 6,
            "public_steps": 7,
        },
    ),
]


def test_the_registry_holds_each_defence_under_its_own_name() -> None:
    assert list(DEFENSES) == [
        "ats",
        "autoencoder",
        "bido",
        "block_average",
        "blur",
        "concealed_samples",
        "dgp",
        "dp_sgd",
        "fixed_erasing",
        "group_mean",
        "instahide",
        "latent",
        "latent_autoencoder",
        "latent_noise",
        "lfp",
        "lpa",
        "mixup",
        "none",
        "orthogonal_perturbation",
        "outpost",
        "output_noise",
        "output_rounding",
        "pixel_dropout",
        "pixel_noise",
        "precode",
        "quantisation",
        "random_erasing",
        "secure_aggregation",
        "sign",
        "soteria",
        "top_k",
        "update_noise",
    ]
    assert all(DEFENSES[name].name == name for name in DEFENSES)
    assert {type(d) for d, _ in OTHER_THAN_DEFAULT} == {DEFENSES[name] for name in DEFENSES}


@pytest.mark.parametrize(("built", "options"), OTHER_THAN_DEFAULT, ids=lambda value: getattr(value, "name", ""))
def test_repr_shows_the_configuration_and_nothing_else(built: Defense[Any], options: dict[str, object]) -> None:
    shown = ", ".join(f"{key}={value!r}" for key, value in options.items())
    assert repr(built) == f"{type(built).__name__}({shown})"
    assert eval(repr(built), vars(defense)) == built
    assert DEFENSES[built.name](**options) == built


def test_repr_of_a_stack_round_trips_too() -> None:
    stack = Stack(parts=(PixelNoise(strength=0.1), TopK(keep=0.5)))
    assert eval(repr(stack), vars(defense)) == stack


BAD: list[tuple[Callable[[], Defense[Any]], str]] = [
    (lambda: PixelNoise(strength=-0.1), "pixel_noise: strength is -0.1; it has to be at least 0"),
    (lambda: PixelNoise(strength=math.nan), "pixel_noise: strength is nan"),
    (lambda: PixelNoise(strength=math.inf), "pixel_noise: strength is inf; .* finite"),
    (lambda: LatentNoise(strength=-1), "latent_noise: strength"),
    (lambda: LatentNoise(public_steps=0), "latent_noise: public_steps is 0; it has to be at least 1"),
    (lambda: UpdateNoise(strength=-1), "update_noise: strength"),
    (lambda: UpdateNoise(clip=0), "update_noise: clip is 0; it has to be above 0"),
    (lambda: UpdateNoise(clip=math.nan), "update_noise: clip"),
    (lambda: UpdateNoise(clip=math.inf), "update_noise: clip"),
    (lambda: BlockAverage(size=0), "block_average: size is 0; it has to be at least 1"),
    (lambda: Blur(strength=-1), "blur: strength"),
    (lambda: ATS(length=0), "ats: length is 0; it has to be at least 1"),
    (lambda: ATS(scored=1), "ats: scored is 1; it has to be at least 2"),
    (lambda: ATS(accurate=0), "ats: accurate is 0; it has to be above 0 and at most 1"),
    (lambda: Blur(strength=101), "blur: strength is 101; it has to be at most 100"),
    (lambda: BiDO(strength=-1), "bido: strength"),
    (lambda: BiDO(measure="mi"), "bido: measure is 'mi'; allowed: hsic, coco"),  # type: ignore[arg-type]
    (lambda: BiDO(input_weight=-1), "bido: input_weight is -1; it has to be at least 0"),
    (lambda: BiDO(label_weight=math.nan), "bido: label_weight"),
    (lambda: BiDO(kernel_width=0), "bido: kernel_width is 0; it has to be above 0"),
    (lambda: BiDO(floor_batch=1), "bido: floor_batch is 1; it has to be at least 2"),
    (lambda: RandomErasing(smallest=0), "random_erasing: smallest is 0; it has to be above 0 and at most 1"),
    (lambda: FixedErasing(smallest=0.5), r"fixed_erasing: largest is 0.4; it has to be at least smallest \(0.5\)"),
    (lambda: PixelDropout(largest=1.1), "pixel_dropout: largest is 1.1"),
    (lambda: RandomErasing(largest=math.nan), "random_erasing: largest"),
    (lambda: RandomErasing(fill="black"), "random_erasing: fill is 'black'; allowed: authors, mean"),  # type: ignore[arg-type]
    (lambda: InstaHide(share=0), "instahide: share is 0; it has to be above 0 and at most 1"),
    (lambda: InstaHide(others=0), "instahide: others is 0; it has to be at least 1"),
    (lambda: Quantisation(bits=1), "quantisation: bits is 1; it has to be a whole number, at least 2 and at most 16"),
    (lambda: Quantisation(bits=2.5), "quantisation: bits is 2.5"),  # type: ignore[arg-type]
    (lambda: Quantisation(scale="l1"), "quantisation: scale is 'l1'; allowed: max, l2"),  # type: ignore[arg-type]
    (lambda: Sign(scale="l1"), "sign: scale is 'l1'; allowed: mean, fixed"),  # type: ignore[arg-type]
    (lambda: Sign(size=0), "sign: size is 0; it has to be above 0"),
    (lambda: OrthogonalPerturbation(strength=-1), "orthogonal_perturbation: strength"),
    (lambda: Outpost(strength=-1), "outpost: strength"),
    (lambda: Outpost(share=0), "outpost: share is 0; it has to be above 0 and at most 1"),
    (lambda: Outpost(prune=1), "outpost: prune is 1; it has to be at least 0 and below 1"),
    (lambda: Soteria(prune=1), "soteria: prune is 1; it has to be at least 0 and below 1"),
    (lambda: Soteria(probes=-1), "soteria: probes is -1; it has to be at least 0"),
    (lambda: PublicReconstruction(public_steps=0), "autoencoder: public_steps is 0"),
    (lambda: GroupMean(k=1), "group_mean: k is 1; it has to be at least 2"),
    (lambda: LatentPerturbation(k=1), "latent: k is 1; it has to be at least 2"),
    (lambda: LatentPerturbation(strength=-1), "latent: strength"),
    (lambda: LatentPerturbation(spread=-1), "latent: spread"),
    (lambda: LatentPerturbation(start="x"), "latent: start is 'x'; allowed: public, mean"),  # type: ignore[arg-type]
    (lambda: LatentPerturbation(steps=-1), "latent: steps"),
    (lambda: LatentPerturbation(learning_rate=0), "latent: learning_rate is 0; it has to be above 0"),
    (lambda: LatentPerturbation(random_networks=-1), "latent: random_networks"),
    (lambda: LatentPerturbation(trained_networks=0), "latent: trained_networks is 0; it has to be at least 1"),
    (lambda: TopK(keep=0), "top_k: keep is 0; it has to be above 0 and at most 1"),
    (lambda: TopK(keep=1.01), "top_k: keep"),
    (lambda: TopK(keep=math.nan), "top_k: keep"),
    (lambda: LatentAutoencoder(strength=0), "latent_autoencoder: strength is 0; it has to be above 0"),
    (lambda: LatentAutoencoder(strength=math.nan), "latent_autoencoder: strength"),
    (lambda: LatentAutoencoder(privacy_weight=-1), "latent_autoencoder: privacy_weight is -1; it has to be at least 0"),
    (lambda: LatentAutoencoder(utility_weight=math.inf), "latent_autoencoder: utility_weight"),
    (lambda: LatentAutoencoder(error_cap=0), "latent_autoencoder: error_cap is 0; it has to be above 0"),
    (lambda: LatentAutoencoder(adversary_steps=0), "latent_autoencoder: adversary_steps"),
    (lambda: LatentAutoencoder(steps=0), "latent_autoencoder: steps"),
    (lambda: LatentAutoencoder(client_steps=-1), "latent_autoencoder: client_steps"),
    (lambda: LatentAutoencoder(public_steps=0), "latent_autoencoder: public_steps"),
    (lambda: LatentAutoencoder(scope="world"), "latent_autoencoder: scope is 'world'; allowed: client, public"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message for _, message in BAD])
def test_a_value_that_makes_no_sense_is_refused(make: Callable[[], Defense[Any]], message: str) -> None:
    with pytest.raises(FedveilError, match=f"^{message}"):
        make()


@pytest.mark.parametrize(
    "edge",
    [
        PixelNoise(strength=0),
        LatentNoise(strength=0),
        UpdateNoise(strength=0),
        TopK(keep=1),
        BlockAverage(size=1),
        Blur(strength=0),
        BiDO(strength=0, input_weight=0, label_weight=0, floor_batch=2),
        RandomErasing(smallest=1, largest=1),
        InstaHide(share=1, others=1),
        ATS(length=1, candidates=1, accurate=1, policies=1, scored=2),
        Quantisation(bits=2),
        Quantisation(bits=16),
        OrthogonalPerturbation(strength=0),
        Outpost(strength=0, share=1, prune=0),
        Soteria(prune=0, probes=0),
        GroupMean(k=2),
        LatentPerturbation(k=2, strength=0, steps=0, random_networks=0, trained_networks=1),
        LatentAutoencoder(privacy_weight=0, utility_weight=0, client_steps=0),
    ],
    ids=repr,
)
def test_the_edges_of_the_ranges_are_allowed(edge: Defense[Any]) -> None:
    assert replace(edge) == edge
