"""A federation in Flower for the adapters beside it: two clients that take one step on their only image, the worst case."""

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

import fedveil as fv

RATE = 0.01
model = fv.build_model("lenet", image_shape=(1, 32, 32), classes=3)  # or any nn.Module
images = fv.load_data("mni152", size=32).train.take([40, 400])


def take_a_step(message, context):
    """Train, as Flower calls it."""
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    own = images.take([context.node_config["partition-id"]])
    model.zero_grad()
    torch.nn.functional.cross_entropy(model(own.floats()), own.labels).backward()
    torch.optim.SGD(model.parameters(), lr=RATE).step()
    content = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": len(own)})}
    return Message(RecordDict(content), reply_to=message)


def run(mods=(), wrap=lambda strategy: strategy):
    """Average two rounds, and show the metric that an adapter adds."""
    client, server = ClientApp(), ServerApp()
    client.train(mods=list(mods))(take_a_step)

    @server.main()
    def main(grid, context):
        strategy = wrap(FedAvg(fraction_evaluate=0.0))
        result = strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=2)
        for number, metrics in result.train_metrics_clientapp.items():
            print(f"round {number}: mean squared error {metrics['leak-mse']:.4f}")

    run_simulation(server, client, num_supernodes=2)
