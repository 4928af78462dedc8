"""Not federating, as a row beside every defence: the public images alone, and a client's own images with the public ones.

Both are trained as well as can be (`fedveil.fl.central`), once for each data set, seed, split and model: the trials of a
sweep share them through the disk cache. A protocol in which one of them wins is no test of a defence.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import torch

from fedveil.fl.cache import State, cached, fingerprint
from fedveil.fl.central import CentralTraining, train_centrally
from fedveil.fl.data import Images
from fedveil.fl.executor import Executor, Handle, Slot
from fedveil.fl.hooks import NoHooks
from fedveil.fl.metrics import accuracy, macro_auc
from fedveil.fl.models import ModelSpec
from fedveil.fl.progress import doing
from fedveil.fl.rounds import Federation, Utility
from fedveil.fl.seeding import derive_seed, torch_stream
from fedveil.fl.training import predict
from fedveil.orchestrator.config import Experiment
from fedveil.orchestrator.run.setup import Setup


def public_weights(experiment: Experiment, setup: Setup, executor: Executor, *, cache: Path | None) -> State:
    """Return the weights of the classifier that the public images alone make, on the CPU.

    Args:
        experiment: says how it is trained.
        setup: its images.
        executor: where to train.
        cache: folder where the weights are kept.
    """
    shared = (setup.public, setup.model, experiment.central_training(), experiment.seed, cache)
    return executor.map(_trained, [None], shared=shared)[0]


def measure_references(
    experiment: Experiment, setup: Setup, federation: Federation, executor: Executor, *, cache: Path | None
) -> dict[str, float]:
    """Return ``utility/public_*`` and ``utility/local_*`` on the untouched test images; nothing where that is turned off.

    Args:
        experiment: says how they are trained, and for how many clients at most.
        setup: its images.
        federation: of the clients.
        executor: where to train; a client is a task.
        cache: folder where the scores are kept.
    """
    references = experiment.references
    if not references.measure:
        return {}
    numbers = drawn_clients(len(federation.clients), references.clients, experiment.seed)
    shards: list[Handle[Images] | None] = [None, *(federation.clients[number].shard for number in numbers)]
    training = experiment.central_training()
    shared = (setup.public, setup.data.test, setup.model, training, experiment.seed, cache)
    public, *local = executor.map(_score, shards, shared=shared)
    return {
        "utility/public_accuracy": public.accuracy,
        "utility/public_auc": public.auc,
        "utility/local_accuracy": fmean(one.accuracy for one in local),
        "utility/local_auc": fmean(one.auc for one in local),
    }


def drawn_clients(clients: int, most: int, seed: int) -> list[int]:
    """Return the clients that stand for all, ascending: at most so many, drawn by seed.

    >>> drawn_clients(3, 8, seed=0), len(drawn_clients(100, 8, seed=0))
    ([0, 1, 2], 8)
    """
    order = torch.randperm(clients, generator=torch_stream(seed, "references", "clients"))
    return sorted(order[:most].tolist())


def _trained(
    slot: Slot, _: None, images: Images, spec: ModelSpec, training: CentralTraining, seed: int, cache: Path | None
) -> State:
    own_seed = derive_seed(seed, "references")
    return train_centrally(images, spec, training, seed=own_seed, device=slot.device, cache=cache)


def _score(
    slot: Slot,
    shard: Handle[Images] | None,
    public: Images,
    test: Images,
    spec: ModelSpec,
    training: CentralTraining,
    seed: int,
    cache: Path | None,
) -> Utility:
    """Score what the public images make alone, or with a client's shard."""
    images = public if shard is None else together(shard.get(), public)

    def build() -> State:
        # The weights of a client's own model are nobody's start, and may be large: its scores alone are kept.
        with doing("public images alone" if shard is None else "one client's own images"):
            weights = _trained(slot, None, images, spec, training, seed, cache if shard is None else None)
        probabilities = predict(slot.model(spec), weights, test, NoHooks(), torch_stream(seed, "references", "test"))
        scores = accuracy(probabilities, test.labels), macro_auc(probabilities, test.labels)
        return {"scores": torch.tensor(scores, dtype=torch.float64)}

    key = ("reference", fingerprint(images), fingerprint(test), spec, training, seed, slot.device.type)
    return Utility(*cached(cache, key, build)["scores"].tolist())


def together(own: Images, public: Images) -> Images:
    """Return both in this order; groups stay where both have them."""
    groups = None if own.groups is None or public.groups is None else torch.cat([own.groups, public.groups])
    return Images(torch.cat([own.pixels, public.pixels]), torch.cat([own.labels, public.labels]), groups)
