"""How the client's BatchNorm ran, and what the update holds of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from fedveil.attacks.diagnosis.evidence import Evidence
from fedveil.attacks.diagnosis.finding import Finding, Outlook
from fedveil.attacks.target.model import Mode

UPRIGHT = 0.1
"""Mean size of a unit's cosine between weights and gradient, in units of that of random directions, below which the two are
at right angles."""


def batch_norm(evidence: Evidence) -> Iterator[Finding]:
    """How the client's BatchNorm ran, and whether the update holds what it saw."""
    layers = {name: part for name, part in evidence.model.named_modules() if isinstance(part, _BatchNorm)}
    if not layers:
        return
    stems = [f"{name}.running_{what}" for name in layers for what in ("mean", "var")]
    sent = [evidence.sent.buffers[stem] for stem in stems if stem in evidence.sent.buffers]
    said = evidence.target.mode
    count = f"{len(layers)} layer(s)"
    ran, why = ran_by_buffers(sent) if sent else ran_by_scale(evidence)
    if ran not in (said, None):
        yield Finding(
            "BatchNorm",
            Outlook.HINDERS,
            f"{count}; {why}, so the client ran in {ran} mode",
            f"attacks in {said} mode compute other gradients than the client did",
            f"say {evidence.words.mode.format(ran)}",
        )
    elif said == "eval":
        yield Finding(
            "BatchNorm",
            Outlook.HELPS,
            f"{count}, by the running statistics (mode eval)",
            "the server has these, and images do not touch each other",
            "" if ran else "if the client trained in train mode, say so: the gradients are others",
        )
    elif sent:
        yield Finding(
            "BatchNorm",
            Outlook.HELPS,
            f"{count}, and the change of their running statistics is in the update",
            "it holds mean and variance of the batch's own features (Yin et al. 2021)",
            "try gradinversion"
            + (", and pass them to the audit, as fv.Update.delta(..., buffers=)" if evidence.sent.guessed else ""),
        )
    else:
        yield Finding(
            "BatchNorm",
            Outlook.HINDERS,
            f"{count}, by the batch's own statistics (mode train), which are not in the update",
            "attacks have to find them with the images (Huang et al. 2021 find that this protects)",
            "if the client sends its buffers pass them"
            + ("" if ran else f"; if it ran in eval mode say {evidence.words.mode.format('eval')}"),
        )


def ran_by_buffers(changes: Sequence[Tensor]) -> tuple[Mode, str]:
    """Return the mode by the change of the running statistics, which only train mode moves, and the reason as a clause."""
    if any(bool(change.any()) for change in changes):
        return "train", "their running statistics moved"
    return "eval", "their running statistics did not move"


def ran_by_scale(evidence: Evidence) -> tuple[Mode | None, str]:
    """Tell train from eval mode by one step's gradient, without buffers; None where that can't be told.

    By the batch's own statistics a unit's output does not depend on the size of its weights, so that its gradient is at
    right angles to them; by running ones it does, and the angle is any. Noise would make it any too, so an update that is
    not `Evidence.lawful` tells nothing.

    Returns:
        The mode, and the reason as a clause.
    """
    if evidence.update.local_steps > 1 or not evidence.lawful:
        return None, ""
    known = evidence.target.known(evidence.weights)
    cosines = []
    for name in _before_batch_norm(evidence):
        if name in evidence.gradient:
            weight, gradient = known[name].double().flatten(1), evidence.gradient[name].flatten(1)
            told = gradient.any(dim=1)
            # Of random directions the mean of this is 1, however many numbers a unit has.
            cosines.append(F.cosine_similarity(weight, gradient, dim=1)[told] * weight.shape[1] ** 0.5)
    if not cosines or not len(every := torch.cat(cosines)):
        return None, ""
    size = float(every.square().mean().sqrt())
    if size < UPRIGHT:
        return "train", "their layers' gradients are at right angles to the weights"
    if size > 5 * UPRIGHT:
        return "eval", "their layers' gradients are at any angle to the weights"
    return None, ""


def _before_batch_norm(evidence: Evidence) -> list[str]:
    """Names of the weights of linear layers and convolutions whose outputs BatchNorm takes as they are."""
    made: dict[int, tuple[str, Tensor]] = {}
    found = []

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if isinstance(module, _BatchNorm):
                if id(args[0]) in made:
                    found.append(made[id(args[0])][0])
            else:
                made[id(output)] = (f"{name}.weight", output)  # kept, so that no other tensor gets its number

        return hook

    watched = (_BatchNorm, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    parts = [(name, part) for name, part in evidence.target.module.named_modules() if isinstance(part, watched)]
    handles = [part.register_forward_hook(note(name)) for name, part in parts]
    try:
        with torch.no_grad():
            evidence.target.logits(evidence.weights, torch.full((2, *evidence.target.image_shape), 0.5))
    finally:
        for handle in handles:
            handle.remove()
    return found
