"""The messages that pass between client, server, attacker and scorer. All are frozen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from torch import Tensor

from fedveil.fl.errors import FedveilError
from fedveil.fl.optimizers import OPTIMIZERS, PLAIN_SGD, LocalOptimizer

FLOAT_BITS = 32


class UpdateKind(StrEnum):
    """What the tensors of a `ClientUpdate` are."""

    GRADIENT = "gradient"
    """The mean gradient of the loss at the weights that the server sent (FedSGD)."""
    DELTA = "delta"
    """Local weights after training minus the weights that the server sent (FedAvg)."""


@dataclass(frozen=True)
class ClientUpdate:
    """What leaves a client, and all that an attacker on the server ever sees of it. Never images or labels.

    >>> import torch, fedveil as fv
    >>> fv.Update.delta({'weight': torch.ones(2)}, learning_rate=0.1, local_steps=5).local_steps
    5


    Attributes:
        tensors: by parameter name, shaped as that parameter, float32.
        buffers: by buffer name, the change of floating-point buffers (BatchNorm statistics); may be empty.
        examples: number of training examples behind the update, the weight in FedAvg.
        kind: gradient or weight delta.
        local_steps: optimiser steps that were taken; 1 for a gradient.
        learning_rate: the client's learning rate.
        rate_known: ``tensors`` times `gradient_scale` is the mean gradient over the client's steps, in size too. Otherwise
            the size of a weight change tells nothing of the gradient's: the rate is not known, the optimiser is no plain
            SGD, or public images were mixed in.
        optimizer: what took the local steps, a setting of the protocol; see `plain`.
        value_bits: that an entry of ``tensors`` takes on the wire; fewer than a float32's 32 where a defence leaves each
            tensor so few different values, which then cost 4 bytes beside it for their size.
    """

    tensors: Mapping[str, Tensor]
    examples: int
    kind: UpdateKind
    local_steps: int
    learning_rate: float
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    rate_known: bool = True
    optimizer: LocalOptimizer = PLAIN_SGD
    value_bits: int = FLOAT_BITS

    @classmethod
    def gradient(cls, tensors: Mapping[str, Tensor], *, examples: int = 1) -> ClientUpdate:
        """Return an update that holds the mean gradient of one batch.

        >>> import torch
        >>> ClientUpdate.gradient({"weight": torch.zeros(2)}).kind
        <UpdateKind.GRADIENT: 'gradient'>
        """
        return cls(dict(tensors), examples, UpdateKind.GRADIENT, local_steps=1, learning_rate=1.0)

    @classmethod
    def delta(
        cls,
        tensors: Mapping[str, Tensor],
        *,
        learning_rate: float | None = None,
        local_steps: int = 1,
        examples: int = 1,
        buffers: Mapping[str, Tensor] | None = None,
        optimizer: str | LocalOptimizer = "sgd",
    ) -> ClientUpdate:
        """Return an update that holds a weight change: local weights after training minus those that the server sent.

        Args:
            tensors: by parameter name.
            learning_rate: the client's. None if it is not known: attacks then match the direction alone, and guess the rate
                where labels of a batch are counted or several steps are replayed.
            local_steps: optimiser steps behind the change.
            examples: training examples behind it.
            buffers: change of the floating-point buffers, by name.
            optimizer: that took the steps, its state empty at the first: ``sgd``, ``adam``, or one of
                `fedveil.fl.optimizers` with settings. Attacks match the direction alone where it is no plain SGD.

        Raises:
            FedveilError: ``learning_rate`` is not above 0, or lacks beside an optimiser that is no plain SGD; there is no
                step; or the optimiser is unknown.
        """
        rate = 1.0 if learning_rate is None else learning_rate
        if not (rate > 0 and local_steps >= 1):
            raise FedveilError(
                f"update: learning_rate {learning_rate}, local_steps {local_steps}; above 0 and at least 1 are allowed"
            )
        rule = OPTIMIZERS[optimizer]() if isinstance(optimizer, str) else optimizer
        plain = rule.plain(local_steps)
        if learning_rate is None and not plain:
            raise FedveilError(f"update: the learning_rate of {rule!r} is not given, and its steps do not tell it")
        return cls(
            dict(tensors),
            examples,
            UpdateKind.DELTA,
            local_steps,
            rate,
            dict(buffers or {}),
            rate_known=learning_rate is not None and plain,
            optimizer=rule,
        )

    @property
    def plain(self) -> bool:
        """Whether gradients are all that it is made of, at a rate that may be unknown: a gradient, or steps of plain SGD."""
        return self.kind is UpdateKind.GRADIENT or self.optimizer.plain(self.local_steps)

    @property
    def gradient_scale(self) -> float:
        """What ``tensors`` times this is: the mean direction of the client's steps, for plain SGD their mean gradient."""
        return 1.0 if self.kind is UpdateKind.GRADIENT else -1.0 / (self.local_steps * self.learning_rate)

    def nbytes(self) -> int:
        """Bytes on the wire: of each tensor the smallest of three encodings, in whole bytes.

        They are all entries; those that are not zero and a bitmap of where they are; or those with a 4-byte index each.
        """
        tensors = [(tensor, self.value_bits) for tensor in self.tensors.values()]
        return sum(
            _encoded(tensor, bits) for tensor, bits in [*tensors, *((b, FLOAT_BITS) for b in self.buffers.values())]
        )


def _encoded(tensor: Tensor, value_bits: int) -> int:
    entries, sent = tensor.numel(), int(tensor.count_nonzero())
    bits = min(entries * value_bits, sent * value_bits + entries, sent * (value_bits + 32))
    return -(-bits // 8) + (4 if value_bits < FLOAT_BITS and sent else 0)


@dataclass(frozen=True)
class ThreatModel:
    """What the attacker holds beside the update, the model's code and the weights that the server sent.

    The batch size and the number of local steps are always granted: both are protocol settings.

    >>> import fedveil as fv
    >>> fv.ThreatModel(labels=False).lacks(fv.ThreatModel(auxiliary_data=True))
    ['labels', 'auxiliary_data']


    Attributes:
        labels: the true labels of the batch (otherwise the attack has to recover them).
        auxiliary_data: images of the same kind that belong to no client and that no client has seen.
        defense_algorithm: the defence's code, its hyperparameters and what it learnt from public images.
        defense_modules: the modules that the client trained on its own images too.
        trained_images: the very images that the client trained on, as if gradient inversion were perfect. No real
            server has them; by data processing an attack under this grant bounds all attacks without it.
    """

    labels: bool = True
    auxiliary_data: bool = False
    defense_algorithm: bool = False
    defense_modules: bool = False
    trained_images: bool = False

    def lacks(self, needed: ThreatModel) -> list[str]:
        """Return the names of the grants that ``needed`` has and this threat model has not."""
        return [name for name in self.__dataclass_fields__ if getattr(needed, name) and not getattr(self, name)]


Likeness = Callable[[Tensor], Tensor]
"""How well each of g candidates explains what an attacker observed, higher for more: (g, C, H, W) in [0, 1] to (B, g)."""


@dataclass(frozen=True)
class Reconstruction:
    """What an attack returns for one victim batch. It holds no score against the truth: the attacker has none.

    >>> import torch, fedveil as fv
    >>> fv.Reconstruction(torch.full((1, 1, 8, 8), 0.5), torch.tensor([2]), loss=0.1).images.shape
    torch.Size([1, 1, 8, 8])


    Attributes:
        images: (B, C, H, W) in [0, 1].
        labels: (B,) the labels that the attack used, given or recovered.
        loss: the attack's own final objective, by which restarts are chosen (lower is better).
        blind: (B, C, H, W) in [0, 1], image by image the same, by an attacker that was not told the labels: classes are read
            from these. None where ``images`` themselves were made without being told.
        classes: (B,) int64, what a classifier of the attacker's own reads, not told the labels either; None without one.
        likeness: forward matching: how to recognise the image behind each of ``images`` among candidates by passing these
            through the known defence. The attack never sees the candidates; None where it can't tell.
        scale_guessed: the update hardly tells how bright the images are, and a prior has set it.
    """

    images: Tensor
    labels: Tensor
    loss: float
    blind: Tensor | None = None
    classes: Tensor | None = None
    likeness: Likeness | None = None
    scale_guessed: bool = False


@dataclass(frozen=True)
class PrivacyRecord:
    """The scores of one attack on one victim image. Images are in [0, 1] and errors are per pixel.

    >>> import fedveil as fv
    >>> where = {"seed": 0, "round": 0, "client": 0, "victim": 0, "label": 1}
    >>> scores = {"mse": 0.01, "psnr": 20.0, "ssim": 0.5, "label_recovered": True}
    >>> fv.PrivacyRecord("guess", fv.ThreatModel(), **where, **scores).identified is None
    True


    Attributes:
        attack: the attack's label: its name, numbered where an audit runs several of that name.
        threat_model: what that attack was granted.
        seed: the trial's seed.
        round: the federated round before which the update was captured.
        client: the client's number.
        victim: the victim's number, the same for every defence.
        label: the true label.
        mse: mean squared error of the reconstruction against the original.
        psnr: of that error, in dB, at most 100.
        ssim: structural similarity against the original.
        label_recovered: the attack used the true label, for this victim or, order aside, for another one of its batch; None
            where the true labels are not known.
        mse_to_perturbed: against the image that the client really trained on (did the attack itself work?); None where
            that image is not known.
        trained_mse: of the image that the client trained on, against the original (a perfect inversion's error).
        baseline_mse: of the guess of an attacker without the update, against the original; None without auxiliary images.
        attacker_label: the class that the judge reads in the reconstruction that was made without the label, if there is
            one; None where nothing can be read from it: there is no judge, or the attack only shows the label that it was
            told.
        identified: the nearest image of the gallery is the original itself; None without a gallery.
        identified_forward: the original is the image of the gallery that explains best what was observed, passed through
            the known defence; None where the attack can't tell.
        adaptive_label: the class that the attacker's own classifier reads, not told the label; None without one.
        misfit: how far what the client would send, had it trained on the batch's reconstruction, is from what it sent (a
            cosine distance), as a share of how far it would be with grey images: the attacker's own measure, which needs no
            truth. None for attacks that look for other images than those that were trained on, and where the defence
            changes updates, so that no image explains them.
    """

    attack: str
    threat_model: ThreatModel
    seed: int
    round: int
    client: int
    victim: int
    label: int
    mse: float
    psnr: float
    ssim: float
    label_recovered: bool | None
    mse_to_perturbed: float | None = None
    trained_mse: float | None = None
    baseline_mse: float | None = None
    attacker_label: int | None = None
    identified: bool | None = None
    identified_forward: bool | None = None
    adaptive_label: int | None = None
    misfit: float | None = None
