"""Setting the setup: from an experiment to images on clients, with every mistake found before Ray starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedveil.attacks.audit import Target, choose_targets
from fedveil.attacks.scoring import Gallery
from fedveil.fl.data import ImageData, Images, load_data, split_public
from fedveil.fl.errors import FedveilError
from fedveil.fl.models import ModelSpec, build_model
from fedveil.orchestrator.config import Experiment, check, with_overrides
from fedveil.orchestrator.config.space import corners

SMALLEST = 11
"""Pixels a side that SSIM needs."""


@dataclass(frozen=True)
class Setup:
    """Who holds which images. A pure function of the experiment, and the same for every defence.

    Attributes:
        data: as loaded.
        public: carved off train; belongs to no client.
        validation: what settings are chosen by; the test images are for the final numbers alone. The data set's own
            validation images, or the public ones where it has none.
        shards: the clients' private images, by client number.
        model: the classifier.
        targets: the victim batches of every audit.
        gallery: the images among which victims have to be found.
    """

    data: ImageData
    public: Images
    validation: Images
    shards: tuple[Images, ...]
    model: ModelSpec
    targets: tuple[Target, ...]
    gallery: Gallery


def check_setups(experiment: Experiment, raw: Mapping[str, Any]) -> None:
    """Set the setup of a sweep's file and of each variant that its search can make, so that no trial fails for it later.

    Args:
        experiment: with a ``search`` section.
        raw: the mapping behind it.

    Raises:
        FedveilError: as for `make_setup`; the line says which variant.
    """
    make_setup(experiment)
    seen = {_settings(experiment)}
    search = experiment.search
    if search is None:
        return
    base = {key: value for key, value in raw.items() if key != "search"}
    variants = [(f"search.panel.{at}", overrides) for at, overrides in enumerate(search.panel)]
    variants += [("search.space", overrides) for overrides in corners(search.space)]
    for where, overrides in variants:
        variant = check(with_overrides(base, overrides))
        if _settings(variant) in seen:
            continue
        seen.add(_settings(variant))
        try:
            make_setup(variant)
        except FedveilError as error:
            raise FedveilError(f"{where}: {error}") from error


def _settings(experiment: Experiment) -> str:
    """What the setup depends on."""
    audit = experiment.audit
    dealt = (experiment.data, experiment.model, experiment.fl.clients, experiment.seed)
    return repr((*dealt, audit.victims, audit.batch_size, audit.clients, audit.gallery))


def make_setup(experiment: Experiment) -> Setup:
    """Load, carve and deal the images, and choose the victims.

    Raises:
        FedveilError: the data, the model or the audit do not fit each other.
    """
    settings, audit = experiment.data, experiment.audit
    data = load_data(settings.name, size=settings.size, limit=settings.limit, seed=experiment.seed)
    if len(data.test) == 0:
        raise FedveilError(f"data {settings.name!r} has no test images, so utility cannot be measured")
    sides = data.train.shape[1:]
    if min(sides) < SMALLEST:
        raise FedveilError(
            f"data {settings.name!r}: images of {sides[0]}x{sides[1]} px; at least {SMALLEST}x{SMALLEST} are needed to score"
            " reconstructions (SSIM's window)"
        )
    public, private = split_public(data.train, settings.public_fraction, experiment.seed)
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
    validation = data.val if len(data.val) else public
    return Setup(data, public, validation, shards, model, targets, gallery)
