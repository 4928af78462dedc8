"""What has to hold before anything else can be read: weights that are some, and an update of the kind it was taken for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fedveil.attacks.diagnosis.evidence import LAWFUL, Evidence
from fedveil.attacks.diagnosis.finding import Finding, Outlook, some
from fedveil.attacks.diagnosis.network import gradient_of
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import UpdateKind
from fedveil.fl.seeding import torch_stream

NEAR = 0.5
"""Distance from the weights, in units of the update's own size, from which down these are weights, no change of them. Where
an audit is not told the kind, `fedveil.attacks.audit.inputs.as_updates` goes by the same."""
GONE = 0.5
"""Share of the weights that a change takes away, from which on they were subtracted from what never held them: training
does not forget half of where it began."""
ALONG = 0.2
"""Cosine of such a change and the weights, from which on it is no long step that happens to cross them."""
BROKEN = 1e-3
"""Share of the last layer's energy in its sum over classes, from which on it is no rounding."""
LAWLESS = "its last layer does not sum to 0 over classes, as softmax cross-entropy has it"
SERVER = "give those that the server sent for this very update"


def failed(evidence: Evidence) -> tuple[Finding, ...]:
    """Return what makes everything else that would be said of the weights and of the kind wrong; none where all holds."""
    return tuple(finding for premise in (_weights, _kind) for finding in premise(evidence))


def _weights(evidence: Evidence) -> Iterator[Finding]:
    state = evidence.model.state_dict()
    broken = {name: int((~tensor.isfinite()).sum()) for name, tensor in state.items()}
    names = [name for name, count in broken.items() if count]
    if names:
        yield Finding(
            "weights",
            Outlook.STOPS,
            f"{sum(broken.values())} of the model's numbers are NaN or infinite, in {some(names)}",
            "no client trains from these, and no attack can compute with them",
            SERVER,
        )
    elif _blind(evidence):
        zero = not any(bool(parameter.any()) for parameter in evidence.model.parameters())
        yield Finding(
            "weights",
            Outlook.STOPS,
            "all images that were tried leave the same gradient at the weights given"
            + (", which are 0" if zero else ": no unit that sees them is awake"),
            "what an image is has no influence there, so that there is nothing to find",
            f"if the client trained from other weights, {SERVER}",
        )


def _blind(evidence: Evidence) -> bool:
    """Whether noise, black, white and a white half leave the same gradient to the last bit."""
    noise = torch.rand((1, *evidence.target.image_shape), generator=torch_stream(0, "premises"))
    half = torch.zeros_like(noise)
    half[..., : half.shape[-1] // 2] = 1
    first, *others = (gradient_of(evidence, x) for x in (noise, torch.zeros_like(noise), torch.ones_like(noise), half))
    return all(torch.equal(first, other) for other in others)


def _kind(evidence: Evidence) -> Iterator[Finding]:
    """Its size against the weights' tells, and the last layer, whose gradient sums to 0 over classes."""
    update, words, sent = evidence.update, evidence.words, evidence.weights
    given, base = (_flat(of, update.tensors) for of in (update.tensors, sent))
    size, length = float(given.norm()), float(base.norm())
    if not length:
        return
    taken = "taken for a gradient, " if update.kind is UpdateKind.GRADIENT else "taken for a weight change, "
    distance, away = float((given - base).norm()), -float(given @ base)
    near = not evidence.sent.guessed and distance <= NEAR * size
    if near or _obeys(evidence, {name: tensor - sent[name] for name, tensor in update.tensors.items()}):
        yield Finding(
            "kind",
            Outlook.STOPS,
            taken
            + (
                f"it is {distance / size:.1g} of its size away from the weights that the server sent"
                if near
                else f"{LAWLESS}; its difference from the weights that the server sent does"
            ),
            "these look like weights after training: what was learnt is the difference",
            f"say {words.weights}",
        )
        return
    gone = away >= max(GONE * length**2, ALONG * size * length)
    whole = {name: tensor + sent[name] for name, tensor in update.tensors.items()}
    if update.kind is UpdateKind.DELTA and (gone or _obeys(evidence, whole)):
        yield Finding(
            "kind",
            Outlook.STOPS,
            taken
            + (
                f"it takes {away / length**2:.0%} of the weights that the server sent away"
                if gone
                else f"{LAWLESS}; its sum with the weights that the server sent does"
            ),
            "they were subtracted from something that never held them: a gradient, or a change already",
            f"say {words.gradient}, or {words.delta}",
        )


def _obeys(evidence: Evidence, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the last layer obeys the law of `Evidence.remainder` with these in the update's place, and not as it is."""
    rest = evidence.remainder
    if rest is None or rest <= BROKEN or isinstance(evidence.head, FedveilError):
        return False
    other = replace(evidence, update=replace(evidence.update, tensors=dict(tensors))).remainder
    return other is not None and other <= LAWFUL


def _flat(tensors: Mapping[str, Tensor], names: Iterable[str]) -> Tensor:
    return torch.cat([tensors[name].double().flatten() for name in names])
