"""Training that diverges ends with a sentence that says what to do."""

from dataclasses import replace

import pytest
import torch
from federations import SIZES, federate
from torch import Tensor, nn

from fedveil.fl.errors import FedveilError
from fedveil.fl.executor import SerialExecutor
from fedveil.fl.hooks import NoHooks
from fedveil.fl.messages import ClientUpdate
from fedveil.fl.rounds import Simulation
from fedveil.fl.strategies import FedAvg, Krum, Median, Strategy

torch.set_num_threads(1)


@pytest.mark.parametrize("strategy", [FedAvg(), Median(), Krum()], ids=repr)
def test_training_that_diverges_is_an_error_that_says_what_to_do(strategy: Strategy) -> None:
    simulation = Simulation(federate(strategy, learning_rate=1e30), SerialExecutor())
    before = simulation.state
    said = r"round 0: \d of 6 clients' updates can be trusted, and fl\.quorum 0\.5 .* diverges, lower fl\.learning_rate"
    with pytest.raises(FedveilError, match=said):
        simulation.round()
    assert simulation.state is before, "a round that fails leaves the state as it was"


class Loud(NoHooks):
    """What each client sends can be trusted, and a step that the server makes of it is too long."""

    def update(self, update: ClientUpdate, stream: torch.Generator) -> ClientUpdate:
        return replace(update, tensors={**update.tensors, "head.bias": torch.full((3,), 1e16)})


def test_weights_that_are_not_finite_are_an_error_although_loss_and_updates_are() -> None:
    simulation = Simulation(federate(FedAvg(server_lr=1e30), hooks=[Loud()] * len(SIZES)), SerialExecutor())
    said = r"round 0: head\.bias is not finite; lower fl\.learning_rate, or set fl\.max_update_norm"
    with pytest.raises(FedveilError, match=said):
        simulation.round()


class Hopeless(NoHooks):
    """What is sent is fine, and yet nothing was learnt."""

    def loss(self, loss: Tensor, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        return loss + torch.inf


def test_a_loss_that_is_not_finite_is_an_error_although_updates_are() -> None:
    simulation = Simulation(federate(FedAvg(), hooks=[Hopeless()] * len(SIZES)), SerialExecutor())
    with pytest.raises(FedveilError, match=r"round 0: the training loss is inf; lower fl\.learning_rate"):
        simulation.round()
