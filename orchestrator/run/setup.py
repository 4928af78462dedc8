"""The setup of a trial: from an experiment to images on clients, with every mistake found before Ray starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from fedveil.attacks.scoring import Gallery, small_note
from fedveil.attacks.scoring.victims import VictimBatch, draw_victims
from fedveil.fl.augmentation import augment
from fedveil.fl.data import ImageData, Images, load_data, split_train
from fedveil.fl.data.private_classes import with_classes
from fedveil.fl.data.splits import halved
from fedveil.fl.errors import FedveilError, SettingError, brief
from fedveil.fl.models import ModelSpec, build_model
from fedveil.fl.seeding import torch_stream
from fedveil.orchestrator.config import Experiment, check, with_overrides
from fedveil.orchestrator.config.explain import shown
from fedveil.orchestrator.config.space import corners
from fedveil.orchestrator.run.room import check_memory, weight_and_step
from fedveil.orchestrator.run.seeds import one_per_seed

JUDGED = 500
"""Private images on which the judge of classes is judged itself."""


@dataclass(frozen=True, eq=False)
class ReleaseImages:
    """Who holds which images where a finished classifier is attacked. Neither part has an image that it was trained on.

    Attributes:
        attacker: of the classes that are not private, or half of the auxiliary images.
        judged: of the private classes, for the judge alone: auxiliary images that this attacker does not hold.
    """

    attacker: Images
    judged: Images


@dataclass(frozen=True, eq=False)
class Setup:
    """Who holds which images. A pure function of the experiment, and the same for every defence.

    Attributes:
        data: as loaded; of `data.private_classes` alone where they are given.
        public: split off train; belongs to no client, and clients and server may learn from it.
        auxiliary: split off train; no client trains on it: belongs to the attacker and the judge of classes.
        validation: what settings are chosen by; the test images are for the final numbers alone. The data set's own
            validation images, or the auxiliary ones where it has none: no client trains on them, as on public ones.
        shards: the clients' private images, by client number.
        model: the classifier.
        victims: the victim batches of every audit.
        gallery: the images among which victims have to be found.
        untouched: a sample of private images that the judge's accuracy is measured on.
        release: for `audit.model_inversion`; None where nothing of it is asked.
    """

    data: ImageData
    public: Images
    auxiliary: Images
    validation: Images
    shards: tuple[Images, ...]
    model: ModelSpec
    victims: tuple[VictimBatch, ...]
    gallery: Gallery
    untouched: Images
    release: ReleaseImages | None = None


def make_setup(experiment: Experiment) -> Setup:
    """Load, split and deal the images, and draw the victims. A process keeps what it has loaded, see `load_data`.

    Raises:
        FedveilError: the data, the model, the augmentation or the audit do not fit each other.
    """
    settings, audit, seed = experiment.data, experiment.audit, experiment.seed
    with _named("data", "name"):
        data = load_data(
            settings.name,
            size=settings.size,
            limit=settings.limit,
            pool=settings.pool,
            seed=seed,
            fit=settings.fit,
        )
    others = None
    if settings.private_classes is not None:
        data, others = with_classes(data, settings.private_classes)
    if len(data.test) == 0:
        raise FedveilError(f"data.name: {brief(settings.name)} has no test images, so utility cannot be measured")
    if (note := small_note(data.train.shape)) is not None:
        data = replace(data, notes=(*data.notes, note))
    own_views = experiment.references.augmentation
    if own_views is not None and (experiment.references.measure or experiment.fl.start == "public"):
        with _named("references.augmentation"):
            augment(torch.zeros(1, *data.train.shape), own_views, torch.Generator())
    split = split_train(
        data.train,
        public_fraction=settings.public_fraction,
        auxiliary_fraction=settings.auxiliary_fraction,
        seed=seed,
    )
    clients, most = experiment.fl.clients, len(split.private)
    if clients > most:
        raise FedveilError(
            f"fl.clients: given {clients}; allowed: 1 to {most}, the images that are left to the clients"
        )
    with _named("data.partition, fl.clients"):
        parts = settings.build_partition().split(split.private.labels, clients, seed)
    shards = tuple(split.private.take(part) for part in parts)
    model = experiment.build_defense().classifier(experiment.model.spec(data.train.shape, len(data.classes)))
    with _named("model"):
        if weight_and_step(model, 1) is None:
            build_model(model)
    with _named("fl.augmentation"):
        augment(torch.zeros(1, *data.train.shape), experiment.fl.augmentation, torch.Generator())
    victims, gallery = draw_victims(
        shards,
        victims=audit.victims,
        batch_size=audit.batch_size,
        clients=audit.clients or experiment.fl.clients,
        gallery=audit.gallery,
        seed=seed,
        balanced=audit.balanced,
    )
    order = torch.randperm(len(split.private), generator=torch_stream(seed, "untouched"))
    return Setup(
        data=data,
        public=split.public,
        auxiliary=split.auxiliary,
        validation=data.val if len(data.val) else split.auxiliary,
        shards=shards,
        model=model,
        victims=victims,
        gallery=gallery,
        untouched=split.private.take(order[:JUDGED]),
        release=_release_images(split.auxiliary, others, seed) if audit.model_inversion else None,
    )


def _release_images(auxiliary: Images, others: Images | None, seed: int) -> ReleaseImages:
    """Who holds other classes has no use of auxiliary images, so that the judge may learn from all of them."""
    if others is not None:
        return ReleaseImages(others, auxiliary)
    return ReleaseImages(*halved(auxiliary, "audit.model_inversion (half of data.auxiliary_fraction)", seed))


@contextmanager
def _named(section: str, key: str = "") -> Iterator[None]:
    """Begin what is refused inside with the key of the file that it is about: ``section.key`` where it names none itself."""
    try:
        yield
    except SettingError as error:
        raise FedveilError(f"{section}.{error.key}: given {shown(error.value)}; {error.rule}") from error
    except FedveilError as error:
        own = str(error).startswith(f"{section}.")
        path = f"{section}.{key}" if key else section
        raise FedveilError(str(error) if own else f"{path}: {error}") from error


def check_setups(experiment: Experiment, raw: Mapping[str, Any], *, here: bool = True) -> Setup:
    """Make the setup of an experiment, of each of its seeds and of each variant that its search can make.

    So no trial fails for it later.

    Args:
        experiment: perhaps with a ``search`` section.
        raw: the mapping behind it.
        here: the workers are on this machine, which has to hold them.

    Returns:
        That of the experiment itself, under its first seed.

    Raises:
        FedveilError: as for `make_setup`, or the memory does not hold it; the line says which variant.
    """

    def checked(one: Experiment) -> Setup:
        setup = make_setup(one)
        check_memory(one, setup.model, shard=max(map(len, setup.shards)), here=here)
        return setup

    first, *others = one_per_seed(experiment)
    setup = checked(first)
    seen = {_settings(first)}
    for where, variant in [("seeds", other) for other in others] + list(_variants(experiment, raw)):
        for one in one_per_seed(variant):
            if _settings(one) in seen:
                continue
            seen.add(_settings(one))
            try:
                checked(one)
            except FedveilError as error:
                raise FedveilError(f"{where}: {error}") from error
    return setup


def _variants(experiment: Experiment, raw: Mapping[str, Any]) -> Sequence[tuple[str, Experiment]]:
    search = experiment.search
    if search is None:
        return []
    base = {key: value for key, value in raw.items() if key != "search"}
    varied = [(f"search.panel.{at}", overrides) for at, overrides in enumerate(search.panel)]
    varied += [("search.space", overrides) for overrides in corners(search.space)]
    return [(where, check(with_overrides(base, overrides))) for where, overrides in varied]


def _settings(experiment: Experiment) -> str:
    """What the setup and its memory depend on."""
    audit = experiment.audit
    model = experiment.build_defense().classifier(experiment.model.spec((1, 1, 1), 2))
    dealt = (experiment.data, model, experiment.fl.clients, experiment.fl.augmentation, experiment.seed)
    without = (experiment.references, experiment.fl.start)
    room = (experiment.fl.batch_size, audit.attacks)
    released = bool(audit.model_inversion)
    return repr(
        (
            *dealt,
            *without,
            *room,
            released,
            audit.victims,
            audit.batch_size,
            audit.clients,
            audit.gallery,
            audit.balanced,
        )
    )
