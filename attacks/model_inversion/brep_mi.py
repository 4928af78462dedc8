"""Model inversion by hard labels alone: latents move away from where the answer is another class."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fedveil.attacks.model_inversion.base import MODEL_INVERSIONS, InversionKnowledge, Inverted, ModelInversion
from fedveil.attacks.model_inversion.gan import GanTraining, Generator
from fedveil.attacks.model_inversion.released import Access, LabelTarget
from fedveil.defense.checks import MOST_STEPS, above_zero, whole
from fedveil.defense.devices import on_device
from fedveil.fl.progress import paced
from fedveil.fl.seeding import torch_stream

LONGEST = 3.0
"""A step is a third of the radius, and never longer than this."""
CHUNK = 1024


@MODEL_INVERSIONS.register("brep_mi")
@dataclass(frozen=True, kw_only=True)
class BrepMi(ModelInversion):
    """Boundary repulsion among a generator's latents (Kahla et al. 2022, arXiv 2203.06580).

    A latent begins where the release answers with its class. On a sphere around it ``points`` latents u are asked about. As
    long as some are answered otherwise, it moves along the mean of them, those of its class counting 1 and all others -1;
    once none is, the sphere grows. The farther from the boundary, the more typical. Radius, growth and length of a step are
    the paper's as its code is remembered; the published attack takes as many steps as the radius goes on growing, here it is
    a number, and the last latent whose whole sphere was of its class is kept, or the last of all where there was none.

    Attributes:
        gan: how the generator is trained.
        per_class: images for each class.
        steps: of each latent, each with ``points`` queries.
        points: on the sphere.
        radius: of the first sphere.
        growth: of the radius where the whole sphere is of one class, above 1.
        tries: latents among which the first ones are looked for.
    """

    access: ClassVar[Access] = Access.LABELS

    gan: GanTraining = field(default_factory=GanTraining)
    per_class: int = 8
    steps: int = 60
    points: int = 32
    radius: float = 2.0
    growth: float = 1.3
    tries: int = 4096

    def __post_init__(self) -> None:
        whole("brep_mi", most=4096, per_class=(self.per_class, 1), points=(self.points, 1))
        whole("brep_mi", most=MOST_STEPS, steps=(self.steps, 1), tries=(self.tries, 1))
        above_zero("brep_mi", radius=self.radius, growth=self.growth - 1)

    @property
    def prior(self) -> GanTraining:
        """See `ModelInversion.prior`."""
        return self.gan

    @torch.no_grad()
    def run(self, target: LabelTarget, knowledge: InversionKnowledge) -> Inverted:
        """See `ModelInversion.run`."""
        generator = on_device(knowledge.gan(self.gan).generator, knowledge.device)
        stream = torch_stream(knowledge.seed, "model inversion", "brep_mi")
        wanted = torch.arange(target.classes).repeat_interleave(self.per_class)

        def answers(latents: Tensor) -> Tensor:
            return torch.cat([target.labels(_painted(generator, some)) for some in latents.split(CHUNK)])

        first = torch.randn(self.tries, self.gan.latent, generator=stream)
        labels = answers(first)
        z = torch.stack([first[_any_of(labels == goal, stream)] for goal in wanted.tolist()])
        kept, radius = z.clone(), torch.full((len(z),), self.radius)
        never = torch.ones(len(z), dtype=torch.bool)
        for _ in paced(self.steps, "brep_mi"):
            ball = torch.randn(len(z), self.points, self.gan.latent, generator=stream)
            ball /= ball.norm(dim=2, keepdim=True)
            asked = (z[:, None] + radius[:, None, None] * ball).flatten(0, 1)
            right = answers(asked).view(len(z), self.points) == wanted[:, None]
            inside = right.all(1)
            kept[inside] = z[inside]
            never &= ~inside
            radius[inside] *= self.growth
            sign = torch.where(right, 1.0, -1.0)[:, :, None]
            stride = (radius / 3).clamp(max=LONGEST)[:, None]
            z = torch.where(inside[:, None], z, z + stride * (sign * ball).mean(1))
        kept = torch.where(never[:, None], z, kept)
        return Inverted(_painted(generator, kept), wanted, {"queries": float(target.queries)})


def _painted(generator: Generator, latents: Tensor) -> Tensor:
    device = next(generator.parameters()).device
    painted: Tensor = generator(latents.to(device)).cpu()
    return painted


def _any_of(allowed: Tensor, stream: torch.Generator) -> int:
    """Return one of the allowed positions, or any where none is."""
    chosen = (allowed if bool(allowed.any()) else torch.ones_like(allowed)).double()
    return int(torch.multinomial(chosen, 1, generator=stream))
