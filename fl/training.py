"""A client's local training: the one function that makes updates, for rounds and for audits alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.hooks import ClientHooks
from fedveil.fl.messages import ClientUpdate, UpdateKind
from fedveil.fl.seeding import derive_seed, seeded_globals

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class LocalTraining:
    """How a client trains.

    Attributes:
        kind: a gradient of one batch (FedSGD), or the weight change after ``epochs`` of SGD (FedAvg).
        epochs: passes over the shard; FedSGD ignores it.
        batch_size: images per step.
        learning_rate: of plain SGD, as in McMahan et al. 2017.
        proximal: mu of FedProx (Li et al. 2020, eq. 2); 0 turns the term off.
        mode: how BatchNorm and dropout run; ``eval`` is for clients that fine-tune with frozen statistics.
    """

    kind: UpdateKind
    epochs: int
    batch_size: int
    learning_rate: float
    proximal: float = 0.0
    mode: Literal["train", "eval"] = "train"


@dataclass(frozen=True)
class LocalResult:
    """One client's turn.

    Attributes:
        update: what leaves the client, after the defence's `ClientHooks.update`.
        loss: mean training loss over the examples seen; it stays with the simulation's bookkeeping.
    """

    update: ClientUpdate
    loss: float


def exchanged(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's parameters and floating-point buffers by name, detached: what server and clients exchange."""
    return {name: value.detach() for name, value in model.state_dict().items() if value.is_floating_point()}


def load_exchanged(model: nn.Module, weights: Weights) -> None:
    """Copy ``weights`` into ``model`` in place.

    Raises:
        FedveilError: the names or shapes differ from the model's own.
    """
    own = exchanged(model)
    if own.keys() != weights.keys():
        odd = sorted(own.keys() ^ weights.keys())
        raise FedveilError(f"weights do not fit the model: {odd[:4]} are on one side only")
    for name, value in own.items():
        # copy_ would broadcast.
        if value.shape != weights[name].shape:
            raise FedveilError(
                f"weights do not fit the model: {name} is {tuple(weights[name].shape)}, not {tuple(value.shape)}"
            )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(weights[name])


def _batches(count: int, spec: LocalTraining, stream: torch.Generator) -> Iterator[Tensor]:
    if spec.kind is UpdateKind.GRADIENT:
        yield torch.randperm(count, generator=stream)[: spec.batch_size]
        return
    for _ in range(spec.epochs):
        yield from torch.randperm(count, generator=stream).split(spec.batch_size)


def local_update(
    model: nn.Module,
    weights: Weights,
    shard: Images,
    hooks: ClientHooks,
    spec: LocalTraining,
    stream: torch.Generator,
    *,
    on_batch: Callable[[Tensor, Tensor], None] | None = None,
) -> LocalResult:
    """Train ``model`` from ``weights`` on ``shard`` behind the defence ``hooks``, and return what leaves the client.

    Args:
        model: on the device to compute on; its weights are overwritten.
        weights: as the server sent them (see `exchanged`).
        shard: the client's images, at least one.
        hooks: the client's defence.
        spec: how to train.
        stream: the only source of randomness; order of batches, the defence's noise and dropout come from it.
        on_batch: is shown each batch as trained on, (b, C, H, W), and its indices into the shard, (b,). Audits use it
            to know what a perfect inversion would find.
    """
    device = next(model.parameters()).device
    load_exchanged(model, weights)
    model.train(spec.mode == "train")
    # Frozen parameters stay as they are, and the update lacks them.
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradient_sum = {name: torch.zeros_like(p) for name, p in parameters.items()}
    steps = examples = 0
    loss_sum = 0.0
    for indices in _batches(len(shard), spec, stream):
        x, y = shard.batch(indices)
        x, y = x.to(device), y.to(device)
        trained = hooks.data(x, y, stream)
        if not isinstance(trained, Tensor) or trained.shape != x.shape:
            got = tuple(trained.shape) if isinstance(trained, Tensor) else type(trained).__name__
            raise FedveilError(f"defence: data() has to return images of shape {tuple(x.shape)}, got {got}")
        if on_batch is not None:
            on_batch(trained.detach(), indices)
        with seeded_globals(derive_seed(stream.initial_seed(), "dropout", steps), device):
            logits = model(trained)
        loss = hooks.loss(F.cross_entropy(logits, y), model, trained, y, logits)
        gradients = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
        with torch.no_grad():
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
                if spec.kind is UpdateKind.GRADIENT:
                    gradient_sum[name] += gradient
                    continue
                if spec.proximal:
                    gradient = gradient + spec.proximal * (parameter - weights[name].to(device))
                parameter.sub_(gradient, alpha=spec.learning_rate)
        steps += 1
        examples += len(y)
        loss_sum += float(loss.detach()) * len(y)

    after = exchanged(model)
    change = {name: after[name].cpu() - weights[name].cpu() for name in after}
    tensors = change if spec.kind is UpdateKind.DELTA else gradient_sum
    update = ClientUpdate(
        tensors={name: tensors[name].cpu() for name in parameters},
        buffers={name: change[name] for name, _ in model.named_buffers() if name in change},
        examples=len(shard) if spec.kind is UpdateKind.DELTA else examples,
        kind=spec.kind,
        local_steps=steps,
        learning_rate=spec.learning_rate,
    )
    return LocalResult(update=hooks.update(update, stream), loss=loss_sum / examples)


@torch.no_grad()
def predict(
    model: nn.Module,
    weights: Weights,
    images: Images,
    hooks: ClientHooks,
    stream: torch.Generator,
    *,
    batch_size: int = 256,
) -> Tensor:
    """Return class probabilities (n, k) of ``images`` seen through a client's own defence, as it would use the model."""
    device = next(model.parameters()).device
    load_exchanged(model, weights)
    model.eval()
    outputs = []
    for indices in torch.arange(len(images)).split(batch_size):
        x, _ = images.batch(indices)
        logits = hooks.output(model(hooks.data(x.to(device), None, stream)))
        outputs.append(logits.softmax(dim=1).cpu())
    return torch.cat(outputs)
