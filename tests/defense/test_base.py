from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

import fedveil.defense as defense
from fedveil.defense import (
    DEFENSES,
    Defense,
    DefenseContext,
    LatentNoise,
    LatentPerturbation,
    NoDefense,
    PixelNoise,
    Stack,
    Surrogate,
    TopK,
    TrainedOn,
    UpdateNoise,
)
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import ClientUpdate, ThreatModel, UpdateKind
from fedveil.orchestrator.config.options import build_named

CODE = ThreatModel(defense_algorithm=True)

OTHER_THAN_DEFAULT: list[tuple[Defense, dict[str, object]]] = [
    (NoDefense(), {}),
    (PixelNoise(strength=0.4), {"strength": 0.4}),
    (LatentNoise(strength=2.5, public_steps=7), {"strength": 2.5, "public_steps": 7}),
    (UpdateNoise(strength=0.5, clip=3.0), {"strength": 0.5, "clip": 3.0}),
    (TopK(keep=0.25), {"keep": 0.25}),
    (
        LatentPerturbation(
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
            "ceiling": 0.75,
            "adversary_steps": 4,
            "scope": "public",
            "steps": 5,
            "client_steps": 6,
            "public_steps": 7,
        },
    ),
]


def update(*values: float) -> ClientUpdate:
    return ClientUpdate({"w": torch.tensor(values)}, 1, UpdateKind.GRADIENT, local_steps=1, learning_rate=0.1)


def test_the_registry_holds_each_defence_under_its_own_name() -> None:
    assert list(DEFENSES) == ["latent", "latent_noise", "none", "pixel_noise", "top_k", "update_noise"]
    assert all(DEFENSES[name].name == name for name in DEFENSES)
    assert {type(d) for d, _ in OTHER_THAN_DEFAULT} == {DEFENSES[name] for name in DEFENSES}


@pytest.mark.parametrize(("built", "options"), OTHER_THAN_DEFAULT, ids=lambda value: getattr(value, "name", ""))
def test_repr_shows_the_configuration_and_nothing_else(built: Defense, options: dict[str, object]) -> None:
    shown = ", ".join(f"{key}={value!r}" for key, value in options.items())
    assert repr(built) == f"{type(built).__name__}({shown})"
    assert eval(repr(built), vars(defense)) == built
    assert build_named(DEFENSES, {"name": built.name, **options}) == built


def test_repr_of_a_stack_round_trips_too() -> None:
    stack = Stack(parts=(PixelNoise(strength=0.1), TopK(keep=0.5)))
    assert eval(repr(stack), vars(defense)) == stack


BAD: list[tuple[Callable[[], Defense], str]] = [
    (lambda: PixelNoise(strength=-0.1), "pixel_noise: strength is -0.1; it has to be at least 0"),
    (lambda: PixelNoise(strength=math.nan), "pixel_noise: strength is nan"),
    (lambda: PixelNoise(strength=math.inf), "pixel_noise: strength is inf; .* finite"),
    (lambda: LatentNoise(strength=-1), "latent_noise: strength"),
    (lambda: LatentNoise(public_steps=0), "latent_noise: public_steps is 0; it has to be at least 1"),
    (lambda: UpdateNoise(strength=-1), "update_noise: strength"),
    (lambda: UpdateNoise(clip=0), "update_noise: clip is 0; it has to be above 0"),
    (lambda: UpdateNoise(clip=math.nan), "update_noise: clip"),
    (lambda: UpdateNoise(clip=math.inf), "update_noise: clip"),
    (lambda: TopK(keep=0), "top_k: keep is 0; it has to be above 0 and at most 1"),
    (lambda: TopK(keep=1.01), "top_k: keep"),
    (lambda: TopK(keep=math.nan), "top_k: keep"),
    (lambda: LatentPerturbation(strength=0), "latent: strength is 0; it has to be above 0"),
    (lambda: LatentPerturbation(strength=math.nan), "latent: strength"),
    (lambda: LatentPerturbation(privacy_weight=-1), "latent: privacy_weight is -1; it has to be at least 0"),
    (lambda: LatentPerturbation(utility_weight=math.inf), "latent: utility_weight"),
    (lambda: LatentPerturbation(error_cap=0), "latent: ceiling is 0; it has to be above 0"),
    (lambda: LatentPerturbation(adversary_steps=0), "latent: adversary_steps"),
    (lambda: LatentPerturbation(steps=0), "latent: steps"),
    (lambda: LatentPerturbation(client_steps=-1), "latent: client_steps"),
    (lambda: LatentPerturbation(public_steps=0), "latent: public_steps"),
    (lambda: LatentPerturbation(scope="world"), "latent: scope is 'world'; allowed: client, public"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message for _, message in BAD])
def test_a_value_that_makes_no_sense_is_refused(make: Callable[[], Defense], message: str) -> None:
    with pytest.raises(FedveilError, match=f"^{message}"):
        make()


@pytest.mark.parametrize(
    "edge",
    [
        PixelNoise(strength=0),
        LatentNoise(strength=0),
        UpdateNoise(strength=0),
        TopK(keep=1),
        LatentPerturbation(privacy_weight=0, utility_weight=0, client_steps=0),
    ],
    ids=repr,
)
def test_the_edges_of_the_ranges_are_allowed(edge: Defense) -> None:
    assert replace(edge) == edge


def test_no_defence_is_the_identity_and_gives_nothing_away(context: DefenseContext, private: Images) -> None:
    none = NoDefense()
    assert none.pretrain(context) is none
    assert none.prepare(private, context, 0) is none
    assert none.trained_on is TrainedOn.NOTHING
    assert none.surrogate(CODE, context) == Surrogate(data=None, update=None, visible=None)
    assert none.diagnostics() == {}
    x = torch.rand(2, 1, 4, 4)
    assert none.data(x, None, torch.Generator()) is x


def test_preparation_streams_follow_seed_and_path(context: DefenseContext) -> None:
    def draw(p: DefenseContext, *path: str | int) -> float:
        return torch.rand(1, generator=p.stream(*path)).item()

    assert draw(context, "a", 1) == draw(context, "a", 1)
    assert draw(context, "a", 1) != draw(context, "a", 2)
    assert draw(context, "a", 1) != draw(replace(context, seed=1), "a", 1)


@dataclass(frozen=True, kw_only=True)
class Affine(Defense):
    """x -> factor * x + offset in all four places; two of them do not commute."""

    factor: float
    offset: float
    source: TrainedOn = TrainedOn.NOTHING
    prepared: tuple[str, ...] = ()

    def _on(self, tensor: Tensor) -> Tensor:
        return self.factor * tensor + self.offset

    @property
    def trained_on(self) -> TrainedOn:
        return self.source

    def pretrain(self, context: DefenseContext) -> Affine:
        return replace(self, prepared=(*self.prepared, "public"))

    def prepare(self, private: Images, context: DefenseContext, client: int) -> Affine:
        return replace(self, prepared=(*self.prepared, f"client {client} of {len(private)}"))

    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        return self._on(x)

    def loss(self, loss: Tensor, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        return self._on(loss)

    def update(self, update: ClientUpdate, stream: torch.Generator) -> ClientUpdate:
        return replace(update, tensors={n: self._on(t) for n, t in update.tensors.items()})

    def output(self, logits: Tensor) -> Tensor:
        return self._on(logits)

    def surrogate(self, threat_model: ThreatModel, context: DefenseContext) -> Surrogate:
        return Surrogate(data=lambda x, stream: self._on(x), update=self.update)

    def diagnostics(self) -> dict[str, float]:
        return {"factor": self.factor, f"offset {self.offset}": self.offset}


FIRST, SECOND = Affine(factor=2, offset=0), Affine(factor=1, offset=3)
STACK = Stack(parts=(FIRST, SECOND))


def test_a_stack_applies_its_parts_in_their_order() -> None:
    one, stream = torch.tensor(1.0), torch.Generator()
    # 2 * 1 + 3, where the other order gives 2 * (1 + 3).
    assert STACK.data(one, None, stream) == 5
    assert STACK.loss(one, nn.Identity(), one, one, one) == 5
    assert STACK.output(one) == 5
    assert STACK.update(update(1.0), stream).tensors["w"] == 5
    assert Stack(parts=(SECOND, FIRST)).data(one, None, stream) == 8


def test_an_empty_stack_is_the_identity(context: DefenseContext) -> None:
    x = torch.rand(2, 1, 4, 4)
    empty = Stack()
    assert empty.data(x, None, torch.Generator()) is x
    assert empty.trained_on is TrainedOn.NOTHING
    assert empty.surrogate(CODE, context) == Surrogate()
    assert empty.diagnostics() == {}


def test_a_stack_prepares_each_part(context: DefenseContext, private: Images) -> None:
    prepared = STACK.pretrain(context).prepare(private, context, 4)
    assert isinstance(prepared, Stack)
    for part in prepared.parts:
        assert isinstance(part, Affine)
        assert part.prepared == ("public", "client 4 of 80")
    assert FIRST.prepared == (), "the parts given are left alone"


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (("nothing", "public"), "public"),
        (("client", "public"), "client"),
        (("nothing", "nothing"), "nothing"),
        (("public", "client", "nothing"), "client"),
    ],
)
def test_a_stack_is_as_private_as_its_most_private_part(sources: tuple[str, ...], expected: str) -> None:
    parts = tuple(replace(FIRST, source=TrainedOn(source)) for source in sources)
    assert Stack(parts=parts).trained_on is TrainedOn(expected)


def test_a_stacks_surrogate_composes_those_of_its_parts(context: DefenseContext) -> None:
    surrogate = Stack(parts=(FIRST, NoDefense(), SECOND, TopK(keep=0.5))).surrogate(CODE, context)
    assert surrogate.data is not None
    assert surrogate.update is not None
    assert surrogate.visible is not None
    assert surrogate.data(torch.tensor(1.0), torch.Generator()) == 5
    # (1, -5, 2, 0) becomes (5, -7, 7, 3), of which the larger half is kept.
    sent = surrogate.update(update(1.0, -5.0, 2.0, 0.0), torch.Generator())
    assert sent.tensors["w"].tolist() == [0, -7, 7, 0]
    assert surrogate.visible(sent.tensors)["w"].tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("shares", [(0.75, 0.5), (0.5, 0.75)])
def test_a_stacks_surrogate_sees_what_all_parts_leave_visible(
    shares: tuple[float, float], context: DefenseContext
) -> None:
    parts = tuple(TopK(keep=share) for share in shares)
    surrogate = Stack(parts=parts).surrogate(CODE, context)
    assert surrogate.visible is not None
    sent = Stack(parts=parts).update(update(4.0, 3.0, 2.0, 1.0), torch.Generator())
    assert sent.tensors["w"].tolist() == [4, 3, 0, 0]
    assert surrogate.visible(sent.tensors)["w"].tolist() == [1, 1, 0, 0]


def test_a_stack_of_data_defences_leaves_updates_out_of_its_surrogate(context: DefenseContext) -> None:
    surrogate = Stack(parts=(PixelNoise(), NoDefense())).surrogate(CODE, context)
    assert surrogate.data is not None
    assert surrogate.update is None
    assert surrogate.visible is None


def test_a_stack_reports_the_worst_of_a_shared_number() -> None:
    assert STACK.diagnostics() == {"factor": 2, "offset 0": 0, "offset 3": 3}
