"""An attacker that does not trust one method: several run under one budget, and each victim gets what fits it best."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from fedveil.attacks.base import ATTACKS, Attack, Earlier, Knowledge, Observation
from fedveil.attacks.matching.attack import GradientMatching, Visible, problem_of
from fedveil.attacks.matching.exposure import exposed
from fedveil.attacks.matching.yardstick import misfit
from fedveil.attacks.target.smoothness import is_smooth
from fedveil.defense.checks import MOST_STEPS, at_least, whole
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import Reconstruction

HEAT = 1 / 16
"""Part of the budget that each search has to show what it can; the rest is the winner's. On auxiliary images longer heats,
and a second one, took more from the winner than they told."""
HEATS = 0.5
"""Part of the budget that all of them may take together."""


@ATTACKS.register("strongest")
@dataclass(frozen=True, kw_only=True)
class Strongest(Attack):
    """Run several attacks under one budget, and return for each victim what explains its update best.

    Searches that do not suit the network stand back: where no derivative jumps, matching by curvature (`deep_leakage`) is
    ahead of all signed steps, and far behind in deep networks of ReLUs. There `modern` is ahead for one image; for several
    it was behind `inverting_gradients` at some first weights and ahead of it at trained ones, so they compete.

    All contenders run a short heat, and for each victim the best goes on from there with the rest of the budget: one step of
    successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943). The yardstick is the same for all
    (`fedveil.attacks.matching.yardstick.misfit`): the client's steps are replayed on the reconstruction, and the cosine
    distance of what it would send to what it sent decides, never the truth. That distance is the loss of the result: where
    it is large, no attack worked. A contender that searches for nothing, as `analytic`, runs once beside the others. At
    last images get the brightness that images usually have, where normalisation hides theirs
    (`fedveil.attacks.matching.exposure`): their misfit may grow by half for it.

    >>> import torch, fedveil as fv
    >>> x, y = torch.linspace(0, 1, 256).view(1, 1, 16, 16), torch.tensor([1])
    >>> model = fv.build_model("lenet", image_shape=(1, 16, 16), classes=2)
    >>> update, _ = fv.client_update(model, x, y)
    >>> fv.audit(model, update, images=x, labels=y, attacks=[fv.Strongest(steps=80)]).worst("mse") < 1e-3
    True

    Attributes:
        steps: evaluations of the gradient per victim, of all attacks together; at least 20. One that replays a client's
            local steps counts once.
        contenders: names of attacks, at least one; those that need more than is granted or do not fit the model stand back.
        smoothness: factor on the weights of the contenders' smoothness (total variation, spectrum), at least 0.
        chunk: victims that are optimised together, at least 1; bounds memory. None leaves it to the attacks.
    """

    name: ClassVar[str] = "strongest"
    explains_update: ClassVar[bool] = True
    steps: int = 600
    contenders: tuple[str, ...] = ("analytic", "modern", "deep_leakage", "inverting_gradients")
    smoothness: float = 1.0
    chunk: int | None = None

    def __post_init__(self) -> None:
        whole(self.name, most=MOST_STEPS, steps=(self.steps, 20))
        at_least(self.name, smoothness=(self.smoothness, 0))
        whole(self.name, chunk=(1 if self.chunk is None else self.chunk, 1))
        if isinstance(self.contenders, str):
            raise FedveilError(f"{self.name}: contenders is {self.contenders!r}; it has to be a list of names")
        object.__setattr__(self, "contenders", tuple(self.contenders))
        for name in self.contenders:
            if name == self.name or name not in ATTACKS or not _takes_updates_as_they_are(ATTACKS[name]):
                allowed = [one for one in ATTACKS if one != self.name and _takes_updates_as_they_are(ATTACKS[one])]
                raise FedveilError(f"{self.name}: contenders names {name!r}; allowed: {', '.join(allowed)}")
        if not self.contenders:
            raise FedveilError(f"{self.name}: contenders is empty; name at least one attack")

    def run(self, observations: Sequence[Observation], knowledge: Knowledge, earlier: Earlier) -> list[Reconstruction]:
        """See `Attack.run`."""
        return self.invert(observations, knowledge)

    def smoothed(self, factor: float) -> Strongest:
        """The same with ``factor`` times the weights of total variation."""
        return replace(self, smoothness=factor * self.smoothness)

    def invert(
        self, observations: Sequence[Observation], knowledge: Knowledge, visible: Visible | None = None
    ) -> list[Reconstruction]:
        """Invert all observations, matching only the entries that are ``visible``, if given.

        Raises:
            FedveilError: no contender fits.
        """
        attacks = [attack for attack in map(self._contender, self.contenders) if _ready(attack, knowledge)]
        if not attacks:
            raise FedveilError(f"{self.name}: what the attacker holds fits none of {', '.join(self.contenders)}")
        contest = _Contest(observations, knowledge, visible)
        searches = []
        for attack in attacks:
            if isinstance(attack, GradientMatching):
                searches.append(attack)
            else:
                with suppress(FedveilError):  # an update may lack what it solves for; the searches go on
                    contest.enter(attack, attack(observations, knowledge))
        contest.run(_fit(searches, observations[0], knowledge), self.steps)
        if not all(contest.results()):
            raise FedveilError(f"{self.name}: none of {', '.join(self.contenders)} can take these updates")
        best = [min(own, key=lambda found: found.loss) for own in contest.results()]
        return exposed(observations, best, knowledge, visible)

    def _contender(self, name: str) -> Attack:
        kind = ATTACKS[name]
        given: dict[str, Any] = {"chunk": self.chunk, "place": "unrolled"} if issubclass(kind, GradientMatching) else {}
        attack = kind(**given)
        return attack.smoothed(self.smoothness) if isinstance(attack, GradientMatching) else attack


class _Contest:
    """What each attack has made of each victim so far, by the common yardstick."""

    def __init__(self, observations: Sequence[Observation], knowledge: Knowledge, visible: Visible | None) -> None:
        self._observations = observations
        self._knowledge = knowledge
        self._visible = visible
        self._found: list[dict[str, Reconstruction]] = [{} for _ in observations]

    def run(self, searches: Sequence[GradientMatching], steps: int) -> None:
        """Let the searches compete for each victim, with so many evaluations in all."""
        victims = range(len(self._observations))
        heat = int(min(HEAT, HEATS / len(searches)) * steps) if len(searches) > 1 else 0
        for attack in searches if heat else ():
            self._go_on(attack, heat, victims)
        ahead = [self._ahead(victim, searches) for victim in victims]
        for attack in searches:
            self._go_on(attack, steps - heat * len(searches), [at for at in victims if ahead[at] is attack])

    def _go_on(self, attack: GradientMatching, steps: int, victims: Sequence[int]) -> None:
        """Let a search go on from where it is, for so many evaluations."""
        if victims:
            before = [self._found[at].get(attack.name) for at in victims]
            warm = [one for one in before if one is not None]
            seen = [self._observations[at] for at in victims]
            on = replace(attack, steps=steps)
            self.enter(on, on.invert(seen, self._knowledge, self._visible, warm=warm or None), victims)

    def _ahead(self, victim: int, searches: Sequence[GradientMatching]) -> GradientMatching:
        own = self._found[victim]
        return min(searches, key=lambda attack: own[attack.name].loss if attack.name in own else 0.0)

    def enter(self, attack: Attack, found: Sequence[Reconstruction], victims: Sequence[int] | None = None) -> None:
        """Measure what an attack has found of these victims, all by default; what it had before stays if that was better."""
        at = range(len(self._observations)) if victims is None else victims
        seen = [self._observations[victim] for victim in at]
        losses = misfit(seen, found, self._knowledge, self._visible)
        for victim, one, loss in zip(at, found, losses, strict=True):
            own = self._found[victim]
            if attack.name not in own or loss < own[attack.name].loss:
                own[attack.name] = replace(one, loss=loss)

    def results(self) -> list[list[Reconstruction]]:
        """Everything found of each victim."""
        return [list(own.values()) for own in self._found]


def _takes_updates_as_they_are(kind: type[Attack]) -> bool:
    needs = kind.needs
    return kind.reads_update and not (needs.defense_algorithm or needs.trained_images)


def _ready(attack: Attack, knowledge: Knowledge) -> bool:
    return not knowledge.threat_model.lacks(attack.needs) and attack.applies(knowledge)


def _fit(
    searches: Sequence[GradientMatching], observation: Observation, knowledge: Knowledge
) -> list[GradientMatching]:
    """Those that suit the network with the weights that were sent, and the batch; all, if none does."""
    problem = problem_of([observation], knowledge, [0.0], labels=torch.zeros((1, observation.batch_size)))
    kind = "smooth" if is_smooth(problem.model, problem.weights) else "bent"
    suited = [one for one in searches if one.suits in ("all", kind)] or list(searches)
    return [one for one in suited if one.one_image or observation.batch_size > 1] or suited
