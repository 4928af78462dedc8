"""Adaptive attackers: they know the defence, invert the update, and then undo the defence with a learnt inverse.

Three threat models, from the realistic to the limit: the defence's code (`Adaptive`), its trained modules as well
(`AdaptiveModules`), and on top of those an inversion that is perfect (`TrainedImages`), which by data processing
bounds what the others could ever reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from fedveil.attacks.adaptive.calibration import Calibration
from fedveil.attacks.adaptive.forward_matching import from_images, from_updates
from fedveil.attacks.adaptive.own_victims import OwnVictim, others_than, own_victims
from fedveil.attacks.adaptive.shares import WithShares
from fedveil.attacks.adaptive.tuning import LEAST_BATCHES, Inversion, tuned
from fedveil.attacks.base import ATTACKS, Attack, AttackerPreparation, Earlier, Knowledge, Observation
from fedveil.attacks.labels import labels_of
from fedveil.attacks.matching.attack import target_gradient
from fedveil.attacks.matching.exposure import exposed
from fedveil.attacks.scoring import match
from fedveil.attacks.strongest import Strongest
from fedveil.defense.base import Surrogate
from fedveil.defense.checks import whole
from fedveil.defense.inverse.learnt import InverseTraining
from fedveil.fl.errors import SettingError
from fedveil.fl.messages import Likeness, Reconstruction, ThreatModel


@ATTACKS.register("adaptive")
@dataclass(frozen=True, kw_only=True)
class Adaptive(Attack):
    """Invert the update through what the defence leaves visible, then undo what it did to the data.

    That a defence has to be judged by an attacker who knows it is the rule of Balunovic et al. 2022 (arXiv 2111.04706).
    Granted the defence's code alone, the attacker has prepared its own copy of the defence on its auxiliary images, and
    trained the inverse on what that copy makes of them. Where a batch was observed in several rounds and the defence drew
    it afresh in each, every update is inverted alone and the inverse sees all the draws; otherwise one set of images has
    to explain them all. Where the defence makes labels shares of classes, those are read off the update, for which it is
    inverted twice (`fedveil.attacks.adaptive.shares`).

    >>> import fedveil as fv
    >>> attack = fv.Adaptive(inversion=fv.InvertingGradients(steps=500), inverse=fv.InverseTraining(steps=800))
    >>> attack.inverse.steps
    800

    Attributes:
        inversion: the attack that inverts the updates, one that matches gradients. What it has found already, run before
            this one with the same settings, is built on.
        inverse: how the inverse is trained, and the classifier beside it.
        calibration: auxiliary images that are attacked beside the victims, to learn what is wrong with the reconstructions
            and set it right (`fedveil.attacks.adaptive.calibration`); 0 for none.
    """

    name: ClassVar[str] = "adaptive"
    needs: ClassVar[ThreatModel] = ThreatModel(labels=False, auxiliary_data=True, defense_algorithm=True)
    adaptive: ClassVar[bool] = True

    inversion: Attack = field(default_factory=Strongest)
    inverse: InverseTraining = field(default_factory=InverseTraining)
    calibration: int = 16

    def __post_init__(self) -> None:
        whole(self.name, calibration=(self.calibration, 0))
        if not isinstance(self.inversion, Inversion):
            given = getattr(self.inversion, "name", self.inversion)
            raise SettingError(self.name, "inversion", given, "it has to be an attack that matches gradients")

    def run(self, observations: Sequence[Observation], knowledge: Knowledge, earlier: Earlier) -> list[Reconstruction]:
        """See `Attack.run`."""
        plain, granted = earlier.get(self.inversion), knowledge
        preparations = [knowledge.preparation(observation.client) for observation in observations]
        results: dict[int, Reconstruction] = {}
        # Each preparation on its own: what is tuned against one client's modules must not depend on who else is attacked.
        for preparation in {id(r): r for r in preparations}.values():
            group = [at for at, own in enumerate(preparations) if own is preparation]
            own = [_with_what_was_drawn(observations[at], preparation.surrogate) for at in group]
            knowledge = replace(granted, model=replace(granted.model, defended=preparation.surrogate.loss))
            rehearsed = self._own_victims(observations[group[0]], preparation, knowledge)
            inversion = self._tuned(rehearsed, preparation.surrogate, knowledge)
            # With auxiliary images this attacker may have recovered other labels than the plain one.
            if (
                plain is not None
                and preparation.surrogate.inverted_plainly
                and preparation.draws == 1
                and all(torch.equal(plain[at].labels, labels_of(observations[at], knowledge)) for at in group)
            ):
                inverted = [[one] for one in _brightened(own, [plain[at] for at in group], knowledge)]
            else:
                inverted = _inverted(inversion, own, preparation, knowledge)
            calibration = None
            if self.calibration:
                calibration = _calibration(inversion, rehearsed, preparation, knowledge)
            likenesses = self._likenesses(own, inverted, preparation, knowledge)
            for at, found, likeness in zip(group, inverted, likenesses, strict=True):
                undone = undo(found, preparation, knowledge)
                results[at] = replace(_set_right(undone, calibration), likeness=likeness)
        return [results[at] for at in range(len(observations))]

    def _own_victims(
        self, like: Observation, preparation: AttackerPreparation, knowledge: Knowledge
    ) -> list[OwnVictim]:
        least = 0 if preparation.surrogate.update is None else LEAST_BATCHES
        batches = max(least, -(-self.calibration // like.batch_size))
        if batches == 0 or knowledge.auxiliary is None:
            return []
        made = own_victims(like, preparation, knowledge, batches)
        return [replace(one, observation=_with_what_was_drawn(one.observation, preparation.surrogate)) for one in made]

    def _tuned(self, own: Sequence[OwnVictim], surrogate: Surrogate, knowledge: Knowledge) -> Inversion:
        assert isinstance(self.inversion, Inversion)  # __post_init__ has refused all else
        inversion: Inversion = self.inversion
        if surrogate.batch is not None:
            inversion = WithShares(inversion, surrogate.batch)
        return inversion if surrogate.update is None else tuned(inversion, own, surrogate, knowledge)

    def _likenesses(
        self,
        observations: Sequence[Observation],
        inverted: Sequence[Sequence[Reconstruction]],
        preparation: AttackerPreparation,
        knowledge: Knowledge,
    ) -> Sequence[Likeness | None]:
        """By the update where one unmixed image is behind it; else by the inverted images, where a defence changes images.

        Where a defence makes one image of many, by the inverted images in any case.
        """
        surrogate = preparation.surrogate
        if preparation.law is not None:
            return [partial(preparation.law, _draws(found).mean(0)) for found in inverted]
        # What a candidate that is mixed would send depends on shares that are different for every victim.
        mixed = surrogate.batch is not None and surrogate.data is not None
        if observations[0].batch_size == 1 and not mixed:
            return from_updates(observations, surrogate, knowledge)
        if surrogate.data is None:
            return [None] * len(observations)
        draws, labels = [_draws(found) for found in inverted], [found[0].labels for found in inverted]
        return from_images(draws, labels, surrogate, knowledge, exact=False)


@ATTACKS.register("adaptive_modules")
@dataclass(frozen=True, kw_only=True)
class AdaptiveModules(Adaptive):
    """`Adaptive` that holds the client's own trained modules too, and has trained its inverse on what they make.

    >>> import fedveil as fv
    >>> fv.AdaptiveModules().needs.defense_modules
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
    best estimator of x from x'; this is that estimator, as well as the attacker could train it. Of a batch that was
    observed in several rounds it is handed the images of each. A defence that acts on the update keeps more than that from
    a server, of which the bound says nothing: there the attack does not apply.

    >>> import fedveil as fv
    >>> fv.TrainedImages().needs.trained_images
    True

    Attributes:
        inverse: how the inverse is trained, and the classifier beside it.
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
        preparations = [knowledge.preparation(observation.client) for observation in observations]
        results: dict[int, Reconstruction] = {}
        for preparation in {id(r): r for r in preparations}.values():
            group = [at for at, own in enumerate(preparations) if own is preparation]
            draws = [torch.stack([_granted(one.trained_images) for one in observations[at].series]) for at in group]
            labels = [labels_of(observations[at], knowledge) for at in group]
            likenesses: Sequence[Likeness]
            if preparation.law is not None:
                likenesses = [partial(preparation.law, own.mean(0)) for own in draws]
            else:
                likenesses = from_images(draws, labels, preparation.surrogate, knowledge, exact=True)
            for at, seen, own, likeness in zip(group, draws, labels, likenesses, strict=True):
                found = undo([Reconstruction(images, own, 0.0) for images in seen], preparation, knowledge)
                results[at] = replace(found, likeness=likeness)
        return [results[at] for at in range(len(observations))]


def _inverted(
    inversion: Inversion, observations: Sequence[Observation], preparation: AttackerPreparation, knowledge: Knowledge
) -> list[list[Reconstruction]]:
    """What is found behind each batch: one result, or one per draw where the defence drew afresh each time."""
    afresh = preparation.draws > 1 or preparation.surrogate.batch is not None
    seen = [_afresh(one, knowledge) if afresh else [one] for one in observations]
    flat = iter(inversion.invert([one for draws in seen for one in draws], knowledge, preparation.surrogate.visible))
    return [[next(flat) for _ in draws] for draws in seen]


def _calibration(
    inversion: Inversion, own: Sequence[OwnVictim], preparation: AttackerPreparation, knowledge: Knowledge
) -> Calibration | None:
    """Learnt on the attacker's own victims, which have gone the same way as the clients'."""
    if not own:
        return None
    inverted = _inverted(inversion, [one.observation for one in own], preparation, knowledge)
    undone = [undo(found, preparation, knowledge) for found in inverted]
    originals = [one.batch.floats() for one in own]
    order = [match(truth, found.images) for found, truth in zip(undone, originals, strict=True)]
    return Calibration.of(
        torch.cat([found.images for found in undone]),
        torch.cat([found.labels for found in undone]),
        torch.cat([truth[at] for truth, at in zip(originals, order, strict=True)]),
        others_than(own, knowledge.auxiliary_images()),
    )


def _set_right(found: Reconstruction, calibration: Calibration | None) -> Reconstruction:
    if calibration is None:
        return found
    # The mean of a class shows the class that was told or recovered: classes are read from the images as they were.
    blind = found.images if found.blind is None else found.blind
    images = calibration(found.images, found.labels)
    return replace(found, images=images, blind=blind, scale_guessed=False)


def _brightened(
    observations: Sequence[Observation], plain: Sequence[Reconstruction], knowledge: Knowledge
) -> Sequence[Reconstruction]:
    """What another attacker has found, as bright as the auxiliary images say where that one, without any, had to guess."""
    guessed = any(one.scale_guessed for one in plain)
    return exposed(observations, plain, knowledge) if guessed and knowledge.auxiliary is not None else plain


def _with_what_was_drawn(observation: Observation, surrogate: Surrogate) -> Observation:
    """The same, with the noise of the client's forward pass beside the weights, as far as its updates tell that."""
    revealed = surrogate.revealed
    if revealed is None or observation.batch_size > 1 or observation.update.local_steps > 1:
        return observation
    first, *again = (
        replace(one, weights={**one.weights, **revealed(target_gradient(one.update), one.weights)}, repeats=())
        for one in observation.series
    )
    return replace(first, repeats=tuple(again))


def _granted(images: Tensor | None) -> Tensor:
    if images is None:
        raise ValueError("the observation lacks trained_images, which the threat model grants")
    return images


def _afresh(observation: Observation, knowledge: Knowledge) -> list[Observation]:
    """Every observation of a batch as one of its own, with the labels of the first."""
    labels = labels_of(observation, knowledge)
    return [replace(one, repeats=(), labels=labels) for one in observation.series]


def undo(found: Sequence[Reconstruction], preparation: AttackerPreparation, knowledge: Knowledge) -> Reconstruction:
    """Pass reconstructions of what one batch was trained on through the learnt inverse, and read the classes.

    Args:
        found: one for each draw of the batch, with equal labels.
        preparation: with an inverse where the defence changes images, and perhaps a classifier.
        knowledge: says whether the labels were told: then the result holds what an attacker makes of it who was not.
    """
    first, draws = found[0], _draws(found).to(knowledge.device)
    images, blind = first.images, None
    if preparation.inverse is not None:
        images = preparation.inverse(draws, first.labels).cpu()
        blind = preparation.inverse(draws, None).cpu() if knowledge.threat_model.labels else None
    elif len(found) > 1:
        images = draws.mean(dim=0).cpu()
    classes = None if preparation.reader is None else preparation.reader(draws)
    loss = sum(one.loss for one in found) / len(found)
    return replace(first, images=images, loss=loss, blind=blind, classes=classes)


def _draws(found: Sequence[Reconstruction]) -> Tensor:
    """(R, B, C, H, W): the images of each inversion, in the order of the first one's."""
    return torch.stack([_aligned(one, found[0]) for one in found])


def _aligned(found: Reconstruction, like: Reconstruction) -> Tensor:
    """The images of one inversion in the order of another's: of those with one label, each where it fits best."""
    if found is like:
        return found.images
    images = like.images.clone()
    for label in like.labels.unique():
        own = like.labels == label
        alike = found.images[own]
        images[own] = alike[match(alike, like.images[own])]
    return images
