"""The labels that an attacker uses: granted, or recovered from the last layer's gradient (iDLG, Zhao et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from fedveil.attacks.base import Observation
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import ClientUpdate, UpdateKind


def labels_of(observation: Observation, *, classes: int) -> Tensor:
    """Return the (B,) labels that the attacker uses: those granted, or those that it recovers from the update."""
    if observation.labels is not None:
        return observation.labels
    return recover_label(observation.update, batch_size=observation.batch_size, classes=classes)


def recover_label(update: ClientUpdate, *, batch_size: int, classes: int) -> Tensor:
    """Return the label (1,) of a single-image update: the class whose logit the client pushes up.

    With cross-entropy the bias gradient of the last layer is softmax(logits) - onehot(label), negative at the label
    alone. Without a bias the row sums of the last weight serve, where its inputs are positive (iDLG, arXiv 2001.02610,
    eq. 4). A weight delta has the opposite sign of a gradient.

    Args:
        update: with its parameters in the model's order.
        batch_size: images behind it.
        classes: outputs of the last layer.

    Raises:
        FedveilError: more than one image is behind the update, or it lacks the last layer.
    """
    if batch_size != 1:
        raise FedveilError(
            f"labels are unknown and {batch_size} images are behind one update; iDLG recovers the label of one: grant the"
            " labels, or audit batches of one image"
        )
    last = next((t for t in reversed(list(update.tensors.values())) if t.ndim in (1, 2) and len(t) == classes), None)
    if last is None:
        raise FedveilError(
            f"labels are unknown, and no parameter of the update belongs to a last layer of {classes} outputs, from which"
            " iDLG could recover them: grant the labels"
        )
    scores: Tensor = last if last.ndim == 1 else last.sum(dim=1)
    if update.kind is UpdateKind.DELTA:
        scores = -scores
    return scores.argmin().reshape(1).to(torch.int64)
