"""From a function of tensors to a short list of operations: traced once, freed of what is done twice or for nothing.

`torch.func` works a step out anew each time, operation by operation through several layers of Python, and computes the
network's forward and backward pass both for the gradient and for its derivative. The traced graph computes them once.
Every operation that is left is one that the function runs itself, on the same numbers: results are equal to the last bit.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

aten = torch.ops.aten

Compute = Callable[..., Sequence[Tensor]]
"""From tensors to tensors."""


class Untraceable(Exception):
    """The function draws random numbers, or changes what it was given."""


def traced(function: Compute, inputs: Sequence[Tensor]) -> fx.GraphModule:
    """Return ``function`` for inputs of these shapes, types and devices.

    Args:
        function: of tensors alone. What it reads beside its inputs is taken for constant.
        inputs: an example; nothing of it but the shapes stays in the graph.

    Raises:
        Untraceable: its operations can't be reordered.
        Exception: whatever tracing raises, for instance where the function reads a number off a tensor.
    """
    module = make_fx(function)(*inputs)
    if not all(_pure(node) for node in module.graph.nodes):
        module = make_fx(functionalize(function, remove="mutations"))(*inputs)
    if impure := [str(node.target) for node in module.graph.nodes if not _pure(node)]:
        raise Untraceable(f"{impure[0]} can't be traced")
    _simplify(module.graph)
    module.recompile()
    return module


def _pure(node: fx.Node) -> bool:
    """The node's result depends on its inputs alone, and it changes none of them."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.op != "call_function" or node.target is operator.getitem
    return not node.target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in node.target.tags


def _simplify(graph: fx.Graph) -> None:
    """Merge equal nodes, skip those that change nothing, and drop those that nothing needs."""
    seen: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if _idle(node):
            same = node.args[0]
        else:
            if node.target in _RESHAPES and _reshapes(node.args[0]):
                # Two reshapes in a row are the second.
                node.update_arg(0, node.args[0].args[0])
            same = seen.setdefault(_key(node), node)
        if same is not node:
            node.replace_all_uses_with(same)
            graph.erase_node(node)
    graph.eliminate_dead_code()


_RESHAPES = frozenset({aten.view.default, aten._unsafe_view.default})


def _reshapes(value: object) -> bool:
    return isinstance(value, fx.Node) and value.target in _RESHAPES


def _idle(node: fx.Node) -> bool:
    """The node returns its first argument as it is."""
    if node.target in (aten.detach.default, aten.alias.default):
        return True
    if node.target not in (*_RESHAPES, aten.permute.default, aten.expand.default):
        return False
    before, after = node.args[0].meta["val"], node.meta["val"]
    return before.shape == after.shape and before.stride() == after.stride()


def _key(node: fx.Node) -> tuple[object, ...]:
    """Equal for nodes that compute the same: options that say what is the default anyway are left out."""
    options = {name: value for name, value in node.kwargs.items() if value not in (None, False, torch.preserve_format)}
    return node.target, repr(node.args), repr(sorted(options.items(), key=str))
