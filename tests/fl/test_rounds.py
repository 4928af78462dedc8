"""What a round computes, against the same worked by hand."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from federations import SIZES, ShufflingExecutor, federate, images, rounds, same_bits
from torch.nn import functional as F

from fedveil.fl.executor import Handle
from fedveil.fl.hooks import NoHooks
from fedveil.fl.models import build_model, init_model
from fedveil.fl.optimizers import Adam
from fedveil.fl.rounds import ServerState
from fedveil.fl.seeding import torch_stream
from fedveil.fl.strategies import FedAdam, FedAvg, FedSGD
from fedveil.fl.training import local_update

torch.set_num_threads(1)


def test_a_run_starts_from_the_models_seeded_weights() -> None:
    federation = federate(FedAdam(), seed=4)
    state = ServerState.initial(federation)
    assert state.round == 0
    assert all(torch.equal(state.weights[n], t) for n, t in init_model(federation.model, 4).items())
    assert state.optimizer.keys() == FedAdam().init(state.weights).keys()


def test_a_fedsgd_round_is_one_step_of_gradient_descent_on_all_images() -> None:
    federation = federate(FedSGD(server_lr=0.5), batch_size=64)
    state, [report] = rounds(federation, 1)
    model = build_model(federation.model, federation.seed)
    shards = [client.shard.get() for client in federation.clients]
    x, y = torch.cat([s.floats() for s in shards]), torch.cat([s.labels for s in shards])
    loss = F.cross_entropy(model(x), y)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(state.weights[name], parameter.detach() - 0.5 * gradient, atol=1e-6, rtol=1e-5)
    assert state.round == 1
    assert report.loss == pytest.approx(loss.item(), rel=1e-5)


def test_a_fedavg_round_is_the_mean_of_the_clients_weights_by_examples() -> None:
    federation = federate(FedAvg(), norm="batch")
    before = ServerState.initial(federation)
    state, [report] = rounds(federation, 1)
    model = build_model(federation.model)
    results = [
        local_update(
            model,
            before.weights,
            images(size, k),
            NoHooks(),
            federation.training,
            torch_stream(0, "round", 0, "client", k),
        )
        for k, size in enumerate(SIZES)
    ]
    for name, old in before.weights.items():
        changes = [{**r.update.tensors, **r.update.buffers}[name].double() for r in results]
        mean = sum(size * (old + change) for size, change in zip(SIZES, changes, strict=True)) / sum(SIZES)
        torch.testing.assert_close(state.weights[name].double(), mean, atol=1e-6, rtol=1e-5)
    moved = "body.0.1.running_var"
    assert not torch.equal(state.weights[moved], before.weights[moved]), "BatchNorm statistics take part"
    assert report.loss == pytest.approx(sum(n * r.loss for n, r in zip(SIZES, results, strict=True)) / sum(SIZES))
    assert report.update_bytes == pytest.approx(sum(r.update.nbytes() for r in results) / len(SIZES))
    assert report.failed_clients == 0


def test_the_learning_rate_decays_from_round_to_round() -> None:
    federation = replace(federate(FedAvg(), batch_size=64, learning_rate=0.4), learning_rate_decay=0.5)
    assert [federation.training_at(number).learning_rate for number in range(3)] == [0.4, 0.2, 0.1]
    first = replace(ServerState.initial(federation), round=0)
    moved = []
    for number in (0, 2):
        # One step from the same weights on all of the images: the change is the learning rate times the gradient.
        after, _ = rounds(federation, 1, state=replace(first, round=number))
        moved.append(after.weights["head.weight"] - first.weights["head.weight"])
    torch.testing.assert_close(moved[1] * 4, moved[0], atol=1e-5, rtol=1e-3)


def test_public_images_reach_every_client_behind_one_handle() -> None:
    class Counted(Handle[Any]):
        opened = 0

        def get(self) -> Any:
            self.opened += 1
            return super().get()

    federation = federate(FedAvg())
    assert federation.public is None
    training = replace(
        federation.training,
        epochs=None,
        steps=3,
        optimizer=Adam(),
        replay=0.5,
        augmentation=("flip",),
        learning_rate=0.01,
    )
    mixed = replace(federation, training=training, public=Counted(images(4, seed=50)))
    state, _ = rounds(mixed, 1)
    assert mixed.public is not None
    assert mixed.public.opened == 3, "once a chunk of clients"  # type: ignore[attr-defined]
    others = replace(mixed, public=Handle(images(4, seed=51)))
    assert not same_bits(rounds(others, 1)[0], state)
    assert same_bits(rounds(mixed, 1, executor=ShufflingExecutor(2))[0], state)
    # By hand, one client after another.
    after = ServerState.initial(mixed).weights
    total = {name: torch.zeros_like(weight) for name, weight in after.items()}
    for client in mixed.clients:
        stream, shard = torch_stream(mixed.seed, "round", 0, "client", client.number), client.shard.get()
        result = local_update(
            build_model(mixed.model), after, shard, NoHooks(), training, stream, public=images(4, seed=50)
        )
        for name, change in result.update.tensors.items():
            total[name] += change * len(shard) / sum(SIZES)
    for name, weight in state.weights.items():
        torch.testing.assert_close(weight, after[name] + total[name], atol=1e-6, rtol=1e-5)
