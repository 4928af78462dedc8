"""The benchmark's federation in Flower 1.41 (Beutel et al. 2020, arXiv 2007.14390), simulated with two client processes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.peers.federation import Settings, network, report, shards, train, turns

settings = Settings.given()
client_app, server_app = ClientApp(), ServerApp()


@client_app.train()
def client(message: Message, context: Context) -> Message:
    """A client's turn, as Flower's own example with PyTorch has it."""
    torch.set_num_threads(1)
    model = network(settings)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    pixels, labels = shards(settings)[int(context.node_config["partition-id"])]
    train(model, pixels, labels, settings)
    content = RecordDict(
        {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": len(labels)})}
    )
    return Message(content=content, reply_to=message)


class Turns(FedAvg):
    """Waits to be asked for each round."""

    def __init__(self) -> None:
        super().__init__(fraction_train=settings.cohort / settings.clients, fraction_evaluate=0.0)
        self.turns = turns()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        next(self.turns)
        return super().configure_train(server_round, arrays, config, grid)


@server_app.main()
def server(grid: Grid, context: Context) -> None:
    torch.set_num_threads(1)
    model = network(settings)
    strategy = Turns()
    result = strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=settings.rounds)
    next(strategy.turns, None)
    model.load_state_dict(result.arrays.to_torch_state_dict())
    report(model)


if __name__ == "__main__":
    run_simulation(
        server_app,
        client_app,
        num_supernodes=settings.clients,
        backend_config={"init_args": {"num_cpus": 2}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
