"""Analytic recovery: where the first layer is linear, its gradient is an outer product of errors and pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fedveil.attacks.analytic.disentangle import lone_inputs, single_input, unmixed_inputs
from fedveil.attacks.analytic.first_layer import FirstLayer, find_first_layer
from fedveil.attacks.base import ATTACKS, Attack, Earlier, Knowledge, Observation
from fedveil.attacks.labels import labels_of
from fedveil.attacks.labels.pairing import paired
from fedveil.attacks.matching.yardstick import misfit
from fedveil.defense.checks import whole
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import Reconstruction
from fedveil.fl.seeding import torch_stream

FITS = 1e-6
"""Cosine distance below which what was found explains the update, and nothing else is tried."""
OUTSIDE = 1e-2
"""By how much a pixel may leave [0, 1], and the row still show a single image."""
CANDIDATES = 2
"""So many candidate images are tried for each of the batch."""
LARGEST = 24
"""Images that are told apart by their sparse errors; the search grows with the cube of their number."""


@ATTACKS.register("analytic")
@dataclass(frozen=True, kw_only=True)
class Analytic(Attack):
    """Solve for the images that entered a first linear layer, without optimising anything.

    One image is the ratio of the gradients of weight and bias (Phong et al. 2017), exact for any number of
    local steps. A batch behind ReLUs is told apart by its sparse errors (SPEAR, Dimitrov et al. 2024, arXiv 2403.03945).
    Where that fails, units that a single image has woken show that image (Fowl et al. 2022, Boenisch et al. 2021, without
    their change of the model), and the batch is put together of those that explain the update best when the client's steps
    are replayed on them. It applies to no other model.

    >>> import torch, fedveil as fv
    >>> x, y = torch.rand(2, 1, 16, 16), torch.tensor([1, 0])
    >>> model = fv.build_model("mlp", image_shape=(1, 16, 16), classes=2)
    >>> update, trained = fv.client_update(model, x, y)
    >>> report = fv.audit(model, update, images=x, labels=y, attacks=[fv.Analytic()])
    >>> report.worst("mse") < 1e-5
    True

    Attributes:
        starts: of the search for sparse errors in batches, at most; 512 are tried together.
    """

    name: ClassVar[str] = "analytic"
    explains_update: ClassVar[bool] = True
    starts: int = 2048

    def __post_init__(self) -> None:
        whole(self.name, starts=(self.starts, 1))

    def applies(self, knowledge: Knowledge) -> bool:
        """See `Attack.applies`."""
        try:
            find_first_layer(knowledge.model)
        except FedveilError:
            return False
        return True

    def run(self, observations: Sequence[Observation], knowledge: Knowledge, earlier: Earlier) -> list[Reconstruction]:
        """See `Attack.run`.

        Raises:
            FedveilError: the model's first layer is not linear in all pixels, or the update lacks it.
        """
        layer = find_first_layer(knowledge.model)
        return [self._solve(observation, layer, knowledge) for observation in observations]

    def _solve(self, observation: Observation, layer: FirstLayer, knowledge: Knowledge) -> Reconstruction:
        weight, bias = (_rows(observation, name) for name in (layer.weight, layer.bias))
        size, shape = observation.batch_size, knowledge.model.image_shape

        def images(inputs: Tensor) -> Tensor:
            return layer.pixels(inputs).nan_to_num(0.5).clamp(0, 1).float().view(-1, *shape)

        labels = labels_of(observation, knowledge)
        mean = images(single_input(weight, bias)[None])
        if size == 1:
            return best_of([mean], labels, observation, knowledge)
        found = [best_of([mean.repeat(size, 1, 1, 1)], labels, observation, knowledge)]
        if size <= LARGEST:
            stream = torch_stream(knowledge.seed, "analytic", observation.number)
            for inputs in unmixed_inputs(weight, bias, size, starts=self.starts, stream=stream):
                found.append(best_of([images(inputs)], labels, observation, knowledge))
                if found[-1].loss < FITS:
                    return found[-1]
        batch = mean.repeat(size, 1, 1, 1)
        single = list(images(_candidates(weight, bias, layer, CANDIDATES * size)))
        for place in range(min(size, len(single))):
            tried = [torch.cat([batch[:place], one[None], batch[place + 1 :]]) for one in single]
            found.append(best_of(tried, labels, observation, knowledge))
            batch = found[-1].images
            single = [one for one in single if not torch.equal(one, batch[place])]
        return min(found, key=lambda one: one.loss)


def best_of(
    batches: Sequence[Tensor], labels: Tensor, observation: Observation, knowledge: Knowledge
) -> Reconstruction:
    """Return the one of several (B, C, H, W) batches that explains the update best, each with its likeliest labels."""
    found = [Reconstruction(batch, paired(batch, labels, observation, knowledge), 0.0) for batch in batches]
    losses = misfit([observation] * len(found), found, knowledge)
    best = min(range(len(found)), key=losses.__getitem__)
    return replace(found[best], loss=losses[best])


def _rows(observation: Observation, name: str) -> Tensor:
    """The gradient (m, ...) of a parameter; repeated observations of the same images add their rows."""
    found = []
    for seen in observation.series:
        tensor = seen.update.tensors.get(name)
        if tensor is None:
            raise FedveilError(f"analytic: the update lacks {name}, which shows the images: was it frozen?")
        found.append(seen.update.gradient_scale * tensor.double().cpu())
    return torch.cat(found)


def _candidates(weight: Tensor, bias: Tensor, layer: FirstLayer, most: int) -> Tensor:
    """Return (n, d) inputs that single rows show, those that most rows agree on first."""
    ratios = weight / bias[:, None]
    shown = layer.pixels(ratios)
    # A mixture of images mostly leaves [0, 1]: the errors of a unit that is awake for several differ in sign.
    inside = ((shown > -OUTSIDE) & (shown < 1 + OUTSIDE)).all(dim=1).nonzero().flatten()
    groups = [inside[group] for group in lone_inputs(ratios[inside], most)]
    if not groups:
        return ratios[:0]
    return torch.stack([single_input(weight[group], bias[group]) for group in groups])
