"""The benchmark's federation in pfl-research (Granqvist et al. 2024, arXiv 2404.06430), in one process."""

from __future__ import annotations

import random

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.peers.federation import Settings, network, report, shards, turns


class Model(nn.Module):
    """The network with what pfl asks of one."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def loss(self, pixels: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.body(pixels.float() / 255), labels)

    def metrics(self, pixels: Tensor, labels: Tensor) -> dict[str, Weighted]:
        return {"loss": Weighted(float(self.loss(pixels, labels)) * len(labels), len(labels))}


class Turns(TrainingProcessCallback):
    """Waits to be asked for each round."""

    def __init__(self) -> None:
        self._turns = turns()
        next(self._turns)

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        return next(self._turns, None) is None, Metrics()


def main() -> None:
    torch.set_num_threads(1)
    settings = Settings.given()
    clients = shards(settings)
    body = network(settings)
    chance = random.Random(0)
    data = FederatedDataset(lambda client: Dataset(clients[client]), lambda: chance.randrange(settings.clients))
    model = Model(body)
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=settings.rounds + 1,
            evaluation_frequency=settings.rounds + 2,
            train_cohort_size=settings.cohort,
            val_cohort_size=0,
        ),
        SimulatedBackend(data, data),
        PyTorchModel(model, torch.optim.SGD, torch.optim.SGD(model.parameters(), 1.0)),
        NNTrainHyperParams(
            local_num_epochs=settings.epochs,
            local_learning_rate=settings.learning_rate,
            local_batch_size=settings.batch_size,
        ),
        NNEvalHyperParams(local_batch_size=None),
        [Turns()],
    )
    report(body)


if __name__ == "__main__":
    main()
