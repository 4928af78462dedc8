"""What the numbers of an update show by themselves: broken, missing, zero, pruned, coarse."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from fedveil.attacks.diagnosis.evidence import Evidence
from fedveil.attacks.diagnosis.finding import Finding, LayerSize, Outlook

PRUNED = 0.05
"""Share of zeros among entries that need not be 0, above which they are looked at."""
CUT = 0.1
"""The smallest entry that is left, in units of their median: entries that were cut by size leave none near 0. Of a thousand
numbers that nothing has cut, the smallest is about a thousandth of the median."""
ENOUGH = 1024
"""Entries below which the number of distinct values tells nothing."""
COARSE = 256
"""Distinct values that make up a coarse tensor, at most."""
VERY_COARSE = 16
"""Those that 4 bits tell apart: fewer leave hardly more than signs."""
FAINT = 1e-4
"""Share of the gradient's norm in the first layer, below which a distance over the whole update hardly sees it."""
HEAVY = 0.5
"""Share of the numbers from which on their lack hinders: an image came back exactly without the first layer and its 2 % of
them. What the last layer's lack costs is said of the labels."""
SHOWN = 3


def broken(counts: Mapping[str, int]) -> Iterator[Finding]:
    """Entries that are NaN or infinite."""
    if counts:
        yield Finding(
            "values",
            Outlook.STOPS,
            f"{sum(counts.values())} NaN or infinite entries, in {_some(list(counts))}",
            "a server turns such an update away, and no image explains it",
            "look for a learning rate that is too high, or half precision without loss scaling",
        )


def missing(evidence: Evidence) -> Iterator[Finding]:
    """Parameters that the update lacks."""
    parameters = dict(evidence.model.named_parameters())
    lacking = [name for name in parameters if name not in evidence.gradient]
    if not lacking:
        return
    trained = [name for name in lacking if parameters[name].requires_grad]
    share = sum(parameters[name].numel() for name in lacking) / sum(p.numel() for p in parameters.values())
    found = (
        f"{len(lacking)} of {len(parameters)} parameters are not in it ({_some(lacking)}), {share:.0%} of the numbers"
    )
    if trained and share > HEAVY:
        yield Finding(
            "parameters",
            Outlook.HINDERS,
            found,
            "what they would have shown is lost",
            "if the client froze or kept them that is how it is; otherwise send them",
        )
    else:
        why = "what is left tells as much" if trained else "the model has them frozen, so clients send none"
        yield Finding("parameters", Outlook.NEUTRAL, found, why)


def zero(evidence: Evidence) -> Iterator[Finding]:
    """Tensors that are 0 altogether, and units that are."""
    dead = [name for name, tensor in evidence.gradient.items() if not bool(tensor.any())]
    if dead:
        heavy = any(evidence.gradient[name].ndim > 1 for name in dead)
        yield Finding(
            "zero layers",
            Outlook.HINDERS if heavy else Outlook.NEUTRAL,
            f"{len(dead)} of {len(evidence.gradient)} tensors are 0 altogether ({_some(dead)})",
            "no gradient came so far: frozen, dead (no unit awake) or dropped by a defence",
            "look whether the client trains them" if heavy else "",
        )
    asleep = {
        name: (len(rows), int((~rows).sum()))
        for name, tensor in evidence.gradient.items()
        if name not in dead and tensor.ndim > 1 and bool((~(rows := tensor.flatten(1).any(dim=1))).any())
    }
    if asleep:
        name = max(asleep, key=lambda one: asleep[one][1] / asleep[one][0])
        units, silent = asleep[name]
        mostly = silent >= 0.9 * units
        yield Finding(
            "units",
            Outlook.HINDERS if mostly else Outlook.NEUTRAL,
            f"{silent} of {units} units of {name} have no gradient",
            "asleep for all images of the batch, or pruned: the others tell what there is to tell",
        )


def pruned(evidence: Evidence) -> Iterator[Finding]:
    """Zeros that no sleeping unit and no dark pixel accounts for."""
    matrices = [tensor.flatten(1) for tensor in evidence.gradient.values() if tensor.ndim > 1 and bool(tensor.any())]
    # A row is 0 where a unit sleeps, a column where an input is 0.
    live = [m[m.any(dim=1)][:, m.any(dim=0)] for m in matrices]
    entries = sum(m.numel() for m in live)
    zeros = entries - sum(int(m.count_nonzero()) for m in live)
    if not entries or zeros <= PRUNED * entries:
        return
    left = torch.cat([m[m != 0].abs() / m.abs().max() for m in live])
    cut = all(_smallest(m) > CUT for m in live if int(m.count_nonzero()) >= ENOUGH) and len(left) >= ENOUGH
    found = f"{zeros / entries:.0%} of the entries that could be something are 0"
    if cut:
        yield Finding(
            "pruning",
            Outlook.HINDERS,
            f"{found}, and none of the others is small",
            "they were cut by size: what was cut is lost, what is left is as it was",
            "pass the client's defence (defense=): adaptive attacks match the visible entries alone",
        )
    elif evidence.batch_size == 1:
        yield Finding(
            "pruning",
            Outlook.HINDERS,
            found,
            "a mask may have been laid over the update; sparse maps behind ReLU and dark borders leave some, too",
            "pass the client's defence (defense=): adaptive attacks match the visible entries alone",
        )
    else:
        yield Finding("pruning", Outlook.NEUTRAL, found, "units that sleep for some images of a batch leave as many")


def _smallest(matrix: Tensor) -> float:
    left = matrix[matrix != 0].abs()
    return float(left.min() / left.median())


def coarse(evidence: Evidence) -> Iterator[Finding]:
    """Few distinct values, or numbers that went through half precision."""
    sent = [tensor[tensor != 0] for tensor in evidence.update.tensors.values()]
    large = [tensor for tensor in sent if tensor.numel() >= ENOUGH]
    counts = [len(tensor.unique()) for tensor in large]
    few = [n for n, tensor in zip(counts, large, strict=True) if n <= COARSE]
    if large and len(few) == len(large):
        distinct = max(few)
        sizes = max(len(tensor.abs().unique()) for tensor in large)
        what = "one size each, so signs alone" if sizes == 1 else f"{distinct} distinct values at most"
        bits = max(1, math.ceil(math.log2(distinct)))
        yield Finding(
            "quantisation",
            Outlook.HINDERS if distinct <= VERY_COARSE else Outlook.NEUTRAL,
            f"each large tensor holds {what}, {bits} bit(s) an entry",
            "a distance to it has a floor that no image gets below"
            if distinct <= VERY_COARSE
            else "rounding as fine as this costs an attack little",
            "pass the client's defence (defense=), and trust no attack that has not heard of it"
            if distinct <= VERY_COARSE
            else "",
        )
        return
    # Few numbers of float16 are one of bfloat16, which has 3 bits less; the reverse holds for most.
    for kind in (torch.bfloat16, torch.float16):
        if large and all(bool((tensor.to(kind).to(tensor) == tensor).all()) for tensor in large):
            yield Finding(
                "precision",
                Outlook.NEUTRAL,
                f"every number is a {str(kind).removeprefix('torch.')}",
                "rounding by a thousandth or so; what was smaller than its least number is 0",
            )
            return


def sizes(evidence: Evidence) -> tuple[LayerSize, ...]:
    """Return how much of the gradient is in each layer."""
    layers: dict[str, list[Tensor]] = {}
    for name, tensor in evidence.gradient.items():
        layers.setdefault(name.rpartition(".")[0] or name, []).append(tensor)
    found = []
    for name, tensors in layers.items():
        norm = float(torch.stack([tensor.square().sum() for tensor in tensors]).sum().sqrt())
        numbers = sum(tensor.numel() for tensor in tensors)
        sent = sum(int(tensor.count_nonzero()) for tensor in tensors)
        found.append(LayerSize(name, numbers, sent, norm, norm / evidence.norm))
    return tuple(found)


def norms(evidence: Evidence) -> Iterator[Finding]:
    """How large the gradient is, and whether the layer that sees the images gets any of it."""
    layers = sizes(evidence)
    first, last, least = layers[0], layers[-1], min(layers, key=lambda layer: layer.norm)
    size = "" if evidence.update.rate_known else ", up to the learning rate, which is not known"
    found = f"norm {evidence.norm:.3g} in all{size}; {first.name} {first.norm:.3g}, {last.name} {last.norm:.3g}"
    if least.name not in (first.name, last.name):
        found += f", least in {least.name} {least.norm:.3g}"
    if first.share < FAINT:
        yield Finding(
            "gradient",
            Outlook.HINDERS,
            found,
            f"the first layer has {first.share:.1g} of it: a distance over the whole update hardly sees the images",
            "look for saturated units or a missing normalisation; expect few details",
        )
    else:
        yield Finding(
            "gradient", Outlook.NEUTRAL, found, f"{first.name}, the first layer that was sent, has its part of it"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
