"""What an experiment file may say. Every key, with its default, its range and its unit."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from fedveil.attacks import ATTACKS, MODEL_INVERSIONS, Attack, ModelInversion
from fedveil.attacks.base import attack_labels
from fedveil.attacks.model_inversion.audit import labels_of
from fedveil.attacks.scoring.summary import BASELINE_ATTACK
from fedveil.defense import DEFENSES, Defense, Stack
from fedveil.fl.central import CentralTraining
from fedveil.orchestrator.cluster.connection import LEAST_SHARE
from fedveil.orchestrator.config.options import build_named
from fedveil.orchestrator.config.section import Section
from fedveil.orchestrator.config.training import DataSection, FLSection, ModelSection, ReferencesSection
from fedveil.orchestrator.config.values import (
    Count,
    GpuShare,
    Images,
    Name,
    Named,
    Round,
    RunsDir,
    Seed,
    SeveralNamed,
    TrackingUri,
)

USUAL_ROUNDS: tuple[Round, ...] = (0, 1, "middle", "last")


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
        chunks: pieces into which the victims are cut; at least as many as workers keeps all of them busy, while few make the
            most of batched attacks. Each is attacked by itself.
        membership: at the end an attacker that holds all that a client trained on tells the client's images from others
            (`privacy/membership_auc`), for the first two audited clients.
        model_inversion: attacks on the finished classifier once it is released; names or ``{name: NAME, option: value}``,
            see ``fedveil list model_inversions``. They see no update. Their images are of the classes that
            ``data.private_classes`` leaves out, or half of the auxiliary ones; the other half is the judge's. They rebuild
            the ``victims``, and as many test images.
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
    chunks: Count = 2
    membership: bool = False
    model_inversion: list[Named] = Field(default=[])

    def build_attacks(self) -> list[Attack]:
        """Make the attacks, the baseline first."""
        others = [setting for setting in self.attacks if setting["name"] != BASELINE_ATTACK]
        return [build_named(ATTACKS, setting) for setting in ({"name": BASELINE_ATTACK}, *others)]

    def attack_labels(self) -> list[str]:
        """Return what the attacks are called in the results, the baseline first."""
        return attack_labels(self.build_attacks())

    def build_model_inversions(self) -> list[ModelInversion]:
        """Make the attacks on the released classifier."""
        return [build_named(MODEL_INVERSIONS, setting) for setting in self.model_inversion]

    def model_inversion_labels(self) -> list[str]:
        """Return what these are called in the results."""
        return labels_of(self.build_model_inversions())

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
        workers: worker slots; None for what the cluster has room for, shared among the trials that run at once, but no
            more than a round has pieces (``fl.client_chunks``). Results do not depend on it.
        cpus_per_worker: cores of each; Ray counts in ten-thousandths.
        gpus_per_worker: share of a GPU of each, 0 or as for the cores.
        placement: ``pack`` puts a trial's workers on as few nodes as have room, ``spread`` on as many as there are.
    """

    workers: Count | None = None
    cpus_per_worker: float = Field(default=1.0, ge=LEAST_SHARE, le=10_000)
    gpus_per_worker: GpuShare = Field(default=0.0, ge=0, le=10_000)
    placement: Literal["pack", "spread"] = "pack"


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
    samples: int = Field(default=1, ge=1, le=100_000)
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
        runs_dir: folder for results, checkpoints and what MLflow has not taken yet, or address of a copy of it
            (``s3://BUCKET/FOLDER``); None for the variable ``FEDVEIL_RUNS``, or else ``runs`` here.
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
    runs_dir: RunsDir | None = None
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
