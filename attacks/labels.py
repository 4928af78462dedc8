"""Label recovery from the last layer's gradient (iDLG, Zhao et al. 2020, arXiv 2001.02610)."""

from __future__ import annotations

import torch
from torch import Tensor

from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import ClientUpdate, UpdateKind


def recover_label(update: ClientUpdate, *, batch_size: int) -> Tensor:
    """Return the label (1,) of a single-image update: the class whose logit the client pushes up.

    With cross-entropy the bias gradient of the last layer is softmax(logits) - onehot(label), negative at the label
    alone. Without a bias the row sums of the last weight serve, where its inputs are positive (iDLG, eq. 4). A weight
    delta has the opposite sign of a gradient.

    Raises:
        FedveilError: more than one image is behind the update.
    """
    if batch_size != 1:
        raise FedveilError(f"iDLG recovers the label of one image, this update has {batch_size}")
    last = list(update.tensors.values())[-1]
    scores = last if last.ndim == 1 else last.flatten(1).sum(dim=1)
    if update.kind is UpdateKind.DELTA:
        scores = -scores
    return scores.argmin().reshape(1).to(torch.int64)
