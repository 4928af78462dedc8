"""Updates that the attacker makes itself: its auxiliary images, the client's training, the defence as it knows it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fedveil.attacks.base import Knowledge, Observation
from fedveil.attacks.engine.objective import Problem
from fedveil.attacks.engine.unrolled import replayed
from fedveil.attacks.matching.attack import target_gradient
from fedveil.attacks.target.model import trainable
from fedveil.attacks.target.problem import Tensors
from fedveil.defense.base import Surrogate
from fedveil.defense.devices import on_device
from fedveil.fl.messages import UpdateKind


@dataclass(frozen=True, eq=False)
class OwnClients:
    """Clients that the attacker plays, many at once.

    What they send is what `fedveil.fl.training.local_update` makes of the same images and noise, vectorised.

    Attributes:
        like: an observation, for weights, batch size and the protocol.
        surrogate: the defence as the attacker knows it.
        knowledge: of the attacker.
    """

    like: Observation
    surrogate: Surrogate
    knowledge: Knowledge

    def send(self, x: Tensor, y: Tensor, stream: torch.Generator) -> Tensors:
        """Return the mean directions that the server would see, (V, ...) by parameter name, on the attacker's device.

        Of plain SGD they are mean gradients.

        Args:
            x: (V, B, C, H, W) originals.
            y: (V, B) labels.
            stream: of the defence's noise.
        """
        update, device = self.like.update, self.knowledge.device
        x, y = x.to(device), y.to(device)
        model = replace(
            self.knowledge.model,
            module=on_device(self.knowledge.model.module, device),
            defended=self.surrogate.loss,
        )
        weights = {name: weight.to(device) for name, weight in model.known(self.like.weights).items()}
        problem = Problem(
            model=model, weights=weights, target={name: weights[name] for name in update.tensors}, labels=y
        )
        total: Tensors = {}
        rates = torch.full((len(x),), update.learning_rate, device=device)
        turn = update.optimizer.begin()
        for _ in range(update.local_steps):
            images, labels = self._trained_on(problem, x, y, stream)
            gradient = replayed(replace(problem, labels=labels), images, steps=1, rates=rates)
            found = turn(list(gradient.values()), [problem.weights[n] for n in gradient])
            step = dict(zip(gradient, found, strict=True))
            total = {n: total[n] + d if total else d for n, d in step.items()}
            moved = {n: problem.weights[n] - update.learning_rate * d for n, d in step.items()}
            if not problem.own_weights:
                weights = {n: w.expand(len(x), *w.shape) for n, w in weights.items()}
            problem = replace(problem, weights={**weights, **moved}, own_weights=True)
        return self._defended({n: t / update.local_steps for n, t in total.items()}, stream)

    def _clients(self, problem: Problem, x: Tensor, y: Tensor) -> Iterator[tuple[nn.Module, tuple[Tensor, Tensor]]]:
        """Each client's model as it is before the step, and its batch."""
        module = trainable(problem.model.module, {} if problem.own_weights else problem.weights)
        for at, own in enumerate(zip(x, y, strict=True)):
            if problem.own_weights:
                module.load_state_dict({n: w[at] for n, w in problem.weights.items()}, strict=False)
            yield module, own

    def _trained_on(self, problem: Problem, x: Tensor, y: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """What clients train on: images (V, M, C, H, W) and labels (V, M), or shares of the classes (V, M, K)."""
        flat, labels = x.flatten(0, 1), y.flatten()
        if self.surrogate.batch is not None:
            made = [self.surrogate.batch(module, *own, stream) for module, own in self._clients(problem, x, y)]
            return torch.stack([images for images, _ in made]), torch.stack([shares for _, shares in made])
        if self.surrogate.data is None:
            return x, y
        return self.surrogate.data(flat, labels, stream).view(x.shape), y

    def _defended(self, gradients: Tensors, stream: torch.Generator) -> Tensors:
        """What is left of (V, ...) mean directions when the defence has seen the updates that they make."""
        if self.surrogate.update is None:
            return gradients
        update = self.like.update
        size = 1.0 if update.kind is UpdateKind.GRADIENT else 1 / update.gradient_scale
        count = len(next(iter(gradients.values())))
        sent = []
        for at in range(count):
            own = replace(update, tensors={n: size * g[at].cpu() for n, g in gradients.items()})
            sent.append(target_gradient(self.surrogate.update(own, stream)))
        return {n: torch.stack([one[n] for one in sent]).to(self.knowledge.device) for n in gradients}
