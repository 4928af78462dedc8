"""What has to hold before anything else can be read: weights that are some, and an update of the kind it was taken for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from fedveil.attacks.diagnosis.evidence import Evidence
from fedveil.attacks.diagnosis.finding import Finding, Outlook, some
from fedveil.attacks.diagnosis.network import gradient_of
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
    elif torch.equal(*(gradient_of(evidence, image) for image in _two_images(evidence))):
        zero = not any(bool(parameter.any()) for parameter in evidence.model.parameters())
        yield Finding(
            "weights",
            Outlook.STOPS,
            "two images leave the same gradient at the weights given"
            + (", which are 0" if zero else ": no unit that sees them is awake"),
            "what an image is has no influence there, so that there is nothing to find",
            f"if the client trained from other weights, {SERVER}",
        )


def _two_images(evidence: Evidence) -> Iterable[Tensor]:
    stream = torch_stream(0, "premises")
    return (torch.rand((1, *evidence.target.image_shape), generator=stream) for _ in range(2))


def _kind(evidence: Evidence) -> Iterator[Finding]:
    """The update is measured against the weights, of which neither a gradient nor a change knows much."""
    update, words = evidence.update, evidence.words
    if evidence.sent.guessed:
        return
    given, sent = (_flat(of, update.tensors) for of in (update.tensors, evidence.weights))
    size, base = float(given.norm()), float(sent.norm())
    if not base or not size:
        return
    distance, away = float((given - sent).norm()), -float(given @ sent)
    taken = "a gradient" if update.kind is UpdateKind.GRADIENT else "a weight change"
    if distance <= NEAR * size:
        yield Finding(
            "kind",
            Outlook.STOPS,
            f"taken for {taken}, it is {distance / size:.1g} of its size away from the weights that the server sent",
            "these look like weights after training: what was learnt is the difference",
            f"say {words.weights}",
        )
    elif update.kind is UpdateKind.DELTA and away >= max(GONE * base * base, ALONG * size * base):
        yield Finding(
            "kind",
            Outlook.STOPS,
            f"taken for {taken}, it takes {away / base**2:.0%} of the weights that the server sent away",
            "they were subtracted from something that never held them: a gradient, or a change already",
            f"say {words.gradient}, or {words.delta}",
        )


def _flat(tensors: Mapping[str, Tensor], names: Iterable[str]) -> Tensor:
    return torch.cat([tensors[name].double().flatten() for name in names])
