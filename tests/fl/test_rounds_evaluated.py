"""How good the server's model is: behind each client's own defence, without any, and by a quick score."""

from dataclasses import replace

import pytest
import torch
from federations import SIZES, ShufflingExecutor, federate, images
from torch import Tensor, nn

from fedveil.fl.data.images import Images
from fedveil.fl.executor import Executor, SerialExecutor
from fedveil.fl.hooks import ClientHooks, NoHooks
from fedveil.fl.metrics import accuracy, macro_auc
from fedveil.fl.models import build_model
from fedveil.fl.rounds import Federation, ServerState, Simulation
from fedveil.fl.strategies import FedAvg
from fedveil.fl.training import predict

torch.set_num_threads(1)


class Negated(NoHooks):
    """Answers with the class that the model thinks least likely."""

    def output(self, logits: Tensor) -> Tensor:
        return -logits


class Dark(NoHooks):
    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        return x / 4


def probabilities(federation: Federation, test: Images, hooks: ClientHooks) -> Tensor:
    model: nn.Module = build_model(federation.model)
    return predict(model, ServerState.initial(federation).weights, test, hooks, torch.Generator())


@pytest.mark.parametrize("executor", [SerialExecutor(), ShufflingExecutor(1)], ids=["serial", "shuffling"])
def test_utility_is_the_mean_over_clients_each_behind_its_own_defence(executor: Executor) -> None:
    hooks = [NoHooks(), Negated(), Dark()]
    federation = federate(FedAvg(), hooks=hooks, cohort=3)
    simulation = Simulation(federation, executor)
    test = images(40, 77)
    found = simulation.evaluate(executor.broadcast(test))
    scores = [probabilities(federation, test, own) for own in hooks]
    assert found.accuracy == pytest.approx(sum(accuracy(s, test.labels) for s in scores) / 3)
    assert found.auc == pytest.approx(sum(macro_auc(s, test.labels) for s in scores) / 3)
    clean = simulation.evaluate_clean(executor.broadcast(test))
    assert clean.accuracy == accuracy(scores[0], test.labels)
    assert clean.auc == macro_auc(scores[0], test.labels)
    assert found != clean


def test_the_quick_score_gives_each_client_every_kth_image() -> None:
    hooks = [NoHooks(), Negated(), Dark()]
    federation = federate(FedAvg(), hooks=hooks, cohort=3)
    test = images(40, 77)
    right = 0.0
    for k, own in enumerate(hooks):
        part = test.take(torch.arange(k, 40, 3))
        right += accuracy(probabilities(federation, part, own), part.labels) * len(part)
    found = Simulation(federation, SerialExecutor()).evaluate_quickly(test)
    assert found == pytest.approx(right / 40)


def test_the_quick_score_works_with_more_clients_than_images() -> None:
    federation = federate(FedAvg())
    test = images(4, 77)
    found = Simulation(federation, SerialExecutor()).evaluate_quickly(test)
    assert found == pytest.approx(accuracy(probabilities(federation, test, NoHooks()), test.labels))


class Recording(NoHooks):
    def __init__(self) -> None:
        self.drawn: list[float] = []

    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        self.drawn.append(torch.rand(1, generator=stream).item())
        return x


def test_test_time_noise_is_fresh_for_each_client_and_round_and_reproducible() -> None:
    hooks = [Recording() for _ in SIZES]
    federation = federate(FedAvg(), hooks=hooks)
    executor = SerialExecutor()
    test = executor.broadcast(images(4, 77))
    for number in (0, 1, 0):
        state = replace(ServerState.initial(federation), round=number)
        Simulation(federation, executor, state).evaluate(test)
    for own in hooks:
        assert own.drawn[0] == own.drawn[2]
    assert len({value for own in hooks for value in own.drawn}) == 2 * len(SIZES)
