"""The `Defense` interface: settings, what they become when a client prepares them, and what an attacker may know of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from fedveil.fl.data.images import Images
from fedveil.fl.hooks import HOOKS, Memory, NoHooks, Turn
from fedveil.fl.messages import ClientUpdate
from fedveil.fl.models import ModelSpec
from fedveil.fl.registry import Registry
from fedveil.fl.rounds import Exposure
from fedveil.fl.seeding import torch_stream

if TYPE_CHECKING:
    from fedveil.defense.guard import Guard

DEFENSES: Registry[type[Defense[Any]]] = Registry("defense")

Gradients = Mapping[str, Tensor]
LossHook = Callable[[Tensor, nn.Module, Tensor, Tensor, Tensor], Tensor]
"""See `fedveil.fl.hooks.ClientHooks.loss`."""
BatchHook = Callable[[nn.Module, Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]
"""See `fedveil.fl.hooks.ClientHooks.batch`."""
Public = TypeVar("Public")
"""What a defence learns from public images, once for all clients; None for most."""


class TrainedOn(StrEnum):
    """What a defence's modules are trained on, hence how many versions of them an attacker may hold.

    >>> import fedveil as fv
    >>> [source.value for source in fv.TrainedOn]
    ['nothing', 'public', 'client']
    """

    NOTHING = "nothing"
    PUBLIC = "public"
    CLIENT = "client"


@dataclass(frozen=True)
class DefenseContext:
    """What a defence is given to prepare itself with, beside the client's images.

    >>> import torch, fedveil as fv
    >>> from fedveil.fl.models import ModelSpec
    >>> public = fv.load_data("mni152").val
    >>> context = fv.DefenseContext(public, ModelSpec("lenet", public.shape, 3), torch.device("cpu"), seed=0)
    >>> fv.Defense().prepare(public, context, None, client=0).changes("data")
    False

    Attributes:
        public: images that belong to no client; server and clients hold them.
        model: the classifier that the federation trains.
        device: where to compute.
        seed: of the trial, or of the attacker that prepares the defence for itself.
        augmentation: how clients vary images when they train, see `fedveil.fl.augmentation`.
        cache: folder where what was learnt is kept for the next trial: on public images, and by defences like `latent` the
            images that clients train on instead of theirs, by the bytes of the shard. None for no cache.
    """

    public: Images
    model: ModelSpec
    device: torch.device
    seed: int
    cache: Path | None = None
    augmentation: tuple[str, ...] = ()

    def stream(self, *path: str | int) -> torch.Generator:
        """Return the random stream ``path`` of this context."""
        return torch_stream(self.seed, "prepare", *path)


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """What a defence whose images depend on each other made of a set of images, all at once.

    Attributes:
        kept: (m,) int64, which of the images would be trained on, ascending.
        trained: the m images that would be trained on instead of those, in their order.
    """

    kept: Tensor
    trained: Images


@dataclass(frozen=True)
class Surrogate:
    """What the adaptive attacker gets of a prepared defence.

    >>> import fedveil as fv
    >>> fv.Surrogate(data=lambda x, y, stream: x / 2).data(3.0, None, None)
    1.5


    Attributes:
        data: draws from the law of the trained-on images given originals and their labels, (n, C, H, W) and (n,) to
            (n, C, H, W), with the attacker's own stream; None where the defence leaves images alone.
        batch: makes of a batch as it is in the shard what a step computes on, all that ``data`` hooks do in it, with the
            attacker's own stream; an attacker plays clients by it, and takes labels to be shares of the classes that it has
            to find. ``data`` is then the law of what becomes of one image. None where labels stay whole and ``data`` says
            all.
        update: does to an update what the defence does, with the attacker's own stream; None where it is left alone.
        visible: given what was observed, by parameter name, returns masks in {0, 1} of the entries that tell anything;
            None where all do.
        rehearse: applies a defence that makes one image of many to a set of the attacker's own images, as a client does to
            its shard; such a defence has no law of single images, so that ``data`` is None.
        similar: reads the features (n, D) by which a defence that makes one image of many finds n images alike; None for
            others.
        loss: makes of the mean cross-entropy what the defence makes of it, given the same as its hook, the labels perhaps as
            shares (n, k) of the classes; attacks differentiate it by `torch.func`. None where it is left alone, or where
            ``visible`` says which entries of an update it has left as they were.
        revealed: given a gradient of one image and the weights at which it was taken, returns values of the model's buffers
            that tell what was drawn in its forward pass, by name; attacks run the model with them. None where nothing is
            drawn.
        complete: nothing else happens between an image and its update. Where something does that no attack reckons with,
            an audit says that it is incomplete.
    """

    data: Callable[[Tensor, Tensor | None, torch.Generator], Tensor] | None = None
    update: Callable[[ClientUpdate, torch.Generator], ClientUpdate] | None = None
    visible: Callable[[Gradients], dict[str, Tensor]] | None = None
    rehearse: Callable[[Images, torch.Generator], Rehearsal] | None = None
    similar: Callable[[Images], Tensor] | None = None
    loss: LossHook | None = None
    batch: BatchHook | None = None
    revealed: Callable[[Gradients, Mapping[str, Tensor]], dict[str, Tensor]] | None = None
    complete: bool = True

    @property
    def inverted_plainly(self) -> bool:
        """What was trained on explains the update as if there were no defence."""
        return self.loss is None and self.update is None and self.visible is None and self.batch is None


class PreparedDefense(NoHooks):
    """A defence at work with one client: the hooks of `fedveil.fl.hooks.ClientHooks`, each the identity by default.

    It is never changed once it is made, so it can be sent to many workers.

    >>> import fedveil as fv
    >>> class Halve(fv.PreparedDefense):
    ...     def data(self, x, y, stream):
    ...         return x / 2
    >>> Halve().data(3.0, None, None)
    1.5
    """

    def changes(self, hook: str) -> bool:
        """Whether this defence overrides a hook, given by its name."""
        return getattr(type(self), hook) is not getattr(PreparedDefense, hook)

    def surrogate(self) -> Surrogate:
        """Hand over what an attacker who holds this prepared defence knows of it: by default its own hooks.

        Which prepared defence that is, the client's or one that the attacker prepared on its own images, the threat model
        says (`fedveil.attacks.adaptive.preparation`). Attacks model a changed loss or update as far as a defence's own
        ``surrogate`` says what is to be known of it, so by default such a defence is not complete; nor is one
        that makes one image of many.
        """
        return Surrogate(
            data=self.data if self.changes("data") else None,
            update=self.update if self.changes("update") else None,
            complete=not any(
                self.changes(hook) for hook in ("images", "batch", "loss", "gradients", "update", "carry")
            ),
        )

    def diagnostics(self) -> dict[str, float]:
        """Numbers about the preparation that belong beside the results (``collapsed`` among them, 0 or 1)."""
        return {}

    def indistinct_error(self, images: Images, shard: Images) -> Tensor | None:
        """Return what is proved of the error of any one answer for an image, when its update is looked at by itself.

        Images that look the same in all that is sent have one answer between them, whichever it is. The mean of its squared
        errors is least for their mean image, where it is how much they scatter about it. So no answer is better than that
        on average over them; on one of them it may be, and several answers for several of them may be.

        Args:
            images: n of those that the client trains on.
            shard: all of the client's images. One that is there several times is meant as often.

        Returns:
            (n,) float64, for each the mean squared scatter per value of those that look like it, in units of [0, 1]; None
            where nothing is proved.
        """
        return None


@dataclass(frozen=True, kw_only=True)
class Defense(Generic[Public]):
    """A defence's settings, and nothing else: `repr` shows them as the configuration names them.

    A defence without modules defines the hooks that it needs (``images``, ``data``, ``batch``, ``loss``, ``gradients``,
    ``update``, ``carry``, ``output``; see `fedveil.fl.hooks.ClientHooks`) on its settings, and is done. One that learns
    something overrides `prepare`, and `pretrain` for what needs public images alone.

    >>> import dataclasses, fedveil as fv
    >>> @dataclasses.dataclass(frozen=True, kw_only=True)
    ... class Darken(fv.Defense):
    ...     strength: float = 0.5
    ...     def data(self, x, y, stream):
    ...         return self.strength * x
    >>> Darken(strength=0.25)
    Darken(strength=0.25)
    """

    name: ClassVar[str]
    """The one that it is registered under."""
    dial: ClassVar[str] = "strength"
    """The setting that says how much is protected, by which tables and figures tell trials apart; a number."""

    sampling: ClassVar[str | None] = None
    """How clients have to draw their images (`fedveil.fl.training.LocalTraining`); None for any way."""
    batch_norm: ClassVar[bool] = True
    """Whether it goes with classifiers that have BatchNorm."""

    @property
    def trained_on(self) -> TrainedOn:
        """What this defence's modules are trained on; one that overrides `prepare` is taken to learn from each client."""
        return TrainedOn.NOTHING if type(self).prepare is Defense.prepare else TrainedOn.CLIENT

    @property
    def hooks(self) -> frozenset[str] | None:
        """Which hooks a client that has prepared it overrides, where that is known before anything is learnt; else None.

        By default that is known of a defence without modules. What a list of defences may hold is said by it at once, and
        otherwise when the parts are prepared.
        """
        if type(self).prepare is not Defense.prepare:
            return None
        return frozenset(hook for hook in HOOKS if hasattr(self, hook))

    @property
    def summed(self) -> int:
        """How many clients' updates reach the server as one sum; 1 where it sees each by itself."""
        return 1

    @property
    def mixes(self) -> bool:
        """Whether a step mixes images of the client's that it was prepared with into others, as they are."""
        return False

    def classifier(self, spec: ModelSpec) -> ModelSpec:
        """Return the classifier that the federation trains behind this defence instead of the one that was asked for."""
        return spec

    def pretrain(self, context: DefenseContext) -> Public:
        """Learn once what needs public images alone; every client, and the server too, holds the result."""
        return None  # type: ignore[return-value]

    def prepare(self, private: Images, context: DefenseContext, public: Public, *, client: int) -> PreparedDefense:
        """Return this defence at work with one client.

        Args:
            private: the client's images.
            context: everything else.
            public: from `pretrain`.
            client: its number, which names its random stream.
        """
        return Stateless(self)

    def guarantee(self, exposures: Sequence[Exposure]) -> dict[str, float]:
        """Return what is proved of a whole training, by metric (``epsilon``), for the client for whom that is least.

        Args:
            exposures: how often each client's images were drawn from.
        """
        return {}

    def prepares_in(self, sizes: Sequence[int]) -> int | None:
        """Return how long it takes to prepare for clients, in training steps of the classifier on 64 images: for estimates.

        Args:
            sizes: the clients' images; without any it is what `pretrain` and the public images take.

        Returns:
            About so many, 0 where nothing is learnt; None where nobody has counted.
        """
        own = type(self)
        return 0 if own.prepare is Defense.prepare and own.pretrain is Defense.pretrain else None

    def shadow(self, auxiliary: Images, context: DefenseContext, public: Public) -> PreparedDefense:
        """Return an attacker's own copy, of which its surrogate alone is asked for: prepared as a client does it.

        A defence whose surrogate needs less than that may spare the rest.

        Args:
            auxiliary: the attacker's images, in the place of private ones.
            context: with a seed of the attacker's own.
            public: from `pretrain`.
        """
        return self.prepare(auxiliary, context, public, client=-1)

    def guard(self, model: nn.Module, context: DefenseContext, public: Public) -> Guard | None:
        """Return what the finished model's answers pass from now on, once for all clients; None where that is nothing more.

        The ``output`` hook is there before the model is, so it cannot have learnt from the model's answers. This is asked
        after the last round, holds public images and no client's, and counts for the final utility and for whoever attacks
        the released model.

        Args:
            model: the finished classifier, frozen and in evaluation mode, on the context's device.
            context: as for `prepare`.
            public: from `pretrain`.
        """
        return None


class Stateless(PreparedDefense):
    """A defence whose settings are all there is: its hooks are those that the settings define.

    Args:
        settings: the defence.
    """

    def __init__(self, settings: Defense[Any]) -> None:
        self.settings = settings
        self._hooks: Any = settings

    def _defines(self, hook: str) -> bool:
        return hasattr(self.settings, hook)

    def images(self, shard: Images) -> Images:
        """See `fedveil.fl.hooks.ClientHooks.images`."""
        changed: Images = self._hooks.images(shard) if self._defines("images") else shard
        return changed

    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        """See `fedveil.fl.hooks.ClientHooks.data`."""
        changed: Tensor = self._hooks.data(x, y, stream) if self._defines("data") else x
        return changed

    def batch(self, model: nn.Module, x: Tensor, y: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """See `fedveil.fl.hooks.ClientHooks.batch`."""
        if not self._defines("batch"):
            return x, y
        changed: tuple[Tensor, Tensor] = self._hooks.batch(model, x, y, stream)
        return changed

    def loss(self, loss: Tensor, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        """See `fedveil.fl.hooks.ClientHooks.loss`."""
        changed: Tensor = self._hooks.loss(loss, model, x, y, logits) if self._defines("loss") else loss
        return changed

    def gradients(
        self, loss: Tensor, model: nn.Module, x: Tensor, y: Tensor, expected: int, stream: torch.Generator
    ) -> tuple[Tensor, ...]:
        """See `fedveil.fl.hooks.ClientHooks.gradients`."""
        if not self._defines("gradients"):
            return super().gradients(loss, model, x, y, expected, stream)
        changed: tuple[Tensor, ...] = self._hooks.gradients(loss, model, x, y, expected, stream)
        return changed

    def update(self, update: ClientUpdate, stream: torch.Generator) -> ClientUpdate:
        """See `fedveil.fl.hooks.ClientHooks.update`."""
        changed: ClientUpdate = self._hooks.update(update, stream) if self._defines("update") else update
        return changed

    def carry(self, update: ClientUpdate, turn: Turn, stream: torch.Generator) -> tuple[ClientUpdate, Memory]:
        """See `fedveil.fl.hooks.ClientHooks.carry`."""
        if not self._defines("carry"):
            return super().carry(update, turn, stream)
        sent: tuple[ClientUpdate, Memory] = self._hooks.carry(update, turn, stream)
        return sent

    def output(self, logits: Tensor) -> Tensor:
        """See `fedveil.fl.hooks.ClientHooks.output`."""
        changed: Tensor = self._hooks.output(logits) if self._defines("output") else logits
        return changed

    def changes(self, hook: str) -> bool:
        """See `PreparedDefense.changes`."""
        return self._defines(hook)

    def surrogate(self) -> Surrogate:
        """The settings' own ``surrogate``, or else their hooks as they are: without modules there is no more to know."""
        if not self._defines("surrogate"):
            return super().surrogate()
        own: Surrogate = self._hooks.surrogate()
        return own

    def __repr__(self) -> str:
        return f"Stateless({self.settings!r})"
