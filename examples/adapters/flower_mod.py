"""Audits live what Flower's clients send: a mod sees the message that comes and the one that goes, and adds a metric."""

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
client, server = ClientApp(), ServerApp()


def audit_mod(message, context, call_next):
    """Attack what the client is about to send; the server averages what comes of it, as it does other metrics."""
    reply = call_next(message, context)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    own = images.take([context.node_config["partition-id"]])
    update = fv.update_between(model, reply.content["arrays"].to_torch_state_dict(), learning_rate=RATE)
    report = fv.audit(model, update, images=own, attacks=[fv.DeepLeakage(steps=100)])
    reply.content["metrics"]["leak-mse"] = report.worst("mse")
    return reply


def take_a_step(message, context):
    """Take one step on the client's only image: the worst case."""
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    own = images.take([context.node_config["partition-id"]])
    model.zero_grad()
    torch.nn.functional.cross_entropy(model(own.floats()), own.labels).backward()
    torch.optim.SGD(model.parameters(), lr=RATE).step()
    content = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": len(own)})}
    return Message(RecordDict(content), reply_to=message)


client.train(mods=[audit_mod])(take_a_step)


@server.main()
def main(grid, context):
    """Average two rounds."""
    result = FedAvg(fraction_evaluate=0.0).start(grid, ArrayRecord(model.state_dict()), num_rounds=2)
    for number, metrics in result.train_metrics_clientapp.items():
        print(f"round {number}: mean squared error {metrics['leak-mse']:.4f}")


if __name__ == "__main__":
    run_simulation(server, client, num_supernodes=2)
