"""A client's local training: the one function that makes updates, for rounds and for audits alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice, repeat
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedveil.fl.augmentation import augment, check_augmentations
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.hooks import ClientHooks, Memory, Turn
from fedveil.fl.messages import ClientUpdate, UpdateKind
from fedveil.fl.optimizers import PLAIN_SGD, LocalOptimizer
from fedveil.fl.seeding import derive_seed, seeded_globals

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class LocalTraining:
    """How a client trains.

    >>> spec = LocalTraining(UpdateKind.DELTA, epochs=None, batch_size=8, learning_rate=0.1, steps=50)
    >>> spec.optimizer
    SGD(momentum=0.0, weight_decay=0.0)

    Attributes:
        kind: a gradient of one batch (FedSGD), or the weight change after training (FedAvg, McMahan et al. 2017).
        epochs: passes over the shard; None where ``steps`` counts. FedSGD ignores both.
        batch_size: images of the client per step.
        learning_rate: of the optimiser.
        proximal: mu of FedProx (Li et al. 2020, eq. 2); 0 turns the term off. It is part of the loss, whatever the
            optimiser.
        mode: how BatchNorm and dropout run; ``eval`` is for clients that fine-tune with frozen statistics.
        steps: optimiser steps, of batches from one shuffled pass over the shard after another; None where ``epochs`` counts.
        optimizer: its state begins anew in each round. FedSGD takes no step.
        augmentation: random views of the images that a step computes on, see `fedveil.fl.augmentation.augment`.
        replay: share of public images among those of a step, at least 0 and below 1. They come beside the client's own
            batch, drawn with replacement, and pass no defence.
        sampling: ``shuffled``, batches of one pass after another; or ``poisson``, where each image is in a step with the
            same chance, ``batch_size`` of them on average, on which the accounting of differential privacy relies (Abadi et
            al. 2016, arXiv 1607.00133, section 3.1). An epoch is then as many steps as a shuffled pass has.

    Raises:
        FedveilError: both or neither of ``epochs`` and ``steps`` are given, the share is impossible, an augmentation is
            unknown, or public images are to be replayed beside images that are drawn by chance.
    """

    kind: UpdateKind
    epochs: int | None
    batch_size: int
    learning_rate: float
    proximal: float = 0.0
    mode: Literal["train", "eval"] = "train"
    steps: int | None = None
    optimizer: LocalOptimizer = PLAIN_SGD
    augmentation: tuple[str, ...] = ()
    replay: float = 0.0
    sampling: Literal["shuffled", "poisson"] = "shuffled"

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise FedveilError(f"local training: epochs is {self.epochs}, steps is {self.steps}; give one of the two")
        if not 0 <= self.replay < 1:
            raise FedveilError(f"local training: replay is {self.replay}; it has to be at least 0 and below 1")
        if self.replay and self.sampling == "poisson":
            raise FedveilError("local training: replay goes with shuffled sampling only")
        check_augmentations(self.augmentation)

    def steps_on(self, count: int) -> int:
        """Return how many steps a turn has on a shard of ``count`` images."""
        if self.kind is UpdateKind.GRADIENT:
            return 1
        return self.steps or (self.epochs or 0) * -(-count // self.batch_size)

    def rate_on(self, count: int) -> float:
        """Return which share of a shard of ``count`` images a step draws on average."""
        return min(1.0, self.batch_size / count)

    def replayed(self, own: int) -> int:
        """Return how many public images come beside so many of the client's."""
        return round(own * self.replay / (1 - self.replay))


@dataclass(frozen=True)
class LocalResult:
    """One client's turn.

    Attributes:
        update: what leaves the client, after the defence's `ClientHooks.carry`.
        loss: mean training loss over the examples seen, each step counted by its own images; it stays with the simulation's
            bookkeeping.
        memory: what the client keeps for its next turn, see `fedveil.fl.hooks.Turn`.
    """

    update: ClientUpdate
    loss: float
    memory: Memory


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
    if spec.sampling == "poisson":
        for _ in range(spec.steps_on(count)):
            yield (torch.rand(count, generator=stream) < spec.rate_on(count)).nonzero().flatten()
        return
    if spec.kind is UpdateKind.GRADIENT:
        yield torch.randperm(count, generator=stream)[: spec.batch_size]
        return
    # Each pass is drawn when its first batch is due.
    passes = repeat(None) if spec.epochs is None else repeat(None, spec.epochs)
    batches = (batch for _ in passes for batch in torch.randperm(count, generator=stream).split(spec.batch_size))
    yield from islice(batches, spec.steps)


def local_update(
    model: nn.Module,
    weights: Weights,
    shard: Images,
    hooks: ClientHooks,
    spec: LocalTraining,
    stream: torch.Generator,
    *,
    public: Images | None = None,
    memory: Memory | None = None,
    on_batch: Callable[[Tensor, Tensor], None] | None = None,
) -> LocalResult:
    """Train ``model`` from ``weights`` on ``shard`` behind the defence ``hooks``, and return what leaves the client.

    A step takes a batch of the shard, passes it through the defence, puts public images beside it, and computes on a random
    view of all of them. What leaves says whether it is made of gradients of the client's images alone, see
    `ClientUpdate.rate_known`.

    Args:
        model: on the device to compute on; its weights are overwritten.
        weights: as the server sent them (see `exchanged`).
        shard: the client's images, of which the defence has to leave at least one.
        hooks: the client's defence.
        spec: how to train.
        stream: the only source of randomness; order of batches, the defence's noise, views and dropout come from it.
        public: the images to replay; they belong to no client.
        memory: what the client kept of its last turn; None for a first one.
        on_batch: is shown each of the client's batches as the defence leaves it, without images that it has added, before
            public images and random views, (b, C, H, W), and its indices into what the defence left of the shard, (b,).
            Audits use it to know what a perfect inversion would find.

    Raises:
        FedveilError: the weights do not fit the model, the defence changes the images' shape, makes labels of no classes or
            keeps what is no tensor, or there are no public images to replay.
    """
    if spec.replay and not public:
        raise FedveilError(f"local training: replay is {spec.replay}, and there are no public images")
    device = next(model.parameters()).device
    shard = hooks.images(shard)
    load_exchanged(model, weights)
    model.train(spec.mode == "train")
    # Frozen parameters stay as they are, and the update lacks them.
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    held = list(parameters.values())
    turn = spec.optimizer.begin()
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
        own = len(y)
        if own:
            trained, y = _stepped(hooks, model, trained, y, stream)
        if on_batch is not None:
            on_batch(trained[:own].detach(), indices)
        if public is not None and spec.replay:
            drawn = torch.randint(len(public), (spec.replayed(own),), generator=stream)
            theirs, labels = (beside.to(device) for beside in public.batch(drawn))
            if y.is_floating_point():
                labels = as_shares(labels, y.shape[1])
            trained, y = torch.cat((trained, theirs)), torch.cat((y, labels))
        trained = augment(trained, spec.augmentation, stream)
        if len(y):
            with seeded_globals(derive_seed(stream.initial_seed(), "dropout", steps), device):
                logits = model(trained)
            loss = hooks.loss(F.cross_entropy(logits, y), model, trained, y, logits)
        else:
            loss = torch.zeros((), device=device, requires_grad=True)
        gradients = hooks.gradients(loss, model, trained, y, min(spec.batch_size, len(shard)), stream)
        with torch.no_grad():
            if spec.kind is UpdateKind.GRADIENT:
                for total, gradient in zip(gradient_sum.values(), gradients, strict=True):
                    total += gradient
            else:
                if spec.proximal:
                    sent = [weights[name].to(device) for name in parameters]
                    gradients = tuple(
                        g + spec.proximal * (p - start) for g, p, start in zip(gradients, held, sent, strict=True)
                    )
                for parameter, direction in zip(held, turn(gradients, held), strict=True):
                    parameter.sub_(direction, alpha=spec.learning_rate)
        steps += 1
        examples += own
        loss_sum += float(loss.detach()) * own

    after = exchanged(model)
    change = {name: (after[name].cpu() - weights[name].cpu()).contiguous() for name in after}
    tensors = change if spec.kind is UpdateKind.DELTA else gradient_sum
    update = ClientUpdate(
        # How the model lies in memory is nobody's business.
        tensors={name: tensors[name].cpu().contiguous() for name in parameters},
        buffers={name: change[name] for name, _ in model.named_buffers() if name in change},
        # How many were drawn by chance is nobody's business either.
        examples=len(shard) if spec.kind is UpdateKind.DELTA else min(spec.batch_size, len(shard)),
        kind=spec.kind,
        local_steps=steps,
        learning_rate=spec.learning_rate,
        optimizer=PLAIN_SGD if spec.kind is UpdateKind.GRADIENT else spec.optimizer,
    )
    # Which of the public images were in a step is not known.
    update = replace(update, rate_known=update.plain and not spec.replay)
    leaving, kept = hooks.carry(update, Turn(memory or {}, weights), stream)
    for name, value in kept.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise FedveilError(f"defence: carry() may keep tensors by name, got {name!r:.40}: {type(value).__name__}")
    return LocalResult(leaving, loss_sum / max(1, examples), kept)


def as_shares(labels: Tensor, classes: int) -> Tensor:
    """Return labels (n,) as shares of the classes (n, k); shares stay as they are.

    >>> as_shares(torch.tensor([1]), 3)
    tensor([[0., 1., 0.]])
    """
    if labels.is_floating_point():
        return labels
    return F.one_hot(labels, classes).to(torch.get_default_dtype())


def _stepped(
    hooks: ClientHooks, model: nn.Module, x: Tensor, y: Tensor, stream: torch.Generator
) -> tuple[Tensor, Tensor]:
    """What a step computes on, checked."""
    made = hooks.batch(model, x, y, stream)
    rule = "defence: batch() has to return at least as many images as it was given, and their labels"
    if not (isinstance(made, tuple) and len(made) == 2 and all(isinstance(one, Tensor) for one in made)):
        raise FedveilError(f"{rule}; got {type(made).__name__}")
    images, labels = made
    if images.shape[1:] != x.shape[1:] or len(images) < len(x):
        raise FedveilError(f"{rule}; got images of shape {tuple(images.shape)} for {tuple(x.shape)}")
    if labels.ndim != 1 + labels.is_floating_point() or len(labels) != len(images):
        raise FedveilError(f"{rule}; got labels of shape {tuple(labels.shape)} for {len(images)} images")
    return images, labels


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
