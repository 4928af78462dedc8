"""What an experiment takes of the memory, estimated before anything of it is there."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn

from fedveil.defense.inverse.learnt import InverseTraining
from fedveil.defense.inverse.network import InverseNetwork
from fedveil.fl.errors import FedveilError
from fedveil.fl.memory import GIB, check_room
from fedveil.fl.models import ModelSpec, build_model
from fedveil.orchestrator.config import Experiment

_COPIES = 2
"""Of the weights in the process that leads the trial: those that were sent, and those that come back."""

_LIGHT = 2**26
_NARROW = 128
"""Bytes of a classifier, and width of a learnt inverse, up to which it is made for the estimate."""


def check_memory(experiment: Experiment, spec: ModelSpec, *, shard: int, here: bool) -> None:
    """Refuse what this machine's memory cannot hold. The estimate is low: what it refuses would certainly fail.

    Args:
        experiment: with one seed.
        spec: its model.
        shard: images of the client that has most.
        here: the workers are on this machine; on others their memory is not known.

    Raises:
        FedveilError: it names the settings.
    """
    batch = min(experiment.fl.batch_size, shard)
    estimate = weight_and_step(spec, batch)
    if estimate is not None:
        weight, step = estimate
        check_room(_COPIES * weight, f"model.width: model {spec.name}")
        workers = experiment.resources.workers or 1  # where it is left open there may be one
        if here and not experiment.resources.gpus_per_worker:
            check_room(
                _COPIES * weight + workers * (weight + step),
                f"model.width, fl.batch_size, resources.workers: {workers} worker(s) with model {spec.name} of"
                f" {weight / GIB:,.2f} GiB and steps of {batch} images",
            )
    for index, attack in enumerate(experiment.audit.build_attacks()[1:]):
        training = getattr(attack, "inverse", None)
        if here and isinstance(training, InverseTraining):
            check_room(
                _inverse_step(spec, training.width, training.batch_size),
                f"audit.attacks.{index}.inverse: width {training.width} with steps of {training.batch_size} images",
            )


@lru_cache(maxsize=256)
def weight_and_step(spec: ModelSpec, batch_size: int) -> tuple[int, int] | None:
    """Return the bytes of a model and those that one training step on it takes beside; None where that can't be told.

    A user's own model need not run on tensors without content.
    """

    def inputs(count: int) -> tuple[Tensor, ...]:
        return (torch.zeros(count, *spec.image_shape),)

    try:
        with torch.device("meta"):
            light = _weight(build_model(spec)) <= _LIGHT
        return _measured(lambda: build_model(spec).eval(), inputs, batch_size, light=light)
    except FedveilError:
        raise
    except Exception:
        return None


@lru_cache(maxsize=256)
def _inverse_step(spec: ModelSpec, width: int, batch_size: int) -> int:
    """Return the bytes that one step of training a learnt inverse takes, its weights included."""

    def inputs(count: int) -> tuple[Tensor, ...]:
        return torch.zeros(1, count, *spec.image_shape), torch.zeros(count, dtype=torch.int64)

    def network() -> nn.Module:
        return InverseNetwork(spec.image_shape, classes=spec.classes, width=width, several=False)

    return sum(_measured(network, inputs, batch_size, light=width <= _NARROW))


def _measured(
    make: Callable[[], nn.Module], inputs: Callable[[int], tuple[Tensor, ...]], batch_size: int, *, light: bool
) -> tuple[int, int]:
    """Return the bytes of a network, and those of a training step: its gradients, and what they are reckoned from.

    What is heavy stays without content. A light network makes a step on one image that is there: many operations without
    content load PyTorch's compiler, which takes seconds.
    """
    with torch.device("cpu" if light else "meta"):
        network = make()
        weight = _weight(network)
        kept = batch_size * _kept(network, inputs(1)) if light else _kept(network, inputs(batch_size))
    return weight, weight + kept


def _weight(network: nn.Module) -> int:
    return sum(value.nbytes for value in network.state_dict().values())


def _kept(network: nn.Module, given: tuple[Tensor, ...]) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, beside the network's own."""
    own = {value.untyped_storage()._cdata for value in network.state_dict(keep_vars=True).values()}
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            sizes[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(*given)
    del output  # until here the graph held all of them, so that no two had one address
    return sum(sizes.values())
