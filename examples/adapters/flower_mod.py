"""Audits live what Flower's clients send: a mod sees the message that comes and the one that goes, and adds a metric."""

from flower_federation import RATE, images, model, run

import fedveil as fv


def audit_mod(message, context, call_next):
    """Attack what the client is about to send; the server averages what comes of it, as it does other metrics."""
    reply = call_next(message, context)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    own = images.take([context.node_config["partition-id"]])
    update = fv.update_between(model, reply.content["arrays"].to_torch_state_dict(), learning_rate=RATE)
    report = fv.audit(model, update, images=own, attacks=[fv.DeepLeakage(steps=100)])
    reply.content["metrics"]["leak-mse"] = report.worst("mse")
    return reply


if __name__ == "__main__":
    run(mods=[audit_mod])  # your own: client.train(mods=[audit_mod])(...)
