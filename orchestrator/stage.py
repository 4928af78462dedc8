"""Setting the stage: from an experiment to images on clients, with every mistake found before Ray starts."""

from __future__ import annotations

from dataclasses import dataclass

from attacks.audit import Target, choose_targets
from attacks.scoring import Gallery
from fl.data import ImageData, Images, carve_public, load_data
from fl.errors import FedveilError
from fl.models import ModelSpec, build_model
from orchestrator.config import Experiment


@dataclass(frozen=True)
class Stage:
    """Who holds which images. A pure function of the experiment, and the same for every defence.

    Attributes:
        data: as loaded.
        public: carved off train; belongs to no client.
        shards: the clients' private images, by client number.
        model: the classifier.
        targets: the victim batches of every audit.
        gallery: the images among which victims have to be found.
    """

    data: ImageData
    public: Images
    shards: tuple[Images, ...]
    model: ModelSpec
    targets: tuple[Target, ...]
    gallery: Gallery


def set_stage(experiment: Experiment) -> Stage:
    """Load, carve and deal the images, and choose the victims.

    Raises:
        FedveilError: the data, the model or the audit do not fit each other.
    """
    settings, audit = experiment.data, experiment.audit
    data = load_data(settings.name, size=settings.size, limit=settings.limit, seed=experiment.seed)
    if len(data.test) == 0:
        raise FedveilError(f"data {settings.name!r} has no test images, so utility cannot be measured")
    public, private = carve_public(data.train, settings.public_fraction, experiment.seed)
    parts = settings.build_partition().split(private.labels, experiment.fl.clients, experiment.seed)
    shards = tuple(private.take(part) for part in parts)
    model = experiment.model.spec(data.train.shape, len(data.classes))
    build_model(model)
    targets, gallery = choose_targets(
        shards,
        victims=audit.victims,
        batch_size=audit.batch_size,
        clients=audit.clients or experiment.fl.clients,
        gallery=audit.gallery,
        seed=experiment.seed,
    )
    return Stage(data, public, shards, model, targets, gallery)
