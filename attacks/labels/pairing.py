"""Which of a batch's labels belongs to which of the rebuilt images: the last layer's gradient tells."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fedveil.attacks.base import Knowledge, Observation
from fedveil.attacks.labels.last_layer import find_last_layer, last_gradient, last_layer_outputs
from fedveil.defense.devices import on_device
from fedveil.fl.errors import FedveilError


def paired(images: Tensor, labels: Tensor, observation: Observation, knowledge: Knowledge) -> Tensor:
    """Return the labels in the order of the images, (B,).

    The weight's gradient is mean(softmax outer h) - mean(onehot outer h) with h what enters the last layer. With the images
    at hand all but the labels is known, so they solve a linear system, and the best one-to-one choice is taken. Where the
    update lacks that weight, or the layer's inputs are not seen, the labels stay as they are.

    Args:
        images: (B, C, H, W), rebuilt, in any order.
        labels: (B,) granted or recovered, in any order.
        observation: the update and the weights that the server had sent.
        knowledge: what the attacker holds.
    """
    if len(labels.unique()) == 1:
        return labels
    target = replace(knowledge.model, module=on_device(knowledge.model.module, torch.device("cpu")))
    try:
        weight = last_gradient(observation.update, find_last_layer(target)).weight
    except FedveilError:
        return labels
    known = {name: own.detach().cpu() for name, own in target.known(observation.weights).items()}
    outputs = last_layer_outputs(target, known, images.cpu(), batch_size=len(images))
    if weight is None or outputs.inputs is None:
        return labels
    from scipy.optimize import linear_sum_assignment  # takes seconds to load, and most audits have one image per update

    of_labels = outputs.probabilities.T @ outputs.inputs - len(images) * weight
    likely = (of_labels @ torch.linalg.pinv(outputs.inputs, rtol=1e-6)).T
    _, order = linear_sum_assignment(-likely[:, labels].nan_to_num().numpy())
    return labels[torch.as_tensor(order)]
