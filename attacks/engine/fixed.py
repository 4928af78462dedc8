"""What a list of operations makes of inputs that stay the same, made once.

From step to step only the images change: the squares of the observed gradients, turned kernels and one-hot labels do not.
The record of a step is cut in two: what depends on nothing that changes, and the rest, which gets its results ready-made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx

Operations = Callable[..., Sequence[Tensor]]


class Fixed:
    """Inputs that stay the same, last among those of a function, with what was made of them.

    Args:
        tensors: nobody changes them in place.
    """

    def __init__(self, tensors: Sequence[Tensor] = ()) -> None:
        self.tensors = tuple(tensors)
        self._made: WeakKeyDictionary[Halves, Sequence[Tensor]] = WeakKeyDictionary()

    def made(self, halves: Halves) -> Sequence[Tensor]:
        """Return what a record's first half makes of them."""
        if halves not in self._made:
            self._made[halves] = halves.before(*self.tensors)
        return self._made[halves]


class Halves:
    """A record in two: the second half is run each time.

    Args:
        record: a list of operations.
        changing: so many of its first inputs change.
    """

    def __init__(self, record: fx.GraphModule, changing: int) -> None:
        self.before, self._after = _cut(record, changing)

    def __call__(self, inputs: Sequence[Tensor], fixed: Fixed) -> Sequence[Tensor]:
        """Return what the record gives for all inputs."""
        with torch.no_grad():
            return self._after(*inputs, *fixed.made(self))


def _cut(record: fx.GraphModule, changing: int) -> tuple[Operations, Operations]:
    nodes = list(record.graph.nodes)
    results, places = nodes[-1], [node for node in nodes if node.op == "placeholder"]
    moving = {*places[:changing], results}
    for node in nodes:
        if node.op == "call_function" and not moving.isdisjoint(node.all_input_nodes):
            moving.add(node)
    # What is handed out is made each time, for whoever gets it may change it.
    moving.update(node for node in results.all_input_nodes if node.op == "call_function")
    needed = [node for node in nodes if node not in moving and not moving.isdisjoint(node.users)]

    names: dict[fx.Node, fx.Node] = {}
    first = fx.Graph()
    for node in nodes:
        if node not in moving:
            names[node] = first.node_copy(node, names.__getitem__)
    first.output(tuple(names[node] for node in needed))
    # The inputs stay as they are, used or not; the operations that nothing needs go.
    first.eliminate_dead_code()

    names = {}
    second = fx.Graph()
    for node in places[:changing]:
        names[node] = second.node_copy(node)
    for node in needed:
        names[node] = second.placeholder(f"made_{node.name}")
    for node in nodes:
        if node in moving and node.op == "call_function":
            names[node] = second.node_copy(node, names.__getitem__)
    second.output(tuple(names[node] for node in results.args[0]))
    # Modules are kept alive by their methods.
    return fx.GraphModule(record, first).forward, fx.GraphModule(record, second).forward
