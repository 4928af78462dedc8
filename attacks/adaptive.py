"""Adaptive attackers: they know the defence, invert the update, and then undo the defence with a learnt inverse.

Three threat models, from the realistic to the limit: the defence's code (`Adaptive`), its trained modules as well
(`AdaptiveModules`), and on top of those an inversion that is perfect (`TrainedImages`), which by data processing
bounds what the others could ever reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from fedveil.attacks.base import ATTACKS, Attack, AttackerPreparation, Earlier, Knowledge, Observation
from fedveil.attacks.inverse import InverseTraining
from fedveil.attacks.inverting_gradients import InvertingGradients
from fedveil.attacks.labels import labels_of
from fedveil.attacks.tuning import best_tv
from fedveil.defense.base import Surrogate
from fedveil.defense.devices import on_device
from fedveil.fl.messages import Reconstruction, ThreatModel


@ATTACKS.register("adaptive")
@dataclass(frozen=True, kw_only=True)
class Adaptive(InvertingGradients):
    """Invert the update through what the defence leaves visible, then undo what it did to the data.

    That a defence has to be judged by an attacker who knows it is the rule of Balunovic et al. 2022 (arXiv 2111.04706).
    Granted the defence's code alone, the attacker has prepared its own copy of the defence on its auxiliary images, and
    trained the inverse on what that copy makes of them.

    >>> import fedveil as fv
    >>> fv.Adaptive(steps=500, inverse=fv.InverseTraining(steps=800)).inverse.steps
    800

    Attributes:
        inverse: how the inverse is trained.
    """

    name: ClassVar[str] = "adaptive"
    needs: ClassVar[ThreatModel] = ThreatModel(labels=False, auxiliary_data=True, defense_algorithm=True)
    adaptive: ClassVar[bool] = True

    inverse: InverseTraining = field(default_factory=InverseTraining)

    @property
    def plain(self) -> InvertingGradients:
        """The inversion alone, with the same settings."""
        return InvertingGradients(**{f.name: getattr(self, f.name) for f in fields(InvertingGradients)})

    def run(self, observations: Sequence[Observation], knowledge: Knowledge, earlier: Earlier) -> list[Reconstruction]:
        """See `Attack.run`."""
        plain = earlier.get(self.plain)
        preparations = [knowledge.preparation(observation.client) for observation in observations]
        results: dict[int, Reconstruction] = {}
        # Each preparation on its own: what is tuned against one client's modules must not depend on who else is attacked.
        for preparation in {id(r): r for r in preparations}.values():
            group = [at for at, own in enumerate(preparations) if own is preparation]
            # With auxiliary images this attacker may have recovered other labels than the plain one.
            if (
                plain is not None
                and preparation.surrogate.update is None
                and all(torch.equal(plain[at].labels, labels_of(observations[at], knowledge)) for at in group)
            ):
                inverted = [plain[at] for at in group]
            else:
                inverted = self._invert([observations[at] for at in group], preparation.surrogate, knowledge)
            results.update(
                {at: undo(found, preparation, knowledge.device) for at, found in zip(group, inverted, strict=True)}
            )
        return [results[at] for at in range(len(observations))]

    def _invert(
        self, observations: Sequence[Observation], surrogate: Surrogate, knowledge: Knowledge
    ) -> list[Reconstruction]:
        if surrogate.update is None:
            return self.invert(observations, knowledge)
        tuned = replace(self, tv=best_tv(self, observations[0], surrogate, knowledge))
        return tuned.invert(observations, knowledge, surrogate.visible)


@ATTACKS.register("adaptive_modules")
@dataclass(frozen=True, kw_only=True)
class AdaptiveModules(Adaptive):
    """`Adaptive` that holds the client's own trained modules too, and has trained its inverse on what they make.

    >>> import fedveil as fv
    >>> fv.AdaptiveModules(steps=500).needs.defense_modules
    True
    """

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

    >>> import fedveil as fv
    >>> fv.TrainedImages().needs.trained_images
    True

    Attributes:
        inverse: how the inverse is trained.
    """

    name: ClassVar[str] = "trained_images"
    needs: ClassVar[ThreatModel] = ThreatModel(
        labels=False, auxiliary_data=True, defense_algorithm=True, defense_modules=True, trained_images=True
    )
    adaptive: ClassVar[bool] = True

    inverse: InverseTraining = field(default_factory=InverseTraining)

    def applies(self, knowledge: Knowledge) -> bool:
        """See `Attack.applies`."""
        return all(preparation.surrogate.update is None for preparation in knowledge.preparations.values())

    def run(self, observations: Sequence[Observation], knowledge: Knowledge, earlier: Earlier) -> list[Reconstruction]:
        """See `Attack.run`."""
        results = []
        for observation in observations:
            labels = labels_of(observation, knowledge)
            found = Reconstruction(_granted(observation.trained_images), labels, 0.0)
            results.append(undo(found, knowledge.preparation(observation.client), knowledge.device))
        return results


def _granted(images: Tensor | None) -> Tensor:
    if images is None:
        raise ValueError("the observation lacks trained_images, which the threat model grants")
    return images


@torch.no_grad()
def undo(found: Reconstruction, preparation: AttackerPreparation, device: torch.device) -> Reconstruction:
    """Pass a reconstruction of the trained-on images through the learnt inverse, where the defence changes images."""
    if preparation.inverse is None:
        return found
    inverse = on_device(preparation.inverse, device)
    return replace(found, images=inverse(found.images.to(device)).clamp(0, 1).cpu())
