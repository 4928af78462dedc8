"""What an experiment file may say. Every key, with its default, its range and its unit."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from fedveil.attacks import ATTACKS, Attack
from fedveil.attacks.base import attack_labels
from fedveil.attacks.scoring.summary import BASELINE_ATTACK
from fedveil.defense import DEFENSES, Defense, Stack
from fedveil.fl.central import CentralTraining
from fedveil.fl.models import ModelSpec
from fedveil.fl.optimizers import OPTIMIZERS, LocalOptimizer
from fedveil.fl.partition import PARTITIONS, Partition
from fedveil.fl.strategies import STRATEGIES, Strategy
from fedveil.orchestrator.cluster.connection import LEAST_SHARE
from fedveil.orchestrator.config.options import build_named
from fedveil.orchestrator.config.values import (
    MOST,
    Count,
    GpuShare,
    Images,
    Kinded,
    Name,
    Named,
    Round,
    Seed,
    SeveralNamed,
    TrackingUri,
)

USUAL_ROUNDS: tuple[Round, ...] = (0, 1, "middle", "last")


class Section(BaseModel):
    """A part of the file: unknown keys and values of the wrong type are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class DataSection(Section):
    """Which images, and who holds them.

    Attributes:
        name: see ``fedveil data list``; also ``npz:PATH`` and ``folder:PATH``.
        size: pixels per side; None for the source's default.
        limit: at most so many training images (and test images), for quick runs.
        pool: train, validation and test images are pooled and split anew, where the data set's own splits differ.
        public_fraction: share of train that server and clients train on together; it belongs to no client.
        auxiliary_fraction: share of train that belongs to the attacker and to the judge of reconstructions alone.
        partition: ``iid``, ``{kind: dirichlet, alpha: 0.5}`` or ``{kind: shards, classes_per_client: 2}``.
    """

    name: str = "mni152"
    size: int | None = Field(default=None, ge=8, le=512)
    limit: int | None = Field(default=None, ge=10, le=MOST)
    pool: bool = False
    public_fraction: float = Field(default=0.05, gt=0, lt=1)
    auxiliary_fraction: float = Field(default=0.2, gt=0, lt=1)
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
    width: Count | None = None

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
        optimizer: the clients', ``sgd``, ``adam`` or ``{name: sgd, momentum: 0.9}``; see ``fedveil list optimizers``. It
            begins anew in each round.
        learning_rate: of the clients' optimiser.
        learning_rate_decay: factor on it from one round to the next.
        augmentation: random views that clients train on, of ``flip`` (left and right), ``transpose`` (all eight symmetries)
            and ``shift`` (by up to 2 px at 28 px).
        replay_public: share of public images among those of a step; they come beside the client's own and pass no defence.
        strategy: ``fedavg`` or ``{name: fedprox, mu: 0.1}``; see `fl.strategies`.
        cohort: share of the clients that is drawn for each round.
        client_chunks: pieces into which a round's cohort is cut; at least as many as workers keeps all of them busy.
        start: from ``random`` weights, or from the classifier that the ``public`` images alone make, as for
            ``utility/public_accuracy``; audits of round 0 then attack that one.
    """

    clients: Count = 10
    rounds: Count = 20
    local_epochs: Count | None = None
    local_steps: Count | None = None
    batch_size: Count = 32
    optimizer: Named = Field(default={"name": "sgd"})
    learning_rate: float = Field(default=0.05, gt=0)
    learning_rate_decay: float = Field(default=1.0, gt=0, le=1)
    augmentation: list[str] = Field(default=[])
    replay_public: float = Field(default=0.0, ge=0, lt=1)
    strategy: Named = Field(default={"name": "fedavg"})
    cohort: float = Field(default=1.0, gt=0, le=1)
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


class AuditSection(Section):
    """Which updates are attacked, and how.

    Attributes:
        rounds: numbers, ``middle`` and ``last``; an audit at round r attacks what clients would send in round r.
            None for 0, 1, the middle and the last, as far as there are so many.
        victims: images that are attacked at each audited round.
        clients: of how many clients; None for all.
        batch_size: images behind one audited update.
        local_steps: the client's steps on that batch; 1 sends the gradient.
        observations: updates of each batch that an attacker holds, each with the client's noise drawn afresh: those of the
            audited round and of the rounds before it. Where there are fewer, the server sends the same weights again. At
            most ``fl.rounds`` times ``fl.local_epochs``, so often clients train on an image, or times ``fl.local_steps``.
        labels: ``known`` to the attacker, or ``recovered`` from the update.
        attacks: names, or ``{name: NAME, option: value}``, run in this order; the baseline, which sees no update, runs
            always. Of two with one name the second is called ``NAME_2``.
        balanced: victims are drawn evenly over the classes.
        gallery: images among which a victim has to be found; never fewer than the victims.
        membership: at the end an attacker that holds all that a client trained on tells the client's images from others
            (`privacy/membership_auc`), for the first two audited clients.
    """

    rounds: list[Round] | None = Field(default=None, min_length=1)
    victims: Count = 64
    clients: Count | None = None
    batch_size: Count = 1
    local_steps: Count = 1
    observations: Count = 1
    labels: Literal["known", "recovered"] = "known"
    attacks: list[Named] = Field(default=[{"name": "strongest"}, {"name": "adaptive"}])
    balanced: bool = True
    gallery: Count = 1000
    membership: bool = False

    def build_attacks(self) -> list[Attack]:
        """Make the attacks, the baseline first."""
        others = [setting for setting in self.attacks if setting["name"] != BASELINE_ATTACK]
        return [build_named(ATTACKS, setting) for setting in ({"name": BASELINE_ATTACK}, *others)]

    def attack_labels(self) -> list[str]:
        """Return what the attacks are called in the results, the baseline first."""
        return attack_labels(self.build_attacks())

    def round_numbers(self, rounds: int) -> list[int]:
        """Return the audited rounds, ascending, each once."""
        words = {"middle": rounds // 2, "last": rounds - 1}
        numbers = {words[r] if isinstance(r, str) else r for r in self.rounds or USUAL_ROUNDS}
        return sorted(number for number in numbers if number < rounds)


class TrackingSection(Section):
    """Where results are recorded.

    Attributes:
        uri: MLflow's tracking URI (a server's or a database's); None for ``MLFLOW_TRACKING_URI``, or else
            ``sqlite:///mlflow.db`` here.
        images: what may leave as pictures; None for ``grid`` with published data sets and ``none`` with your own.
    """

    uri: TrackingUri | None = None
    images: Images | None = None


class ResourcesSection(Section):
    """What one trial may use.

    Attributes:
        workers: worker slots.
        cpus_per_worker: cores of each; Ray counts in ten-thousandths.
        gpus_per_worker: share of a GPU of each, 0 or as for the cores.
    """

    workers: Count = 2
    cpus_per_worker: float = Field(default=1.0, ge=LEAST_SHARE, le=10_000)
    gpus_per_worker: GpuShare = Field(default=0.0, ge=0, le=10_000)


Objective = Literal["max", "min"]


class SearchSection(Section):
    """A sweep: fixed trials (``panel``) and a search over a space.

    Attributes:
        panel: overrides by dotted key, one trial each; controls belong here.
        space: dotted key to ``{grid: [...]}``, ``{choice: [...]}``, ``{uniform: [a, b]}``, ``{loguniform: [a, b]}`` or
            ``{int: [a, b]}``.
        samples: trials drawn from the space (times the grid's points, with the grid and random searchers).
        searcher: ``grid``, ``random`` or ``optuna``.
        objectives: metric name to ``max`` or ``min``; the first is the one that a scheduler with one objective uses.
        scheduler: ``none``, or ``asha`` to stop poor trials early by their learning curve.
        concurrent: trials at a time; None for as many as fit.
    """

    panel: list[dict[str, Any]] = Field(default=[])
    space: dict[str, dict[str, list[Any]]] = Field(default={})
    samples: Count = 1
    searcher: Literal["grid", "random", "optuna"] = "random"
    objectives: dict[str, Objective] = Field(
        default={"utility/val_accuracy": "max", "privacy/mse": "max"}, min_length=1
    )
    scheduler: Literal["none", "asha"] = "none"
    concurrent: Count | None = None


class Experiment(Section):
    """An experiment file: one trial, or a sweep if it has a ``search`` section.

    Attributes:
        experiment: its name, in MLflow and below ``runs/``.
        plugins: modules, or Python files (``./my_attack.py``), that register defences, attacks, models, data sets or
            strategies; they are imported before anything else in this file is read.
        seed: of all randomness.
        seeds: in the place of ``seed``: every trial is repeated with each of them; empty for one trial with ``seed``.
        data, model, fl, references, audit, tracking, resources, search: see there.
        defense: a name, ``{name: NAME, option: value}``, or a list of these, which are applied in their order.
    """

    experiment: Name
    plugins: list[str] = Field(default=[])
    seed: Seed = 0
    seeds: list[Seed] = Field(default=[])
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    fl: FLSection = FLSection()
    defense: SeveralNamed = Field(default=[{"name": "none"}])
    references: ReferencesSection = ReferencesSection()
    audit: AuditSection = AuditSection()
    tracking: TrackingSection = TrackingSection()
    resources: ResourcesSection = ResourcesSection()
    search: SearchSection | None = None

    @model_serializer(mode="wrap")
    def _one_of_seed_and_seeds(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = write(self)
        del written["seed" if self.seeds else "seeds"]
        return written

    def build_defense(self) -> Defense[Any]:
        """Make the defence; several compose in their order."""
        parts = tuple(build_named(DEFENSES, part) for part in self.defense)
        return parts[0] if len(parts) == 1 else Stack(parts=parts)

    def central_training(self) -> CentralTraining:
        """Return how a classifier is trained that does without the federation."""
        augmentation = self.references.augmentation
        if augmentation is None:
            augmentation = self.fl.augmentation or ["shift"]
        return CentralTraining(steps=self.references.steps, augmentation=tuple(augmentation))


SECTIONS = frozenset(
    name
    for name, field in Experiment.model_fields.items()
    if any(
        isinstance(kind, type) and issubclass(kind, Section) for kind in (field.annotation, *get_args(field.annotation))
    )
)
"""The keys of an experiment file that hold a section."""
