"""Was the update computed at the weights that it came with? One image's last layer tells."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from fedveil.attacks.diagnosis.coarseness import coarseness
from fedveil.attacks.diagnosis.evidence import HALF, Evidence
from fedveil.attacks.diagnosis.finding import Finding, Outlook
from fedveil.attacks.labels.last_layer import last_layer_outputs
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import UpdateKind

SINGLE = 3e-4
"""Relative rounding of a client that computes in float32, or in TF32, whose numbers have 11 bits."""
SLACK = 5.0
"""So many times what rounding is expected to make of a difference tells of something else."""
BLURRED = 0.1
"""Relative difference that rounding may explain, from which on nothing is told."""
SMOOTHED = 0.3
"""The strongest label smoothing that is in use."""
FEWER = 4
"""Entries of the layer's input for each distinct size among them, from which on they are signs or the like: a code."""
_OTHERS = {
    True: ("several images", "a label of several classes", "a clipped or scaled update"),
    False: ("a label of several classes", "another loss"),
}


@dataclass(frozen=True, eq=False)
class Fit:
    """What is seen at the bias of the last layer, and what one image would leave there.

    Attributes:
        seen: (k,) the bias's gradient, up to a positive factor where the learning rate is not known.
        probabilities: (k,) softmax at the weights that the server sent.
        silent: inputs of the layer that are 0.
        inputs: of the layer.
        sized: the factor is known to be 1.
        tolerance: relative difference of the two that rounding may make.
    """

    seen: Tensor
    probabilities: Tensor
    silent: int
    inputs: int
    sized: bool
    tolerance: float

    @cached_property
    def error(self) -> Tensor:
        """(k,) softmax - onehot of the class that is pushed up."""
        error, truth = self.probabilities.clone(), int(self.seen.argmin())
        # 1 - p loses its digits where the network is sure.
        error[truth] = -torch.cat([error[:truth], error[truth + 1 :]]).sum()
        return error

    @property
    def factor(self) -> float:
        """By which the error comes nearest to what is seen."""
        return float(self.seen @ self.error / self.error.square().sum())

    @property
    def same(self) -> bool:
        """They are the same, up to the factor where it is not known."""
        return self._close(self.error) if self.sized else self.directed

    @property
    def directed(self) -> bool:
        """They point the same way, which of two classes all errors do."""
        return len(self.seen) > 2 and self.factor > 0 and self._close(self.factor * self.error)

    @property
    def smoothing(self) -> float | None:
        """The label smoothing that explains what is seen; None where none does.

        Labels (1 - s) onehot + s / k leave s (onehot - 1 / k) more than labels of one class.
        """
        if not self.sized or len(self.seen) == 2:
            return None
        classes = len(self.seen)
        own = torch.zeros_like(self.seen)
        own[self.seen.argmin()] = 1
        towards, rest = own - 1 / classes, self.seen - self.error
        share = float(rest @ towards / towards.square().sum())
        return share if self.tolerance < share <= SMOOTHED and self._close(self.error + share * towards) else None

    def _close(self, made: Tensor) -> bool:
        return float((self.seen - made).norm()) <= self.tolerance * float(self.seen.norm())


def same_weights(evidence: Evidence) -> Iterator[Finding]:
    """Whether the weights at which the client computed its gradient are those that are given.

    A last linear layer with weight W and bias b has, of one image with class y and input h, the gradients e h' and e with
    e = softmax(W h + b) - onehot(y). So h is their ratio, whatever network comes before it, in whatever mode and with
    whatever dropout; and e must be what W, b and h make it.

    It can tell for one image and one step of plain SGD, with that layer's bias in the update. It can't:

    - for batches, several steps, other optimisers;
    - behind noise, left-out or coarse numbers, where h is not the ratio: these are findings of their own;
    - of other layers' weights, which it does not see;
    - of weights at which e is the same but for rounding, 0.3 % in float32 and ten times that in half precision, as it may be
      of two fresh networks or a step before;
    - of two classes, where the learning rate is not known: e then has one direction whatever the weights. Of three the
      direction is a single number, which other weights have now and then.

    Scaling (a clipped update) and label smoothing are told from other weights where there are three classes or more.
    """
    found = _read(evidence)
    if found is None:
        return
    layer, fit = found
    two = len(fit.seen) == 2
    if fit.same:
        yield Finding(
            "weights",
            Outlook.NEUTRAL,
            f"the gradient of {layer} is what one image leaves at the weights given, to {fit.tolerance:.1g}"
            + ("" if fit.sized else ", up to its size"),
            "the client computed it at these, as far as its last layer tells",
        )
    elif fit.directed:
        yield Finding(
            "weights",
            Outlook.NEUTRAL,
            f"the gradient of {layer} is {fit.factor:.3g} times what one image leaves at the weights given",
            "the update was clipped or scaled, which attacks that match its direction do not mind",
            "if it was not, the weights are other ones than those that the server sent for it",
        )
    elif fit.smoothing is not None:
        yield Finding(
            "weights",
            Outlook.NEUTRAL,
            f"the gradient of {layer} is what one image leaves at the weights given,"
            f" its label smoothed by {fit.smoothing:.2g}",
            "attacks take each label for one class, and leave the rest unexplained",
            "a loss that is no cross-entropy of one class is attacked by fv.Surrogate(loss=...)",
        )
    elif not points_back(evidence):
        others = [*_OTHERS[two]]
        if evidence.update.kind is UpdateKind.DELTA:
            others.insert(0, "several local steps")
        if fit.silent:
            others.insert(0, f"a defence that set inputs of that layer to 0, as {fit.silent} of {fit.inputs} are")
        yield Finding(
            "weights",
            Outlook.HINDERS,
            f"the gradient of {layer} is not what one image leaves at the weights given",
            f"it was computed at other ones, or there is another cause ({'; '.join(others)}): attacks find nothing there",
            "give the weights that the server sent for this very update, not those before or after it",
        )


def points_back(evidence: Evidence) -> bool:
    """Whether one image's gradient points the wrong way, as far as `same_weights` can tell: its kind is another one."""
    found = _read(evidence)
    if found is None or found[1].same or found[1].directed:
        return False
    negative = replace(found[1], seen=-found[1].seen)
    return negative.same or negative.directed


def _read(evidence: Evidence) -> tuple[str, Fit] | None:
    """The last layer's name and how its gradient fits; None where that tells nothing, see `same_weights`."""
    update = evidence.update
    if isinstance(evidence.head, FedveilError) or not evidence.lawful or coarseness(update) is not None:
        return None
    layer, gradient = evidence.head
    one = evidence.batch_size == 1 and update.local_steps == 1
    if not one or gradient.weight is None or gradient.bias is None or len(gradient.bias) < 2:
        return None
    if len(gradient.bias) == 2 and not update.rate_known:
        return None
    own = evidence.target.known(evidence.weights)
    weight, bias = (own[name].double() for name in (layer.weight, layer.bias) if name is not None)
    if weight.ndim != 2 or not _gives_the_logits(evidence, weight, bias):
        return None
    seen = gradient.bias
    inputs = seen @ gradient.weight / seen.square().sum()
    beside = gradient.weight - seen[:, None] * inputs
    rounding = _rounding(evidence, gradient.weight)
    if float(beside.norm()) > SLACK * rounding * float(gradient.weight.norm()):
        return None
    sizes = inputs[inputs != 0].abs()
    if len(sizes.unique()) <= len(sizes) / FEWER:
        return None
    # An error of the logits makes one of e that is at most as large, in units of e.
    tolerance = SLACK * rounding * (1 + float((weight * inputs).norm(dim=1).max()))
    if tolerance > BLURRED:
        return None
    probabilities = (weight @ inputs + bias).softmax(dim=0)
    silent = len(inputs) - len(sizes)
    return str(layer.weight), Fit(seen, probabilities, silent, len(inputs), update.rate_known, tolerance)


def _rounding(evidence: Evidence, weight: Tensor) -> float:
    """Relative rounding error of the numbers, by the last layer's sum over classes and by the bits of its gradient."""
    sums = math.sqrt(evidence.remainder or 0.0)
    # A sum shows no rounding where there are two classes: both round alike.
    return max(sums, HALF if evidence.halved(weight) else SINGLE)


def _gives_the_logits(evidence: Evidence, weight: Tensor, bias: Tensor) -> bool:
    """Whether nothing comes after that layer: of a grey image, its input makes the network's answer."""
    grey = torch.full((1, *evidence.target.image_shape), 0.5)
    answer = last_layer_outputs(evidence.target, evidence.weights, grey, batch_size=1)
    if answer.inputs is None or answer.inputs.shape[1] != weight.shape[1]:
        return False
    made = (answer.inputs @ weight.T + bias).softmax(dim=1)
    return bool(torch.allclose(made, answer.probabilities, atol=1e-4))
