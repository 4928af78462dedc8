"""What the numbers of an update show by themselves: broken, missing, 0, left out, coarse; and how large they are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from fedveil.attacks.diagnosis.coarseness import coarseness, large_tensors
from fedveil.attacks.diagnosis.evidence import Evidence
from fedveil.attacks.diagnosis.finding import Finding, LayerSize, Outlook, some
from fedveil.attacks.diagnosis.zeros import Pattern

VERY_COARSE = 16
"""Those that 4 bits tell apart: fewer leave hardly more than signs."""
FAINT = 1e-4
"""Share of the gradient's norm in the first layer, below which a distance over the whole update hardly sees it."""
HEAVY = 0.5
"""Share of the numbers from which on their lack hinders: an image came back exactly without the first layer and its 2 % of
them. What the last layer's lack costs is said of the labels."""


def broken(counts: Mapping[str, int]) -> Iterator[Finding]:
    """Entries that are NaN or infinite."""
    if counts:
        yield Finding(
            "values",
            Outlook.STOPS,
            f"{sum(counts.values())} NaN or infinite entries, in {some(list(counts))}",
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
        f"{len(lacking)} of {len(parameters)} parameters are not in it ({some(lacking)}), {share:.0%} of the numbers"
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
            f"{len(dead)} of {len(evidence.gradient)} tensors are 0 altogether ({some(dead)})",
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
    """Zeros that no sleeping unit and no dark pixel accounts for. Of few values 0 is one: these are another finding."""
    zeros = evidence.zeros
    if zeros.pattern is Pattern.NONE or coarseness(evidence.update) is not None:
        return
    found = f"{zeros.share:.0%} of the entries are 0"
    if round(100 * zeros.live) < round(100 * zeros.share):
        found += f" ({zeros.live:.0%} outside of units and inputs that are 0 altogether)"
    found += f", {zeros.pattern.value}"
    if zeros.left_out:
        how = {Pattern.CUT: "entries were cut by size", Pattern.STREWN: "a random mask was laid over the update"}
        yield Finding(
            "pruning",
            Outlook.HINDERS,
            found,
            f"{how.get(zeros.pattern, 'entries were left out')}: what was left out is lost, the others may be as they were",
            "tell the audit the client's defence (fv.audit(..., defense=)): adaptive attacks match what is visible alone",
        )
    elif evidence.batch_size == 1:
        yield Finding(
            "pruning",
            Outlook.HINDERS,
            found,
            "entries may have been left out; sparse maps behind ReLU and dark borders leave some, too",
            "if the client has a defence, tell the audit (fv.audit(..., defense=))",
        )
    else:
        yield Finding("pruning", Outlook.NEUTRAL, found, "nothing says that any were left out")


def coarse(evidence: Evidence) -> Iterator[Finding]:
    """Few distinct values, or numbers that went through half precision."""
    large, distinct = large_tensors(evidence.update), coarseness(evidence.update)
    if distinct is not None:
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
            "tell the audit the client's defence (fv.audit(..., defense=)), and trust no attack that has not heard of it"
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
