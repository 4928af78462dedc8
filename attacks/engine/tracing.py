"""From a function of tensors to a short list of operations: recorded once, freed of what is done twice or for nothing.

`torch.func` works a step out anew each time, operation by operation through several layers of Python, and computes the
network's forward and backward pass both for the gradient and for its derivative. The record holds them once. Every
operation that is left is one that the function runs itself, on the same numbers: results are equal to the last bit.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

aten = torch.ops.aten

Compute = Callable[..., Sequence[Tensor]]
"""From tensors to tensors."""


class Untraceable(Exception):
    """The function reads numbers off its tensors, draws at random, or changes a tensor that something else shares."""


def traced(function: Compute, inputs: Sequence[Tensor]) -> fx.GraphModule:
    """Return ``function`` for inputs of these shapes, types and devices, as a list of operations.

    Args:
        function: of tensors alone. What it reads beside its inputs is taken for constant.
        inputs: an example; nothing of it but the shapes stays in the list.

    Raises:
        Untraceable: see there.
        Exception: whatever the function raises.
    """
    recorder = _Recorder(inputs)
    with recorder:
        outputs = function(*inputs)
    return recorder.finished(outputs)


_NO_FUNCTION = {
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
    torch.Tag.nondeterministic_seeded,
}
_MAY_BE_IDLE = {
    aten.detach.default,
    aten.alias.default,
    aten.view.default,
    aten._unsafe_view.default,
    aten.permute.default,
    aten.transpose.int,
    aten.expand.default,
}
_VIEWS = {aten.view.default, aten._unsafe_view.default}


class _Recorder(TorchDispatchMode):
    """Notes each operation once, by the nodes that its tensors are known as.

    An operation that works in place is noted as the one that does not. This is right as long as nothing reads the old
    numbers, or the new ones by another name; who tries is refused.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._graph, self._constants = fx.Graph(), nn.Module()
        # Of each tensor that lives: its node, and when it got it.
        self._known: Any = WeakTensorKeyDictionary()
        self._clock: Iterator[int] = count()
        self._done: dict[Any, fx.Node] = {}
        # Of memory that an operation in place has changed: when.
        self._changed: dict[int, int] = {}
        self._given = {tensor.untyped_storage()._cdata for tensor in inputs}
        for number, tensor in enumerate(inputs):
            self._know(tensor, self._graph.placeholder(f"input_{number}"))

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation, and note it."""
        options = dict(kwargs or {})
        if not _NO_FUNCTION.isdisjoint(func.tags):
            raise Untraceable(f"{func} depends on more than shapes")
        nodes, named = tree_map_only(Tensor, self._node, (tuple(args), options))
        if func._schema.is_mutable:
            return self._in_place(func, args, options, nodes, named)
        result = func(*args, **options)
        if func in _MAY_BE_IDLE and _layout(args[0]) == _layout(result):
            self._know(result, nodes[0])
        elif func in _VIEWS:
            # A view of a view is one of what is behind both.
            behind = nodes[0].args[0] if nodes[0].target in _VIEWS else nodes[0]
            if behind.meta[_LAYOUT] == _layout(result):
                self._know(result, behind)
            else:
                self._note(aten.view.default, result, (behind, list(result.shape)), {})
        else:
            self._note(func, result, nodes, named)
        return result

    def _note(self, func: OpOverload, result: Any, nodes: tuple[Any, ...], named: dict[str, Any]) -> None:
        node = self._once(func, nodes, named)
        if isinstance(result, Tensor):
            self._know(result, node)
            return
        for number, tensor in enumerate(result):
            if isinstance(tensor, Tensor):
                self._know(tensor, self._once(operator.getitem, (node, number), {}))

    def _once(self, func: Callable[..., Any], nodes: tuple[Any, ...], named: dict[str, Any]) -> fx.Node:
        key = func, _frozen(nodes), _frozen({name: value for name, value in named.items() if value not in _DEFAULTS})
        if key not in self._done:
            self._done[key] = self._graph.call_function(func, nodes, named)
        return self._done[key]

    def _in_place(
        self, func: OpOverload, args: Sequence[Any], options: dict[str, Any], nodes: Any, named: dict[str, Any]
    ) -> Any:
        target, name = args[0], func._schema.name.removeprefix("aten::")
        plain = getattr(getattr(aten, name.removesuffix("_"), None), func._overloadname, None)
        memory = target.untyped_storage()._cdata if isinstance(target, Tensor) else None
        if not name.endswith("_") or not isinstance(plain, OpOverload) or memory is None or memory in self._given:
            raise Untraceable(f"{func} works in place")
        result = func(*args, **options)
        self._changed[memory] = next(self._clock)
        self._note(plain, target, nodes, named)
        return result

    def _know(self, tensor: Tensor, node: fx.Node) -> None:
        node.meta[_LAYOUT] = _layout(tensor)
        self._known[tensor] = node, next(self._clock)

    def _node(self, tensor: Tensor) -> fx.Node:
        if tensor not in self._known:
            name = f"constant_{len(self._constants._buffers)}"
            self._constants.register_buffer(name, tensor.detach())
            self._given.add(tensor.untyped_storage()._cdata)
            self._know(tensor, self._graph.get_attr(name))
        node, since = self._known[tensor]
        if self._changed and self._changed.get(tensor.untyped_storage()._cdata, -1) > since:
            raise Untraceable("a tensor is read that another one of the same memory has changed")
        return node  # type: ignore[no-any-return]

    def finished(self, outputs: Sequence[Tensor]) -> fx.GraphModule:
        self._graph.output(tuple(self._node(tensor) for tensor in outputs))
        self._graph.eliminate_dead_code()
        return fx.GraphModule(self._constants, self._graph)


_LAYOUT = "layout"


def _layout(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype


_DEFAULTS = (None, False, torch.preserve_format)


def _frozen(value: Any) -> Any:
    """A stand-in that can be looked up; numbers keep their type, for 1 is not 1.0."""
    if isinstance(value, list | tuple):
        return tuple(_frozen(one) for one in value)
    if isinstance(value, dict):
        return tuple((name, _frozen(one)) for name, one in sorted(value.items()))
    return value if isinstance(value, fx.Node) else (type(value), value)
