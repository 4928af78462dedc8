"""Adaptive attackers: they know the defence, invert the update, and then undo the defence with a learnt inverse.

Three threat models, from the realistic to the limit: the defence's code (`Adaptive`), its trained modules as well
(`AdaptiveModules`), and on top of those an inversion that is perfect (`TrainedImages`), which by data processing
bounds what the others could ever reach.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from fedveil.attacks.base import ATTACKS, Attack, Knowledge, Observation
from fedveil.attacks.baseline import labels_of
from fedveil.attacks.inverting_gradients import InvertingGradients
from fedveil.attacks.preparation import AttackerPreparation
from fedveil.attacks.tuning import best_tv, visible_masks
from fedveil.defense.base import Surrogate
from fedveil.fl.messages import Reconstruction, ThreatModel


@ATTACKS.register("adaptive")
@dataclass(frozen=True, kw_only=True)
class Adaptive(Attack):
    """Invert the update through what the defence leaves visible, then undo what it did to the data.

    Granted the defence's code alone, the attacker has trained his own copy of the defence on public images, and the
    inverse on what that copy makes of them.

    Attributes:
        inversion: the gradient inversion.
    """

    name: ClassVar[str] = "adaptive"
    needs: ClassVar[ThreatModel] = ThreatModel(labels=False, auxiliary_data=True, defense_algorithm=True)
    adaptive: ClassVar[bool] = True

    inversion: InvertingGradients = field(default_factory=InvertingGradients)

    @classmethod
    def configured(cls, inversion: InvertingGradients) -> Adaptive:
        """See `Attack.configured`."""
        return cls(inversion=inversion)

    def run(
        self,
        observations: Sequence[Observation],
        knowledge: Knowledge,
        earlier: Mapping[str, Sequence[Reconstruction]],
    ) -> list[Reconstruction]:
        """See `Attack.run`."""
        plain = earlier.get(self.inversion.name)
        preparations = [knowledge.preparation(observation.client) for observation in observations]
        results: dict[int, Reconstruction] = {}
        # Each preparation on its own: what is tuned against one client's modules must not depend on who else is attacked.
        for preparation in {id(r): r for r in preparations}.values():
            group = [at for at, own in enumerate(preparations) if own is preparation]
            if plain is not None and preparation.surrogate.update is None:
                inverted = [plain[at] for at in group]
            else:
                inverted = self._invert([observations[at] for at in group], preparation.surrogate, knowledge)
            results.update({at: undo(found, preparation) for at, found in zip(group, inverted, strict=True)})
        return [results[at] for at in range(len(observations))]

    def _invert(
        self, observations: Sequence[Observation], surrogate: Surrogate, knowledge: Knowledge
    ) -> list[Reconstruction]:
        if surrogate.update is None:
            return self.inversion.invert(observations, knowledge)
        tuned = replace(self.inversion, tv=best_tv(self.inversion, observations[0], surrogate, knowledge))
        return tuned.invert(observations, knowledge, visible_masks(observations, surrogate))


@ATTACKS.register("adaptive_modules")
@dataclass(frozen=True, kw_only=True)
class AdaptiveModules(Adaptive):
    """`Adaptive` who holds the client's own trained modules too, and has trained his inverse on what they make."""

    name: ClassVar[str] = "adaptive_modules"
    needs: ClassVar[ThreatModel] = ThreatModel(
        labels=False, auxiliary_data=True, defense_algorithm=True, defense_modules=True
    )


@ATTACKS.register("trained_images")
@dataclass(frozen=True, kw_only=True)
class TrainedImages(Attack):
    """Handed the very images that the client trained on and the client's modules: only the defence itself is left.

    No server sees those images. An update is computed from them alone, so no attack on updates can do better than the
    best estimator of x from x'; this is that estimator, as well as the attacker could train it. A defence that acts on
    the update keeps more than that from a server, of which the bound says nothing: there the attack does not apply.
    """

    name: ClassVar[str] = "trained_images"
    needs: ClassVar[ThreatModel] = ThreatModel(
        labels=False, auxiliary_data=True, defense_algorithm=True, defense_modules=True, trained_images=True
    )
    adaptive: ClassVar[bool] = True

    def applies(self, knowledge: Knowledge) -> bool:
        """See `Attack.applies`."""
        return all(preparation.surrogate.update is None for preparation in knowledge.preparations.values())

    def run(
        self,
        observations: Sequence[Observation],
        knowledge: Knowledge,
        earlier: Mapping[str, Sequence[Reconstruction]],
    ) -> list[Reconstruction]:
        """See `Attack.run`."""
        results = []
        for observation in observations:
            found = Reconstruction(_granted(observation.trained_images), labels_of(observation), 0.0)
            results.append(undo(found, knowledge.preparation(observation.client)))
        return results


def _granted(images: Tensor | None) -> Tensor:
    if images is None:
        raise ValueError("the observation lacks trained_images, which the threat model grants")
    return images


@torch.no_grad()
def undo(found: Reconstruction, preparation: AttackerPreparation) -> Reconstruction:
    """Pass a reconstruction of the trained-on images through the learnt inverse, where the defence changes images."""
    if preparation.inverse is None:
        return found
    device = next(preparation.inverse.parameters()).device
    return replace(found, images=preparation.inverse(found.images.to(device)).clamp(0, 1).cpu())
