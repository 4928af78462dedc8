from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch

from fedveil.attacks import Observation
from fedveil.attacks.target.model import TargetModel, target_model
from fedveil.fl.data.images import Images
from fedveil.fl.hooks import ClientHooks, NoHooks
from fedveil.fl.messages import UpdateKind
from fedveil.fl.models import ModelSpec, build_model, init_model
from fedveil.fl.optimizers import PLAIN_SGD, LocalOptimizer
from fedveil.fl.seeding import torch_stream
from fedveil.fl.training import LocalTraining, local_update

Observe = Callable[..., Observation]
TargetOf = Callable[[ModelSpec], TargetModel]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def target_of() -> TargetOf:
    """A classifier of this package as an attack needs it."""
    return lambda spec: target_model(build_model(spec), image_shape=spec.image_shape, classes=spec.classes)


@pytest.fixture(scope="session")
def observe() -> Observe:
    """What a server sees of a client that trains on all the images given, and the weights that it had sent.

    All clients were sent the same, unless each has ``own_weights``: a copy.
    """
    sent = cache(lambda spec: init_model(spec, 0))

    def make(
        images: Images,
        spec: ModelSpec,
        *,
        number: int = 0,
        client: int = 0,
        hooks: ClientHooks | None = None,
        steps: int = 1,
        learning_rate: float = 0.05,
        labels: bool = True,
        own_weights: bool = False,
        seed: int = 0,
        optimizer: LocalOptimizer = PLAIN_SGD,
    ) -> Observation:
        training = LocalTraining(
            kind=UpdateKind.GRADIENT if steps == 1 else UpdateKind.DELTA,
            epochs=steps,
            batch_size=len(images),
            learning_rate=learning_rate,
            optimizer=optimizer,
        )
        weights = init_model(spec, 0) if own_weights else sent(spec)
        stream = torch_stream(seed, "observed", number)
        result = local_update(build_model(spec), weights, images, hooks or NoHooks(), training, stream)
        return Observation(
            number, client, result.update, weights, len(images), labels=images.labels if labels else None
        )

    return make
