"""What stands between images and gradients: can the network be differentiated, and did it run as attacks take it to?"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd

from fedveil.attacks.diagnosis.evidence import Evidence
from fedveil.attacks.diagnosis.finding import Finding, Outlook
from fedveil.attacks.engine.attackable import check_attackable
from fedveil.attacks.target.smoothness import is_smooth
from fedveil.fl.errors import FedveilError
from fedveil.fl.seeding import torch_stream

DIMMED = 0.7
"""Brightness of the second of two images whose gradients are compared."""
SAME = 1e-3
"""Relative difference of gradients below which nothing tells the two apart; what BatchNorm adds to variances makes some."""


def attackable(evidence: Evidence) -> Iterator[Finding]:
    """Whether attacks can take their derivatives, and which search suits."""
    try:
        check_attackable(evidence.target)
    except FedveilError as error:
        yield Finding(
            "network",
            Outlook.STOPS,
            str(error).removeprefix("model: "),
            "fedveil's searches need that derivative; another attacker may not",
            "put something in its place that can be differentiated, and audit that",
        )
        return
    if is_smooth(evidence.target, evidence.weights):
        yield Finding(
            "network",
            Outlook.HELPS,
            "its slopes change evenly",
            "curvature tells: deep_leakage (L-BFGS) comes furthest",
        )
    else:
        yield Finding(
            "network", Outlook.NEUTRAL, "its slopes jump (ReLU or pooling)", "signed steps come furthest: modern"
        )


def steps(evidence: Evidence) -> Iterator[Finding]:
    """How many local steps are behind the update, by what was said and by BatchNorm's own count."""
    update = evidence.update
    counted = {
        int(change)
        for name, change in evidence.sent.buffers.items()
        if name.rpartition(".")[2] == "num_batches_tracked" and change.numel() == 1
    }
    if len(counted) == 1 and (own := counted.pop()) > 0 and own != update.local_steps:
        yield Finding(
            "local steps",
            Outlook.HINDERS,
            f"BatchNorm counted {own}, not {update.local_steps}",
            "attacks replay the wrong number of them",
            f"say {evidence.words.steps.format(own)}",
        )
    elif update.local_steps > 1:
        yield Finding(
            "local steps",
            Outlook.HINDERS,
            f"{update.local_steps} of them",
            "their gradients are seen as one sum, at weights that nobody sent; strongest and modern replay them",
            "" if update.rate_known else f"say {evidence.words.rate}: without the rate the replay goes by a guess",
        )
    if not update.plain:
        yield Finding(
            "optimiser",
            Outlook.HINDERS,
            f"{update.optimizer!r}",
            "its steps are not sized as gradients: attacks match the direction alone",
        )


def randomness(evidence: Evidence) -> Iterator[Finding]:
    """Dropout, and anything else that draws at random while the client trains."""
    if evidence.target.mode == "eval":
        return
    layers = {n: part.p for n, part in evidence.model.named_modules() if isinstance(part, _DropoutNd) and part.p > 0}
    if layers:
        name = max(layers, key=lambda one: layers[one])
        found = f"p = {layers[name]:g} in {name}" + (f", {len(layers)} layers in all" if len(layers) > 1 else "")
        what = "dropout"
    elif _differs_from_itself(evidence):
        what, found = "randomness", "in train mode the network answers otherwise each time"
    else:
        return
    yield Finding(
        what,
        Outlook.HINDERS,
        found,
        "the client's draw is unknown, and attacks go without: no image explains the update exactly",
        f"if the client had it off, say {evidence.words.mode.format('eval')}",
    )


def _differs_from_itself(evidence: Evidence) -> bool:
    twin = copy.deepcopy(evidence.model).train()
    like = next(twin.parameters())
    stream = torch_stream(0, "randomness")
    x = torch.rand((2, *evidence.target.image_shape), generator=stream).to(like)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        answers = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            try:
                answers.append(copy.deepcopy(twin)(x))
            except Exception:  # whatever a user's model raises, here where only attacks make it fit
                return False
    return not torch.equal(*answers)


def brightness(evidence: Evidence) -> Iterator[Finding]:
    """Whether a darker image leaves the same gradient: a normalisation may hide how bright images are."""
    x = torch.rand((1, *evidence.target.image_shape), generator=torch_stream(0, "brightness"))
    bright, dim = gradient_of(evidence, x), gradient_of(evidence, DIMMED * x)
    if float((bright - dim).norm()) > SAME * float(bright.norm()):
        return
    yield Finding(
        "brightness",
        Outlook.HINDERS,
        f"an image and {DIMMED:g} times it leave the same gradient",
        "normalisation hides it: shapes come back, their brightness is guessed, and MSE depends on the guess",
        "read SSIM beside MSE",
    )


def gradient_of(evidence: Evidence, x: Tensor) -> Tensor:
    """Return the gradient that one (1, C, H, W) image of class 0 leaves at the weights given, as one vector."""
    weights = {n: w.clone().requires_grad_() for n, w in evidence.target.known(evidence.weights).items()}
    names = [name for name, _ in evidence.target.module.named_parameters()]
    loss = F.cross_entropy(evidence.target.logits(weights, x), torch.zeros(1, dtype=torch.int64))
    parts = torch.autograd.grad(loss, [weights[name] for name in names], materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])
