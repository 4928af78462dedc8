from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from fedveil.defense import Defense, DefenseContext, NoDefense, Stack
from fedveil.defense.base import PreparedDefense
from fedveil.defense.guard import Guard
from fedveil.fl.data.images import Images
from fedveil.fl.models import ModelSpec

IMAGES = Images(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
CONTEXT = DefenseContext(IMAGES, ModelSpec("mlp", (1, 8, 8), 2), torch.device("cpu"), seed=0)


class Plus(Guard):
    def __init__(self, bias: float) -> None:
        self.bias = bias

    def __call__(self, logits: Tensor) -> Tensor:
        return logits + self.bias

    def diagnostics(self) -> dict[str, float]:
        return {"bias": self.bias}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learnt(Defense[None]):
    """Adds what it reads in the finished model."""

    def guard(self, model: nn.Module, context: DefenseContext, public: None) -> Guard:
        return Plus(float(next(model.parameters()).detach().sum()) + len(context.public))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Double(Defense[None]):
    """Has been there before the model was."""

    def output(self, logits: Tensor) -> Tensor:
        return 2 * logits

    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        return x / 2


def model() -> nn.Module:
    """Of weights whose sum is 3."""
    made = nn.Linear(3, 1, bias=False)
    nn.init.ones_(made.weight)
    return made


def at_work(defense: Defense[object]) -> PreparedDefense:
    public = defense.pretrain(CONTEXT)
    prepared = defense.prepare(IMAGES, CONTEXT, public, client=0)
    guard = defense.guard(model(), CONTEXT, public)
    return prepared if guard is None else guard.behind(prepared)


def test_by_default_the_finished_model_changes_nothing() -> None:
    assert NoDefense().guard(model(), CONTEXT, None) is None
    parts = Stack(parts=(NoDefense(), Double()))
    assert parts.guard(model(), CONTEXT, (None, None)) is None


def test_answers_pass_the_hook_and_then_the_guard() -> None:
    prepared = at_work(Learnt())
    assert prepared.output(torch.tensor([[1.0]])).tolist() == [[8.0]]
    assert prepared.changes("output")
    assert not prepared.changes("data")


def test_a_stack_goes_part_by_part_in_its_order() -> None:
    x = torch.ones(1, 1, 8, 8)
    first, last = at_work(Stack(parts=(Double(), Learnt()))), at_work(Stack(parts=(Learnt(), Double())))
    assert first.output(torch.tensor([[1.0]])).tolist() == [[2 + 7.0]]
    assert last.output(torch.tensor([[1.0]])).tolist() == [[2 * (1 + 7.0)]]
    for prepared in (first, last):
        assert torch.equal(prepared.data(x, None, torch.Generator()), x / 2)
        assert prepared.changes("data")


def test_a_stacks_guard_tells_the_largest_of_what_its_parts_tell() -> None:
    guard = Stack(parts=(Learnt(), NoDefense(), Learnt())).guard(model(), CONTEXT, (None, None, None))
    assert guard is not None
    assert guard(torch.zeros(1, 1)).tolist() == [[14.0]]
    assert guard.diagnostics() == {"bias": 7.0}
