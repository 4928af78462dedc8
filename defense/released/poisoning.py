"""Poison for an inversion model: perturbations of answers that turn its training against the images to be protected.

Gradient alignment as in Witches' Brew (Geiping et al. 2021, arXiv 2009.02276): a step of training on perturbed answers is to
point where the error on protected images rises. What is learnt is a function of the answer, so that a query costs one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from fedveil.defense.released.decoder import CHUNK, ConfidenceDecoder, truncated_logs
from fedveil.defense.released.perturbing import candidate, moved
from fedveil.defense.seeded import seeded
from fedveil.fl.data.images import Images
from fedveil.fl.progress import paced
from fedveil.fl.stepping import Adam

STAGES = 3
"""At so many stages of its training the inversion model is looked at."""
BATCH = 64
RATE = 2e-3
REACH = 4.0
"""Scores of a candidate lie within so far from 0."""
HIDDEN = 64


class Direction(nn.Module):
    """From an answer (n, k), as the decoder is shown it, to numbers about it: a small network with smooth activations.

    Args:
        classes: k.
        outputs: numbers.
    """

    def __init__(self, classes: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(classes, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, outputs)
        )

    def forward(self, confidences: Tensor) -> Tensor:
        """(n, k) confidences to (n, outputs)."""
        # Most of the logarithm's range is never met: the last few units of it are spread out.
        found: Tensor = self.layers(10 * (truncated_logs(confidences) - 1))
        return found


@dataclass(frozen=True, eq=False)
class Queries:
    """Answers of the finished model with their images.

    Attributes:
        confidences: (n, k), in double precision as the guards compute, on the device.
        images: (n, C, H, W) in [0, 1], on the device.
    """

    confidences: Tensor
    images: Tensor

    @classmethod
    def of(cls, model: nn.Module, images: Images, device: torch.device) -> Queries:
        """Ask the model about images."""
        x = images.floats().to(device)
        with torch.no_grad():
            answers = torch.cat([model(some) for some in x.split(CHUNK)])
        return cls(answers.double().softmax(1), x)

    def take(self, at: Tensor) -> Queries:
        """Those at some indices, (m,) int64 or (n,) bool."""
        at = at.to(self.images.device)
        return Queries(self.confidences[at], self.images[at])

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class Surrogate:
    """The inversion model that the defender expects, at some stages of its training.

    Attributes:
        network: for its structure.
        stages: weights and buffers by name.
    """

    network: ConfidenceDecoder
    stages: tuple[dict[str, Tensor], ...]

    @classmethod
    def trained(cls, queries: Queries, *, width: int, steps: int, stream: torch.Generator) -> Surrogate:
        """Train one on answers as they are (Adam), and keep its weights at `STAGES` times, at the end for the last time."""
        shape = (queries.images.shape[1], queries.images.shape[2], queries.images.shape[3])
        classes = queries.confidences.shape[1]
        device = queries.images.device
        network = seeded(lambda: ConfidenceDecoder(classes, shape, width), stream).to(device).train()
        optimizer = Adam(network.parameters(), learning_rate=RATE)
        due = {max(1, steps * (at + 1) // STAGES) for at in range(STAGES)}
        stages = []
        for step in range(1, steps + 1):
            some = queries.take(torch.randint(len(queries), (BATCH,), generator=stream))
            optimizer.zero_grad()
            F.mse_loss(network(some.confidences.float()), some.images).backward()
            optimizer.step()
            if step in due:
                stages.append({name: value.detach().clone() for name, value in network.state_dict().items()})
        return cls(network.eval().requires_grad_(False), tuple(stages))

    def gradient(self, stage: int, confidences: Tensor, images: Tensor, *, create_graph: bool = False) -> Tensor:
        """Return the gradient (d,) of the mean squared error in the weights at a stage.

        BatchNorm runs on its statistics, so that one image's gradient does not depend on the others beside it.
        """
        names = [name for name, _ in self.network.named_parameters()]
        state = dict(self.stages[stage])
        held = [state[name].detach().requires_grad_(True) for name in names]
        state |= zip(names, held, strict=True)
        found = functional_call(self.network, state, (confidences.float(),))
        slopes = torch.autograd.grad(F.mse_loss(found, images), held, create_graph=create_graph)
        return torch.cat([slope.flatten() for slope in slopes])


def away(surrogate: Surrogate, protected: Queries) -> list[Tensor]:
    """Return, stage by stage, minus the gradient of protected images: a step of descent along it makes them worse."""
    return [-surrogate.gradient(at, protected.confidences, protected.images) for at in range(len(surrogate.stages))]


def learn_direction(
    surrogate: Surrogate,
    poison: Queries,
    goals: Sequence[Tensor],
    *,
    budget: float,
    keep: bool,
    steps: int,
    stream: torch.Generator,
) -> Direction:
    """Learn how to move answers, so that the inversion model's gradient on them points along the goals.

    Minimises 1 - cos(gradient on moved answers, goal), the gradient being that of a batch and all layers one vector.

    Args:
        surrogate: the inversion model.
        poison: queries to move.
        goals: from `away`.
        budget: see `moved`.
        keep: the largest entry stays the largest.
        steps: of Adam.
        stream: the only source of randomness.
    """
    classes = poison.confidences.shape[1]
    network = seeded(lambda: Direction(classes, classes), stream).to(poison.images.device)
    optimizer = Adam(network.parameters(), learning_rate=RATE)
    for step in paced(steps, "learning to mislead"):
        some = poison.take(torch.randint(len(poison), (BATCH,), generator=stream))
        at = step % len(goals)
        answers = pushed(network, some.confidences, some.confidences.argmax(1) if keep else None, budget)
        slope = surrogate.gradient(at, answers, some.images, create_graph=True)
        loss = 1 - F.cosine_similarity(slope, goals[at], dim=0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval().requires_grad_(False)


def pushed(network: Direction, confidences: Tensor, top: Tensor | None, budget: float) -> Tensor:
    """Return answers (n, k), in double precision, as `Direction` moves them; see `candidate` and `moved`."""
    scores = REACH * torch.tanh(network(confidences.float())).double()
    return moved(confidences, candidate(scores, top), budget)


def alignment(surrogate: Surrogate, answers: Tensor, images: Tensor, goals: Sequence[Tensor]) -> float:
    """Return the mean cosine over stages between the gradient on answers (n, k) with their images and the goal, -1 to 1."""
    cosines = [
        float(F.cosine_similarity(surrogate.gradient(at, answers, images), goal, dim=0))
        for at, goal in enumerate(goals)
    ]
    return sum(cosines) / len(cosines)
