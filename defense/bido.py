"""BiDO: hidden features that tell little of the image and much of the label (Peng et al. 2022, arXiv 2206.05483)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fedveil.defense.base import DEFENSES, Defense, DefenseContext, PreparedDefense, Stateless, Surrogate, TrainedOn
from fedveil.defense.checks import above_zero, at_least, whole
from fedveil.defense.dependence import coco, gaussian_kernel, linear_kernel, normalised_hsic
from fedveil.defense.hidden import features_of, untouched
from fedveil.fl.data.images import Images
from fedveil.fl.errors import SettingError
from fedveil.fl.models import ModelSpec, build_model
from fedveil.fl.seeding import derive_seed, torch_stream

Measure = Literal["hsic", "coco"]
_MEASURES: Mapping[Measure, Callable[[Tensor, Tensor], Tensor]] = {"hsic": normalised_hsic, "coco": coco}
WEIGHTS: Mapping[Measure, tuple[float, float]] = {"hsic": (6.3, 4.0), "coco": (0.1, 5.0)}
"""Of images and of labels: what the authors publish for five classes of CIFAR-10, HSIC (0.1, 1) with batches of 64 in shares
of 63 and 4."""
SHUFFLES = 8
"""Orders over which the floor is averaged."""


@DEFENSES.register("bido")
@dataclass(frozen=True, kw_only=True)
class BiDO(Defense[None]):
    """Train with a penalty: hidden features are to depend little on the images, and much on the labels.

    loss = CE + strength * sum over layers j of (input_weight * d(X, Z_j) - label_weight * d(Z_j, Y))

    with X the images, Z_j the features of a hidden layer, Y the labels of one batch, and d one of two measures of
    dependence (`fedveil.defense.dependence`). It was made against model inversion of a finished classifier.

    The normalised HSIC of features and labels cannot exceed the number of classes less one, and that of images and
    features the number of images less one: weights that suit 1,000 classes are off by an order of magnitude for two. So it
    counts as a share of those largest values here, and weights hold for any number of classes and images. The constrained
    covariance has no such bound, and counts as it is.

    A penalty that reads high need not mean dependence: vectors of high dimension always look dependent in a small batch.
    What independent ones read, on public images and first weights, is in the results beside what the true pairs read
    (``defense/inputs_floor``, ``defense/inputs_dependence``, and so for labels); only the difference says something.

    The hidden features come from a second pass of the same batch through the same weights, since the first is over when
    the loss is known. Batch statistics are those of the first pass and running ones count it once; dropout is off in it. It
    costs a forward and a backward pass through the body. One image has nothing to depend on: there the loss stays.

    Attributes:
        measure: ``hsic``, the normalised Hilbert-Schmidt independence criterion, or ``coco``, the constrained covariance.
        strength: by which both weights are multiplied, at least 0.
        input_weight: of the images' term, at least 0; null takes the authors' for five classes of CIFAR-10, 6.3 (hsic, of
            shares) or 0.1 (coco).
        label_weight: of the labels' term, at least 0; null takes 4 (hsic, of shares) or 5 (coco).
        layers: names of the model's modules whose results are Z_j; null takes the last one before the image is halved, each
            time.
        kernel_width: sigma of the Gaussian kernels of X and Z, above 0, per dimension and in units of pixels or features.
            Images are in [0, 1] here; the authors normalise them.
        floor_batch: public images for the floor, at least 2.
    """

    measure: Measure = "hsic"
    strength: float = 1.0
    input_weight: float | None = None
    label_weight: float | None = None
    layers: tuple[str, ...] | None = None
    kernel_width: float = 5.0
    floor_batch: int = 64

    def __post_init__(self) -> None:
        if self.measure not in _MEASURES:
            raise SettingError("bido", "measure", repr(self.measure), f"allowed: {', '.join(_MEASURES)}")
        at_least("bido", strength=(self.strength, 0))
        for key, weight in (("input_weight", self.input_weight), ("label_weight", self.label_weight)):
            if weight is not None:
                at_least("bido", **{key: (weight, 0)})
        above_zero("bido", kernel_width=self.kernel_width)
        whole("bido", floor_batch=(self.floor_batch, 2))

    @property
    def hooks(self) -> frozenset[str]:
        """See `Defense.hooks`."""
        return frozenset({"loss"})

    @property
    def trained_on(self) -> TrainedOn:
        """Nothing is learnt before training."""
        return TrainedOn.NOTHING

    def prepare(self, private: Images, context: DefenseContext, public: None, *, client: int) -> PreparedDefense:
        """Put it to work, with the public images on which its floor is measured."""
        stream = torch_stream(context.seed, "bido", "floor")
        few = torch.randperm(len(context.public), generator=stream)[: self.floor_batch]
        return PreparedBiDO(self, context.public.take(few), context.model, context.seed)

    def loss(self, loss: Tensor, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        """See `fedveil.fl.hooks.ClientHooks.loss`; ``y`` may be shares of the classes (n, k), too.

        Raises:
            FedveilError: the model lacks one of the layers.
        """
        if len(x) < 2:
            return loss
        with untouched(model):
            hidden = features_of(model, x, self.layers or ())
        inputs, labels = self.weights
        to_inputs, to_labels = self.dependences(x, hidden, y, logits.shape[1])
        penalty = inputs * sum(to_inputs) - labels * sum(to_labels)
        return loss + self.strength * torch.as_tensor(penalty).to(loss)

    @property
    def weights(self) -> tuple[float, float]:
        """Of the images' and of the labels' term."""
        inputs, labels = WEIGHTS[self.measure]
        return (
            inputs if self.input_weight is None else self.input_weight,
            labels if self.label_weight is None else self.label_weight,
        )

    def dependences(
        self, x: Tensor, hidden: Sequence[Tensor], y: Tensor, classes: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return d(X, Z_j) and d(Z_j, Y) of each layer, as they count in the loss.

        Args:
            x: (n, C, H, W), at least two.
            hidden: (n, D) of each layer.
            y: (n,) labels or (n, classes) shares.
            classes: so many there are.
        """
        shares = y if y.is_floating_point() else (y[:, None] == torch.arange(classes, device=y.device))
        images, labels = gaussian_kernel(x.flatten(1), self.kernel_width), linear_kernel(shares)
        features = [gaussian_kernel(one, self.kernel_width) for one in hidden]
        measure = _MEASURES[self.measure]
        most = (len(x) - 1, classes - 1) if self.measure == "hsic" else (1, 1)
        return [measure(images, one) / most[0] for one in features], [
            measure(one, labels) / most[1] for one in features
        ]

    def surrogate(self) -> Surrogate:
        """The loss itself: the attacker looks for the images whose gradient under the penalty is the observed one."""
        return Surrogate(loss=self.loss)


class PreparedBiDO(Stateless):
    """BiDO at work.

    Args:
        settings: the defence.
        public: images for the floor.
        model: the classifier.
        seed: of its first weights.
    """

    def __init__(self, settings: BiDO, public: Images, model: ModelSpec, seed: int) -> None:
        super().__init__(settings)
        self._bido, self._public, self._model, self._seed = settings, public, model, seed

    @torch.no_grad()
    def diagnostics(self) -> dict[str, float]:
        """What the measure reads of public images at first weights, mean over layers, in the units of the loss.

        ``inputs_dependence`` and ``labels_dependence`` of the true pairs, ``inputs_floor`` and ``labels_floor`` of pairs
        whose order was drawn at random, hence independent, mean of `SHUFFLES`. Empty with fewer than two images.
        """
        if len(self._public) < 2:
            return {}
        x, y = self._public.floats(), self._public.labels
        model = build_model(self._model, self._seed)
        with untouched(model):
            hidden = features_of(model, x, self._bido.layers or ())
        found = {"dependence": self._means(x, hidden, y)}
        stream = torch_stream(derive_seed(self._seed, "bido"), "shuffles")
        orders = [torch.randperm(len(x), generator=stream) for _ in range(SHUFFLES)]
        # One order for the features: neither images nor labels are theirs then.
        shuffled = [self._means(x, [one[order] for one in hidden], y) for order in orders]
        found["floor"] = torch.stack(shuffled).mean(0)
        return {
            f"{what}_{name}": float(value)
            for name, values in found.items()
            for what, value in zip(("inputs", "labels"), values, strict=True)
        }

    def _means(self, x: Tensor, hidden: Sequence[Tensor], y: Tensor) -> Tensor:
        both = self._bido.dependences(x, hidden, y, self._model.classes)
        return torch.stack([torch.stack(each).mean() for each in both])
