"""What other frameworks' clients return: weights after training, as an update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from fedveil.attacks.audit.inputs import as_tensor, names_in_order
from fedveil.fl.errors import FedveilError, brief
from fedveil.fl.messages import ClientUpdate
from fedveil.fl.optimizers import LocalOptimizer


def update_between(
    model: nn.Module,
    weights: Mapping[str, Any] | Sequence[Any],
    *,
    learning_rate: float | None = None,
    local_steps: int = 1,
    examples: int = 1,
    optimizer: str | LocalOptimizer = "sgd",
) -> ClientUpdate:
    """Return the update of a client that was sent one set of weights and returned another.

    >>> import torch, fedveil as fv
    >>> model = torch.nn.Linear(2, 2)
    >>> after = {name: value + 0.5 for name, value in model.state_dict().items()}
    >>> fv.update_between(model, after, learning_rate=0.1).tensors["bias"]
    tensor([0.5000, 0.5000])

    Args:
        model: with the weights that the server sent.
        weights: the client's after training, tensors or arrays: by the names of the ``state_dict`` or in its order, or
            in that of the parameters. Some may be missing.
        learning_rate: see `ClientUpdate.delta`.
        local_steps: see `ClientUpdate.delta`.
        examples: see `ClientUpdate.delta`.
        optimizer: see `ClientUpdate.delta`.

    Returns:
        The change of parameters, and of all buffers that are there, BatchNorm's count of batches included.

    Raises:
        FedveilError: a name or a shape is not the model's; or see `ClientUpdate.delta`.
    """
    after = (
        weights
        if isinstance(weights, Mapping)
        else dict(zip(names_in_order(model, len(weights)), weights, strict=True))
    )
    before = model.state_dict()
    change = {}
    for name, value in after.items():
        tensor = as_tensor(f"weights: {name}", value)
        if name not in before or tensor.shape != before[name].shape:
            raise FedveilError(f"weights: the model has no {brief(name)} of shape {tuple(tensor.shape)}")
        change[name] = tensor - before[name].detach().cpu()
    parameters, buffers = (dict(of) for of in (model.named_parameters(), model.named_buffers()))
    return ClientUpdate.delta(
        {name: change[name] for name in parameters if name in change},
        learning_rate=learning_rate,
        local_steps=local_steps,
        examples=examples,
        buffers={name: change[name] for name in buffers if name in change},
        optimizer=optimizer,
    )
