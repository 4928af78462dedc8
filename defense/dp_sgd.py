"""DP-SGD (Abadi et al. 2016, arXiv 1607.00133, algorithm 1): each image's gradient is clipped, and their sum gets noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from fedveil.defense.base import DEFENSES, Defense, Surrogate
from fedveil.defense.checks import above_zero
from fedveil.fl.errors import FedveilError, SettingError
from fedveil.fl.messages import ClientUpdate
from fedveil.fl.rounds import Exposure
from fedveil.fl.seeding import seeded_globals

ACCOUNTANTS = ("rdp", "prv", "gdp")
NUMBERS_AT_ONCE = 2**26
"""Entries of single images' gradients that are in memory together (256 MiB)."""


@DEFENSES.register("dp_sgd")
@dataclass(frozen=True, kw_only=True)
class DPSGD(Defense[None]):
    """Clip each image's gradient, and add noise to their sum.

    A step goes along (sum of the images' gradients, each scaled to at most ``clip``, + N(0, (strength * clip)^2)) / batch
    size (Abadi et al. 2016, arXiv 1607.00133, algorithm 1). Each image is drawn for a step by chance (``fl.sampling:
    poisson``), and the sum is divided by the batch size that is expected, whatever was drawn. What is proved of a whole
    training is (epsilon, delta)-differential privacy of each image against whoever sees all that the client sends, for
    images added or left out; `guarantee` reckons it with an accountant of Opacus (Yousefpour et al. 2021, arXiv
    2109.12298) over the client's steps of all its rounds. That not all clients take part in each round is not made use of.
    Settings that are tried and chosen by results are not accounted for, and how many images a client holds is taken to be
    known: it is sent as the update's weight, and sets the chance and the number of steps. Other parts of a list have to
    treat each image by itself, which of a plug-in's ``data`` hook nothing checks.

    Attributes:
        strength: noise multiplier, above 0.
        clip: most that an image's gradient is long, over all layers, above 0.
        delta: of the guarantee, between 0 and 1; below one over the images of a client it means something.
        accountant: ``rdp`` (moments; Mironov 2017), ``prv`` (numerical composition; Gopi et al. 2021, tighter) or ``gdp``
            (Gaussian approximation; Dong et al. 2019), as Opacus has them. ``gdp`` proves nothing: what it says may be below
            the true epsilon (Gopi et al. 2021).
    """

    sampling: ClassVar[str | None] = "poisson"
    batch_norm: ClassVar[bool] = False

    strength: float = 1.0
    clip: float = 1.0
    delta: float = 1e-5
    accountant: str = "rdp"

    def __post_init__(self) -> None:
        above_zero("dp_sgd", strength=self.strength, clip=self.clip, delta=self.delta)
        if self.delta >= 1:
            raise SettingError("dp_sgd", "delta", self.delta, "it has to be below 1")
        if self.accountant not in ACCOUNTANTS:
            raise SettingError("dp_sgd", "accountant", repr(self.accountant), f"allowed: {', '.join(ACCOUNTANTS)}")

    def gradients(
        self, loss: Tensor, model: nn.Module, x: Tensor, y: Tensor, expected: int, stream: torch.Generator
    ) -> tuple[Tensor, ...]:
        """See `fedveil.fl.hooks.ClientHooks.gradients`.

        Raises:
            FedveilError: the model has BatchNorm, by which an image's gradient depends on the others.
        """
        for name, part in model.named_modules():
            if isinstance(part, _BatchNorm):
                raise FedveilError(
                    f"defense dp_sgd: {name} is BatchNorm, which mixes images; allowed: model.norm: group"
                )
        device = loss.device
        sums = clipped_sums(model, x, y, self.clip, stream)
        std = self.strength * self.clip
        return tuple((total + std * torch.randn(total.shape, generator=stream).to(device)) / expected for total in sums)

    def update(self, update: ClientUpdate, stream: torch.Generator) -> ClientUpdate:
        """See `fedveil.fl.hooks.ClientHooks.update`; the noise is in the steps already.

        Raises:
            FedveilError: the model's buffers have changed in training, and would be sent without noise.
        """
        for name, change in update.buffers.items():
            if change.any():
                raise FedveilError(
                    f"defense dp_sgd: the model's buffer {name} changes in training and is sent without noise; allowed: a"
                    " model whose buffers stay as they are"
                )
        return update

    def guarantee(self, exposures: Sequence[Exposure]) -> dict[str, float]:
        """Return ``epsilon``, of the client whose images were drawn from the most, and the ``delta`` at which it holds.

        Raises:
            FedveilError: Opacus is not installed, or its accountant finds no epsilon for these settings.
        """
        try:
            from opacus.accountants import create_accountant
        except ImportError as error:
            raise FedveilError("defense dp_sgd: epsilon needs Opacus: pip install opacus") from error
        spent = [0.0]
        for exposure in {exposure for exposure in exposures if exposure.steps}:
            accountant = create_accountant(mechanism=self.accountant)
            accountant.history = [(self.strength, exposure.rate, exposure.steps)]
            try:
                spent.append(float(accountant.get_epsilon(self.delta)))
            except (ArithmeticError, MemoryError, RuntimeError, ValueError) as error:
                raise FedveilError(
                    f"defense dp_sgd: accountant {self.accountant} finds no epsilon for strength {self.strength:g} over"
                    f" {exposure.steps} steps that draw {exposure.rate:.3g} of the images ({error}); try rdp"
                ) from error
        return {"epsilon": max(spent), "delta": self.delta}

    def surrogate(self) -> Surrogate:
        """The same mechanism on what a batch sends: what adaptive attackers practise on.

        Their batches send one gradient, not that of each image: its length is cut instead, which for one image and one step
        is exactly what a client does.
        """
        return Surrogate(update=self._on_the_sum)

    def _on_the_sum(self, update: ClientUpdate, stream: torch.Generator) -> ClientUpdate:
        norm = torch.stack([t.double().square().sum() for t in update.tensors.values()]).sum().sqrt()
        # The update's length where the mean gradient has that of the clip.
        clip = self.clip / abs(update.gradient_scale)
        factor = float(torch.clamp(clip / norm.clamp_min(1e-12), max=1.0))
        drawn = update.examples * update.local_steps**0.5
        return replace(
            update,
            tensors={
                name: factor * tensor + self.strength * clip / drawn * torch.randn(tensor.shape, generator=stream)
                for name, tensor in update.tensors.items()
            },
        )


def clipped_sums(model: nn.Module, x: Tensor, y: Tensor, clip: float, stream: torch.Generator) -> tuple[Tensor, ...]:
    """Return the sum over images of their gradients of the cross-entropy, each scaled to at most ``clip`` in L2 norm.

    Args:
        model: without parts that mix images.
        x: (n, C, H, W), n at least 0.
        y: (n,) labels.
        clip: above 0, over all parameters that are trained.
        stream: for dropout, which is drawn for each image by itself.
    """
    trained = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    sums = [torch.zeros_like(parameter) for parameter in trained.values()]
    rest = {name: value.detach() for name, value in model.state_dict(keep_vars=True).items() if name not in trained}

    def loss(own: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, {**rest, **own}, (image[None],)), label[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")
    entries = sum(parameter.numel() for parameter in trained.values())
    seed = int(torch.randint(2**62, (), generator=stream))
    with seeded_globals(seed, x.device):
        for at in torch.arange(len(y)).split(max(1, NUMBERS_AT_ONCE // entries)) if len(y) else ():
            images, labels = x[at], y[at]
            found = each(trained, images, labels)
            squares = torch.stack([one.flatten(1).square().sum(1) for one in found.values()])
            factors = (clip / squares.sum(0).sqrt().clamp_min(1e-12)).clamp(max=1.0)
            for total, one in zip(sums, found.values(), strict=True):
                total += torch.tensordot(factors, one, dims=1)
    return tuple(sums)
