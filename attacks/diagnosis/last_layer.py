"""What the last layer's gradient tells: whether the loss is the one that attacks take it for, its scale, and the labels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from fedveil.attacks.diagnosis.evidence import LAWFUL, Evidence
from fedveil.attacks.diagnosis.finding import Finding, Outlook
from fedveil.attacks.diagnosis.weights import points_back
from fedveil.attacks.labels import label_rule, likeliest_rate, recover_labels
from fedveil.attacks.labels.last_layer import LastGradient, LastLayer
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import UpdateKind

DROWNED = 0.5
"""Share of the last layer's energy that is none of a gradient, from which on the rest is hard to see."""
LARGEST = 1.001
"""Mean error mass per image; 1 is the limit for a mean over the batch."""
SURE = 1e-3
"""Mean error mass per image below which the network has nothing left to learn from these images."""
SIGN = 1e-6
"""Part of the largest entry below which an entry has no sign."""
RULES = {
    "idlg": "the sign",
    "simulated": "simulated training of the layer",
    "geng": "the bias and a guessed softmax",
    "llg": "its sizes alone",
}
LOPSIDED = 2
"""So many classes pushed up for each pushed down make a wrong sign likelier than a large batch."""
CLEAR = 3.0
"""Standard deviations of noise by which the label's entry lies below all others where the noise did not put it there."""
TELL = "tell the audit the labels (fv.audit(..., labels=))"
MOST = 12
"""Labels that are written out."""


def law(evidence: Evidence) -> Iterator[Finding]:
    """Whether the gradient is that of a softmax cross-entropy; if not, how much of it is something else."""
    rest = evidence.remainder
    if rest is None or rest <= LAWFUL or evidence.head_rows is None:
        return
    if evidence.head_holes and evidence.zeros.left_out:
        yield Finding(
            "loss",
            Outlook.NEUTRAL,
            f"{evidence.head_holes} of the last layer's {evidence.head_rows.numel()} entries are 0, where softmax"
            " cross-entropy leaves none",
            "they were left out, so that its sum over classes can't tell whether there is noise beside",
        )
        return
    yield Finding(
        "loss",
        Outlook.HINDERS,
        f"{min(rest, 1):.2g} of the last layer's energy is in its sum over classes, where softmax cross-entropy leaves 0",
        "that share is noise, weight decay, rounding, another loss or another change"
        + (": it hides most of the gradient" if rest >= DROWNED else ""),
        "tell the audit the client's defence (fv.audit(..., defense=)); a loss that is no cross-entropy is attacked by"
        " fv.Surrogate(loss=...)",
    )


def scale(evidence: Evidence) -> Iterator[Finding]:
    """How large the loss's gradient is at the logits: at most 1 for each image, if it is a mean over them."""
    if isinstance(evidence.head, FedveilError) or not evidence.update.plain:
        return
    layer, gradient = evidence.head
    if gradient.bias is None:
        yield Finding(
            "loss scale", Outlook.NEUTRAL, "the last layer has no bias in the update", "its scale can't be told"
        )
        return
    if not evidence.update.rate_known:
        yield Finding(
            "loss scale",
            Outlook.NEUTRAL,
            "the learning rate is not known",
            "the size of a weight change tells nothing: attacks match its direction, and labels of a batch are unsure",
            f"say {evidence.words.rate}",
        )
        return
    if evidence.head_holes and not bool(gradient.bias.all()):
        yield Finding(
            "loss scale", Outlook.NEUTRAL, f"{layer.bias} lacks entries that were left out", "its scale can't be told"
        )
        return
    # The two are equal in a gradient of this loss, and the larger one tells of the size of anything else.
    mass = max(float(gradient.bias.clamp(min=0).sum()), float(-gradient.bias.clamp(max=0).sum()))
    found = f"{layer.bias} says a mean error of {mass:.3g} per image"
    if mass > LARGEST:
        yield Finding(
            "loss scale",
            Outlook.HINDERS,
            found,
            f"a mean cross-entropy leaves 1 at most: something multiplies it by {mass:.3g} or more",
            "look for a sum over the batch, a loss scale of half precision that was not undone, or a wrong learning rate",
        )
    elif mass < SURE:
        yield Finding(
            "loss scale",
            Outlook.HINDERS,
            found,
            "the network is sure of these images, or the update was scaled down: noise and rounding drown it",
            "audit an earlier round too: at the start of training nothing is hidden so",
        )
    else:
        loss = f", a loss of {-math.log1p(-mass):.2g}" if evidence.batch_size == 1 and mass < 1 else ""
        yield Finding("loss scale", Outlook.NEUTRAL, found + loss, "as a mean cross-entropy has it")


def labels(evidence: Evidence) -> Iterator[Finding]:
    """Whether labels can be read, from which layer and by which rule; and whether kind and batch size fit them."""
    if isinstance(evidence.head, FedveilError):
        yield Finding(
            "labels",
            Outlook.HINDERS,
            "they can't be read",
            str(evidence.head).removeprefix("labels are unknown, and "),
            TELL,
        )
        return
    layer, gradient = evidence.head
    size = evidence.batch_size
    up, down = _pushed(gradient)
    if points_back(evidence):
        yield _flipped(evidence, f"the gradient of {layer.weight} is the negative of what one image leaves")
        return
    # A batch of many labels pushes many classes up, too; the more lopsided it is, the less likely.
    if up > max(size, LOPSIDED * down) and not _more_images(evidence, gradient):
        yield _flipped(evidence, "it pushes nearly all classes up")
        return
    more = too_few(evidence)
    if more is not None:
        yield more
        return
    yield from _too_many(evidence, layer, gradient)
    yield _reading(evidence, layer, gradient, unsure=up > size or up == 0)


def too_few(evidence: Evidence) -> Finding | None:
    """Say so where the last layer proves more images than were named: by signs, or for one step by its rank."""
    if isinstance(evidence.head, FedveilError) or evidence.head[1].bias is None or not evidence.lawful:
        return None
    layer, gradient = evidence.head
    up, size = _pushed(gradient)[0], evidence.batch_size
    meaning = "attacks that look for fewer images find none of them"
    if up > size:
        return Finding(
            "batch size",
            Outlook.HINDERS,
            f"{layer.bias} pushes {up} classes up, so at least so many images are behind it, not {size}",
            meaning,
            f"say {evidence.words.batch_size.format(up)} or more; if it is {size}, a gradient was taken for a weight change"
            " or the reverse",
        )
    if evidence.update.local_steps > 1 or not _more_images(evidence, gradient):
        return None
    rank = evidence.rank(gradient.weight) if gradient.weight is not None else None
    return Finding(
        "batch size",
        Outlook.HINDERS,
        f"the gradient of {layer.weight} has rank {rank}; one image leaves 1 at most, so at least so many are behind it,"
        f" not {size}",
        meaning,
        f"say {evidence.words.batch_size.format(rank)} or more",
    )


def _too_many(evidence: Evidence, layer: LastLayer, gradient: LastGradient) -> Iterator[Finding]:
    """Whether one step on so many images would leave a higher rank, unless they are alike."""
    size, weight = evidence.batch_size, gradient.weight
    if size == 1 or evidence.update.local_steps > 1 or not evidence.lawful or weight is None:
        return
    rank = evidence.rank(weight)
    if rank is not None and rank < min(size, len(weight) - 1, weight.shape[1]):
        yield Finding(
            "batch size",
            Outlook.NEUTRAL,
            f"the gradient of {layer.weight} has rank {rank}",
            f"{size} images leave more, unless some are alike: there may be {rank}",
            f"try {evidence.words.batch_size.format(rank)}",
        )


def _pushed(gradient: LastGradient) -> tuple[int, int]:
    """How many classes are pushed up, and how many down."""
    least = float(gradient.rows.abs().max()) * SIGN
    return int((gradient.rows < -least).sum()), int((gradient.rows > least).sum())


def _more_images(evidence: Evidence, gradient: LastGradient) -> bool:
    """Whether the rank of the last layer's gradient proves more images than were named: they push many classes up, too."""
    return gradient.weight is not None and (evidence.rank(gradient.weight) or 0) > evidence.batch_size


def _flipped(evidence: Evidence, found: str) -> Finding:
    gradient = evidence.update.kind is UpdateKind.GRADIENT
    words = evidence.words
    taken, other = ("a gradient", words.change) if gradient else ("a weight change", words.gradient)
    return Finding(
        "kind",
        Outlook.STOPS,
        f"taken for {taken}, {found}",
        "it points the wrong way: attacks would look for the opposite",
        f"say {other}",
    )


def _reading(evidence: Evidence, layer: LastLayer, gradient: LastGradient, *, unsure: bool) -> Finding:
    size, target, weights, update = evidence.batch_size, evidence.target, evidence.weights, evidence.update
    rule = label_rule(update, batch_size=size, target=target, weights=weights)
    if size > 1 and update.plain and not update.rate_known:
        rate = likeliest_rate(update, batch_size=size, target=target, weights=weights)
        update = replace(update, learning_rate=rate)
    read = _listed(recover_labels(update, batch_size=size, target=target, weights=weights))
    where = " and ".join(name for name in (layer.weight, layer.bias) if name in evidence.gradient)
    found = f"{read}, by {RULES[rule]} of {where} ({rule})"
    if unsure:
        return Finding(
            "labels",
            Outlook.HINDERS,
            found,
            "the signs are not those of so many images: noise, left-out entries, a larger batch or another loss",
            TELL,
        )
    if rule == "idlg":
        return _of_one_image(evidence, gradient, found)
    known = evidence.update.rate_known
    if known and not evidence.lawful and evidence.update.plain:
        return Finding(
            "labels",
            Outlook.NEUTRAL,
            found,
            "counted from sizes, and those of the last layer are not a gradient's alone: may well be wrong",
            TELL,
        )
    return Finding(
        "labels",
        Outlook.HELPS if known else Outlook.NEUTRAL,
        found,
        "counted from sizes: mostly right" if known else "counted from sizes, which a learning rate would make sure of",
        "" if known else f"say {evidence.words.rate}",
    )


def _of_one_image(evidence: Evidence, gradient: LastGradient, found: str) -> Finding:
    """How sure the sign of one image's label is, by the noise in the last layer where that can be told."""
    if evidence.head_holes:
        meaning = "a single image's label is certain, if what is left of the last layer is as it was"
        return Finding("labels", Outlook.HELPS, found, meaning)
    if not evidence.lawful and evidence.remainder is not None and evidence.head_rows is not None:
        lowest, second = gradient.rows.sort().values[:2].tolist()
        # Of one entry; a row sum of d has sqrt(d) times that.
        noise = math.sqrt(evidence.remainder) * float(evidence.head_rows.square().mean().sqrt())
        if gradient.bias is None:
            noise *= math.sqrt(evidence.head_rows.shape[1])
        if second - lowest < CLEAR * math.sqrt(2) * noise:
            meaning = "the last layer's noise is large enough to have turned that sign"
            return Finding("labels", Outlook.HINDERS, found, meaning, TELL)
    return Finding("labels", Outlook.HELPS, found, "a single image's label is certain, whatever is done to the image")


def _listed(read: Tensor) -> str:
    shown = ", ".join(map(str, read[:MOST].tolist()))
    return shown + (f" and {len(read) - MOST} more" if len(read) > MOST else "")
