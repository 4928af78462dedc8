from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedveil.defense import (
    DPSGD,
    BiDO,
    Defense,
    DefenseContext,
    DualGradientPruning,
    GroupMean,
    LatentNoise,
    LatentPerturbation,
    MixUp,
    NoDefense,
    PixelNoise,
    PreparedDefense,
    Quantisation,
    Rehearsal,
    SecureAggregation,
    Soteria,
    Stack,
    Surrogate,
    TopK,
    TrainedOn,
    UpdateNoise,
)
from fedveil.defense.base import Stateless
from fedveil.defense.stack import PreparedStack
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.hooks import Turn
from fedveil.fl.messages import ClientUpdate


def update(*values: float) -> ClientUpdate:
    return ClientUpdate.gradient({"w": torch.tensor(values)})


@dataclass(frozen=True, kw_only=True)
class Affine(Defense[str]):
    """x -> factor * x + offset in all four places; two of them do not commute."""

    factor: float
    offset: float
    source: TrainedOn = TrainedOn.NOTHING

    @property
    def trained_on(self) -> TrainedOn:
        return self.source

    def pretrain(self, context: DefenseContext) -> str:
        return f"public of {self.factor}"

    def prepare(self, private: Images, context: DefenseContext, public: str, *, client: int) -> PreparedDefense:
        return PreparedAffine(self, f"{public}, client {client} of {len(private)}")


@dataclass(frozen=True)
class PreparedAffine(PreparedDefense):
    settings: Affine
    made_from: str

    def _on(self, tensor: Tensor) -> Tensor:
        return self.settings.factor * tensor + self.settings.offset

    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        return self._on(x)

    def loss(self, loss: Tensor, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        return self._on(loss)

    def update(self, update: ClientUpdate, stream: torch.Generator) -> ClientUpdate:
        return replace(update, tensors={n: self._on(t) for n, t in update.tensors.items()})

    def output(self, logits: Tensor) -> Tensor:
        return self._on(logits)

    def surrogate(self) -> Surrogate:
        return Surrogate(data=lambda x, y, stream: self._on(x), update=self.update)

    def diagnostics(self) -> dict[str, float]:
        return {"factor": self.settings.factor, f"offset {self.settings.offset}": self.settings.offset}


FIRST, SECOND = Affine(factor=2, offset=0), Affine(factor=1, offset=3)


Make = Callable[..., PreparedDefense]


@pytest.fixture
def make(context: DefenseContext, private: Images) -> Make:
    """Prepare a stack of the given parts for client 4."""

    def prepare(*parts: Defense[Any]) -> PreparedDefense:
        stack = Stack(parts=parts)
        return stack.prepare(private, context, stack.pretrain(context), client=4)

    return prepare


def test_a_stack_applies_its_parts_in_their_order(make: Make) -> None:
    stack, one, stream = make(FIRST, SECOND), torch.tensor(1.0), torch.Generator()
    # 2 * 1 + 3, where the other order gives 2 * (1 + 3).
    assert stack.data(one, None, stream) == 5
    assert stack.loss(one, nn.Identity(), one, one, one) == 5
    assert stack.output(one) == 5
    assert stack.update(update(1.0), stream).tensors["w"] == 5
    assert make(SECOND, FIRST).data(one, None, stream) == 8


def test_an_empty_stack_is_the_identity(make: Make) -> None:
    x = torch.rand(2, 1, 4, 4)
    empty = make()
    assert empty.data(x, None, torch.Generator()) is x
    assert empty.surrogate() == Surrogate()
    assert empty.diagnostics() == {}
    assert Stack().trained_on is TrainedOn.NOTHING


def test_a_stack_prepares_each_part_with_what_that_part_learnt(make: Make) -> None:
    stack = make(FIRST, SECOND)
    assert isinstance(stack, PreparedStack)
    assert [part.made_from for part in stack.parts if isinstance(part, PreparedAffine)] == [
        "public of 2, client 4 of 80",
        "public of 1, client 4 of 80",
    ]


def test_a_stack_takes_what_its_own_pretraining_returned(context: DefenseContext, private: Images) -> None:
    stack = Stack(parts=(FIRST, SECOND))
    with pytest.raises(ValueError, match="shorter"):
        stack.prepare(private, context, ("public of 2",), client=0)


def test_parts_with_and_without_modules_mix(make: Make, context: DefenseContext, private: Images) -> None:
    latent = LatentNoise(public_steps=2)
    stack = make(PixelNoise(strength=0.1), latent, TopK(keep=0.5))
    x, alone = private.floats()[:3], latent.prepare(private, context, latent.pretrain(context), client=4)
    own = torch.Generator().manual_seed(1)
    noisy = PixelNoise(strength=0.1).data(x, None, own)
    expected = alone.data(noisy, None, own)
    assert torch.equal(stack.data(x, None, torch.Generator().manual_seed(1)), expected)
    surrogate = stack.surrogate()
    assert surrogate.data is not None
    assert torch.equal(surrogate.data(x, None, torch.Generator().manual_seed(1)), expected)
    assert stack.update(update(3.0, -4.0), torch.Generator()).tensors["w"].tolist() == [0, -4]
    assert Stack(parts=(PixelNoise(), latent, TopK())).trained_on is TrainedOn.PUBLIC


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


def test_a_stacks_surrogate_composes_those_of_its_parts(make: Make) -> None:
    surrogate = make(FIRST, NoDefense(), SECOND, TopK(keep=0.5)).surrogate()
    assert surrogate.data is not None
    assert surrogate.update is not None
    assert surrogate.visible is not None
    assert surrogate.data(torch.tensor(1.0), None, torch.Generator()) == 5
    # (1, -5, 2, 0) becomes (5, -7, 7, 3), of which the larger half is kept.
    sent = surrogate.update(update(1.0, -5.0, 2.0, 0.0), torch.Generator())
    assert sent.tensors["w"].tolist() == [0, -7, 7, 0]
    assert surrogate.visible(sent.tensors)["w"].tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("shares", [(0.75, 0.5), (0.5, 0.75)])
def test_a_stacks_surrogate_sees_what_all_parts_leave_visible(shares: tuple[float, float], make: Make) -> None:
    stack = make(*(TopK(keep=share) for share in shares))
    surrogate = stack.surrogate()
    assert surrogate.visible is not None
    sent = stack.update(update(4.0, 3.0, 2.0, 1.0), torch.Generator())
    assert sent.tensors["w"].tolist() == [4, 3, 0, 0]
    assert surrogate.visible(sent.tensors)["w"].tolist() == [1, 1, 0, 0]


def test_a_stack_of_data_defences_leaves_updates_out_of_its_surrogate(make: Make) -> None:
    surrogate = make(PixelNoise(), NoDefense()).surrogate()
    assert surrogate.data is not None
    assert surrogate.update is None
    assert surrogate.visible is None


def test_a_stack_reports_the_worst_of_a_shared_number(make: Make) -> None:
    expected = {"factor": 2, "offset 0": 0, "offset 3": 3}
    assert make(FIRST, SECOND).diagnostics() == expected
    assert make(SECOND, FIRST).diagnostics() == expected


@dataclass(frozen=True, kw_only=True)
class Pairs(Defense[None]):
    """Every second image is trained on, as the mean of itself and the one before."""

    def images(self, shard: Images) -> Images:
        kept = torch.arange(1, len(shard), 2)
        pixels = (shard.pixels[kept].int() + shard.pixels[kept - 1].int()) // 2
        return Images(pixels.to(torch.uint8), shard.labels[kept])

    def surrogate(self) -> Surrogate:
        def rehearse(images: Images, stream: torch.Generator) -> Rehearsal:
            return Rehearsal(torch.arange(1, len(images), 2), self.images(images))

        return Surrogate(rehearse=rehearse)


def test_a_stack_rehearses_what_its_parts_make_of_many_images_and_then_of_each(make: Make) -> None:
    stack = make(Affine(factor=0.5, offset=0), Pairs(), TopK(keep=0.5), Affine(factor=1, offset=0.2))
    surrogate = stack.surrogate()
    assert surrogate.data is None
    assert surrogate.update is not None
    assert surrogate.visible is not None
    assert surrogate.rehearse is not None
    pixels = torch.tensor([0, 100, 200, 220, 7], dtype=torch.uint8).view(5, 1, 1, 1)
    own = Images(pixels, torch.tensor([0, 1, 2, 3, 4]))
    found = surrogate.rehearse(own, torch.Generator())
    assert found.kept.tolist() == [1, 3]
    # Means of 50 and 210, halved, and a fifth of 255 added.
    assert found.trained.pixels.flatten().tolist() == [25 + 51, 105 + 51]
    assert found.trained.labels.tolist() == [1, 3]
    # It is what a client trains on.
    shared = stack.images(own)
    trained = stack.data(shared.floats(), shared.labels, torch.Generator())
    torch.testing.assert_close(trained, found.trained.floats(), atol=0.5 / 255, rtol=0)


def test_only_one_part_may_make_one_image_of_many(make: Make) -> None:
    make(Pairs(), Stack(parts=(PixelNoise(), NoDefense())), TopK())
    with pytest.raises(FedveilError, match=r"^defense: Pairs, Pairs each make one image of many; allowed: one such"):
        make(Pairs(), TopK(), Pairs())
    with pytest.raises(FedveilError, match="Pairs, stack"):
        make(Pairs(), Stack(parts=(Pairs(), TopK())))


def test_what_does_not_go_together_is_known_before_anything_is_learnt() -> None:
    def said(*parts: Defense[Any]) -> list[str]:
        return Stack(parts=parts).conflicts()

    both = "each make one image of many; allowed: one such in a list"
    assert said(LatentPerturbation(), GroupMean()) == [f"latent, group_mean {both}"]
    assert said(GroupMean(), Stack(parts=(LatentPerturbation(), TopK()))) == [f"group_mean, stack {both}"]
    (alone,) = said(LatentPerturbation(), DPSGD())
    assert alone.startswith("dp_sgd takes the gradient of the plain loss apart by images")
    assert alone.endswith("not latent")
    mixing, _ = said(MixUp(), LatentNoise(), DPSGD())
    assert mixing.endswith("not mixup")
    assert said(PixelNoise(), DPSGD(), TopK()) == said(LatentNoise(), UpdateNoise()) == []
    # Of one that learns something and says nothing, it shows once it is prepared.
    silent = Affine(factor=1, offset=0)
    assert silent.hooks is Stack(parts=(TopK(), silent)).hooks is None
    assert said(DPSGD(), silent) == []


def test_few_bits_are_counted_only_while_values_are_what_the_quantiser_left() -> None:
    """Of 100 values at 4 bits: 50 bytes and the size's 4. Noise on top makes them 100 floats again."""
    sent = update(*torch.linspace(0.5, 1, 100).tolist())
    stream = torch.Generator().manual_seed(0)
    quantiser, pruning = Stateless(Quantisation(bits=4)), Stateless(TopK(keep=0.1))
    noisy = PreparedStack((quantiser, Stateless(UpdateNoise())))
    for left in (noisy.update(sent, stream), noisy.carry(sent, Turn(), stream)[0]):
        assert (left.value_bits, left.nbytes()) == (32, 400)
    assert quantiser.update(sent, stream).nbytes() == 54
    # Zeros are put in, and nothing else changes: ten values, a bitmap and the size.
    assert PreparedStack((quantiser, pruning)).update(sent, stream).nbytes() == 5 + 13 + 4
    # What was left out before comes on top, from the second turn on.
    feedback = PreparedStack((quantiser, Stateless(DualGradientPruning())))
    first, kept = feedback.carry(sent, Turn(), stream)
    assert first.value_bits == 4
    assert feedback.carry(sent, Turn(kept), stream)[0].value_bits == 32


def test_sums_of_pruned_updates_are_not_complete(context: DefenseContext, private: Images) -> None:
    """Eight clients that each send a fifth of their entries: a mask of the sum's shows entries that one of them sent."""

    def complete(*parts: Defense[Any]) -> list[bool]:
        stack = Stack(parts=parts)
        public = stack.pretrain(context)
        both = stack.prepare(private, context, public, client=0), stack.shadow(private, context, public)
        return [prepared.surrogate().complete for prepared in both]

    pruning, sums = DualGradientPruning(), SecureAggregation(clients=2)
    assert complete(pruning) == [True, True]
    assert complete(pruning, sums) == complete(sums, pruning) == complete(BiDO(), sums) == [False, False]
    assert complete(Soteria(), sums) == complete(UpdateNoise(), sums) == complete(PixelNoise(), sums) == [True, True]


def test_a_stack_takes_as_long_to_prepare_as_its_parts_and_nobody_knows_where_one_did_not_count() -> None:
    latent = LatentPerturbation(k=2, trained_networks=1, steps=10)
    # 130 images make 65 groups, three rows of 32: three times ten steps of half the usual images.
    learnt = latent.prepares_in([130])
    assert learnt == (latent.prepares_in([]) or 0) + 15
    assert Stack(parts=(PixelNoise(), latent)).prepares_in([130]) == learnt
    assert Stack(parts=(PixelNoise(), TopK())).prepares_in([130]) == 0
    assert Stack(parts=(latent, replace(latent, privacy_weight=1.0))).prepares_in([130]) is None
