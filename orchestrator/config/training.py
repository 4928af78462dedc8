"""What is trained, on whose images, and how: the sections ``data``, ``model``, ``fl`` and ``references``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedveil.defense.checks import MOST
from fedveil.fl.models import ModelSpec
from fedveil.fl.optimizers import OPTIMIZERS, LocalOptimizer
from fedveil.fl.partition import PARTITIONS, Partition
from fedveil.fl.strategies import STRATEGIES, Strategy
from fedveil.orchestrator.config.options import build_named
from fedveil.orchestrator.config.section import Section
from fedveil.orchestrator.config.values import ClientShare, Count, Kinded, Named


class DataSection(Section):
    """Which images, and who holds them.

    Attributes:
        name: see ``fedveil data list``; also ``npz:PATH`` and ``folder:PATH``.
        size: pixels per side; None for the source's default.
        fit: how pictures of ``folder:`` and ``npz:`` become squares of that size: ``pad`` (the whole picture, on black),
            ``resize`` (the whole picture, drawn out) or ``crop`` (its centred square). None is ``pad`` there.
        limit: at most so many training images (and test images), for quick runs.
        pool: train, validation and test images are pooled and split anew, where the data set's own splits differ.
        public_fraction: share of train that server and clients train on together; it belongs to no client.
        auxiliary_fraction: share of train that belongs to the attacker and to the judge of reconstructions alone.
        private_classes: numbers of the classes that clients, public, validation and test images are of, at least two; they
            are counted anew from 0. The training images of all others are the attacker's (``audit.model_inversion``), and
            nobody else's; ``limit`` counts before. None for all classes: the attacker's images are like the clients'.
        partition: ``iid``, ``{kind: dirichlet, alpha: 0.5}`` or ``{kind: shards, classes_per_client: 2}``.
    """

    name: str = "mni152"
    size: int | None = Field(default=None, ge=8, le=512)
    fit: Literal["pad", "resize", "crop"] | None = None
    limit: int | None = Field(default=None, ge=10, le=MOST)
    pool: bool = False
    public_fraction: float = Field(default=0.05, gt=0, lt=1)
    auxiliary_fraction: float = Field(default=0.2, gt=0, lt=1)
    private_classes: list[int] | None = Field(default=None, min_length=2)
    partition: Kinded = Field(default={"kind": "iid"})

    def build_partition(self) -> Partition:
        """Make the partition rule."""
        return build_named(PARTITIONS, self.partition, key="kind")


class ModelSection(Section):
    """Which classifier the federation trains.

    Attributes:
        name: see ``fedveil list models``.
        norm: ``none``, ``group`` or ``batch``; None for the model's own default.
        width: channels of the first layer; None for the model's own default.
    """

    name: str = "convnet"
    norm: Literal["none", "group", "batch"] | None = None
    width: int | None = Field(default=None, ge=1, le=100_000)

    def spec(self, image_shape: tuple[int, int, int], classes: int) -> ModelSpec:
        """Return the classifier's specification for these images."""
        return ModelSpec(self.name, image_shape, classes, self.norm, self.width)


class FLSection(Section):
    """The federation.

    Attributes:
        clients: number of clients.
        rounds: number of rounds.
        local_epochs: passes over its shard per client and round; None for 1, or where ``local_steps`` counts.
        local_steps: steps per client and round instead, of batches from one pass after another.
        batch_size: images of the client per step.
        sampling: ``shuffled``: passes over the shard, cut into batches; ``poisson``: each image is in a step by chance, with
            ``batch_size`` of them on average, as ``dp_sgd`` has to have it.
        optimizer: the clients', ``sgd``, ``adam`` or ``{name: sgd, momentum: 0.9}``; see ``fedveil list optimizers``. It
            begins anew in each round.
        learning_rate: of the clients' optimiser.
        learning_rate_decay: factor on it from one round to the next.
        augmentation: random views that clients train on, of ``flip`` (left and right), ``transpose`` (all eight symmetries)
            and ``shift`` (by up to 2 px at 28 px).
        replay_public: share of public images among those of a step; they come beside the client's own and pass no defence.
        strategy: ``fedavg`` or ``{name: fedprox, mu: 0.1}``; see `fl.strategies`.
        cohort: share of the clients that is drawn for each round.
        quorum: share of a round's clients whose updates have to be fit to be trusted; below it the trial fails. The round
            goes on without the others: what is not finite, not of the model's names, shapes and types, or too long.
        max_update_norm: longest update that is trusted, as the Euclidean norm of all that a client sends; None for
            1e18, at which sums overflow.
        client_chunks: pieces into which a round's cohort is cut; at least as many as workers keeps all of them busy.
        start: from ``random`` weights, or from the classifier that the ``public`` images alone make, as for
            ``utility/public_accuracy``; audits of round 0 then attack that one.
    """

    clients: Count = 10
    rounds: Count = 20
    local_epochs: Count | None = None
    local_steps: Count | None = None
    batch_size: Count = 32
    sampling: Literal["shuffled", "poisson"] = "shuffled"
    optimizer: Named = Field(default={"name": "sgd"})
    learning_rate: float = Field(default=0.05, gt=0)
    learning_rate_decay: float = Field(default=1.0, gt=0, le=1)
    augmentation: list[str] = Field(default=[])
    replay_public: float = Field(default=0.0, ge=0, lt=1)
    strategy: Named = Field(default={"name": "fedavg"})
    cohort: ClientShare = 1.0
    quorum: ClientShare = 0.5
    max_update_norm: float | None = Field(default=None, gt=0)
    client_chunks: Count = 16
    start: Literal["random", "public"] = "random"

    def build_strategy(self) -> Strategy:
        """Make the aggregation rule."""
        return build_named(STRATEGIES, self.strategy)

    def build_optimizer(self) -> LocalOptimizer:
        """Make the clients' optimiser."""
        return build_named(OPTIMIZERS, self.optimizer)

    @property
    def epochs(self) -> int | None:
        """A client's passes over its shard in a round; None where steps count."""
        return 1 if self.local_epochs is None and self.local_steps is None else self.local_epochs

    @property
    def cohort_size(self) -> int:
        """Clients per round, at least one."""
        return max(1, round(self.cohort * self.clients))

    @property
    def pieces(self) -> int:
        """Pieces into which a round is cut: no more workers have something to do in it."""
        return min(self.client_chunks, self.cohort_size)


class ReferencesSection(Section):
    """What federating has to beat: classifiers that do without, trained as well as can be; see `fedveil.fl.central`.

    Attributes:
        measure: the public images alone, and clients' own images with the public ones, stand beside every trial. Trained
            once for each data set, seed, split and model, which takes minutes.
        clients: for at most so many clients, drawn by seed; their scores are averaged.
        steps: at most so many of 64 images. Trainings end before if the error on held-out images is flat.
        augmentation: random views of the images, as in `fedveil.fl.augmentation`: those that keep the classes. None for
            ``fl.augmentation``, or shifts where clients use none.
    """

    measure: bool = True
    clients: Count = 8
    steps: Count = 2000
    augmentation: list[str] | None = None
