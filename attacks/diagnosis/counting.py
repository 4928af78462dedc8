"""Unknowns against equations, and whether the first layer gives images away without a search."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fedveil.attacks.analytic.attack import LARGEST
from fedveil.attacks.analytic.first_layer import FirstLayer, find_first_layer
from fedveil.attacks.diagnosis.evidence import Evidence
from fedveil.attacks.diagnosis.finding import Finding, Outlook
from fedveil.attacks.diagnosis.last_layer import too_few
from fedveil.fl.errors import FedveilError


def batch(evidence: Evidence) -> Iterator[Finding]:
    """Images that one sum hides."""
    size = evidence.batch_size
    if size > 1:
        yield Finding(
            "batch",
            Outlook.HINDERS,
            f"{size} images are behind one update",
            "searches blend them, the more the more there are, and most those of one class",
            f"an image alone is the worst case: look at that too ({evidence.words.batch_size.format(1)})",
        )


def equations(evidence: Evidence) -> Iterator[Finding]:
    """Pixels that are looked for, and numbers that tell of them."""
    pixels = torch.Size(evidence.target.image_shape).numel()
    unknown = evidence.batch_size * pixels
    told = sum(int(tensor.count_nonzero()) for tensor in evidence.gradient.values())
    shape = "x".join(map(str, evidence.target.image_shape)) + (" (guessed)" if evidence.shape_guessed else "")
    found = f"{told} numbers that are not 0, for {evidence.batch_size} image(s) of {shape} = {unknown} pixels"
    if told < unknown:
        yield Finding(
            "equations",
            Outlook.HINDERS,
            found,
            f"at least {1 - told / unknown:.0%} of what comes back is the attack's prior, not the client's",
            "give the attacker images of the kind (fv.audit(..., auxiliary=)): learned priors fill in more than smoothness",
        )
    else:
        yield Finding(
            "equations",
            Outlook.HELPS,
            found,
            f"{told / unknown:.1f} for each pixel, though some may say the same",
        )


def first_layer(evidence: Evidence) -> Iterator[Finding]:
    """Whether the pixels stand in the gradient of a first linear layer."""
    try:
        layer = find_first_layer(evidence.target)
    except FedveilError as error:
        reason = str(error).removeprefix("analytic: ")
        yield Finding(
            "first layer", Outlook.NEUTRAL, reason, "images can't be solved for, they have to be searched for"
        )
        return
    lacking = [name for name in (layer.weight, layer.bias) if not _any(evidence.gradient.get(name))]
    if lacking:
        yield Finding(
            "first layer",
            Outlook.NEUTRAL,
            f"linear in all pixels, but the update shows nothing of {' and '.join(lacking)}",
            "images can't be solved for, they have to be searched for",
        )
        return
    found = _solved(evidence, layer)
    # More images than were named are said once.
    if found.what != "batch size" or too_few(evidence) is None:
        yield found


def _any(tensor: Tensor | None) -> bool:
    return tensor is not None and bool(tensor.any())


def _solved(evidence: Evidence, layer: FirstLayer) -> Finding:
    size = evidence.batch_size
    rank = evidence.rank(evidence.gradient[layer.weight]) if evidence.lawful else None
    found = f"{layer.weight} and {layer.bias} are linear in all pixels"
    if rank is not None:
        found += f", with a gradient of rank {rank}"
    if rank is not None and rank > size:
        return Finding(
            "batch size",
            Outlook.HINDERS,
            found,
            f"each image adds at most 1 to the rank: at least {rank} are behind it, not {size}",
            f"say {evidence.words.batch_size.format(rank)} or more",
        )
    if size == 1:
        return Finding(
            "first layer",
            Outlook.SOLVES,
            found,
            "the image is their ratio (Phong et al. 2017), for any number of local steps",
            "try analytic; a client that may not show this needs another first layer",
        )
    apart = size <= LARGEST and (rank is None or rank >= size)
    return Finding(
        "first layer",
        Outlook.HELPS,
        found,
        f"{size} images can be told apart if ReLUs follow (SPEAR, Dimitrov et al. 2024)"
        if apart
        else "what single units show of single images can be read (Fowl et al. 2022), the rest is a mixture",
        "try analytic",
    )
