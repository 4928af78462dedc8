"""Audits live what a Flower server receives: a wrapped strategy attacks each update before it averages them."""

from flower_federation import RATE, images, model, run

import fedveil as fv


def audited(strategy):
    """Return any strategy with a metric more: how near what the server can rebuild comes to an image of a client."""
    configure, aggregate = strategy.configure_train, strategy.aggregate_train

    def configure_train(server_round, arrays, *others):
        model.load_state_dict(arrays.to_torch_state_dict())
        return configure(server_round, arrays, *others)

    def aggregate_train(server_round, replies):
        replies, errors = list(replies), []
        for content in (reply.content for reply in replies if not reply.has_error()):
            update = fv.update_between(model, content["arrays"].to_torch_state_dict(), learning_rate=RATE)
            attacked = fv.audit(model, update, image_shape=(1, 32, 32), attacks=[fv.DeepLeakage(steps=100)])
            # What a server sees. Only a simulation can tell which image that is, and how near.
            seen = attacked.reconstructions["deep_leakage"]
            errors.append((seen - images.floats()).square().mean(dim=(1, 2, 3)).min().item())
        arrays, metrics = aggregate(server_round, replies)
        if errors:
            metrics["leak-mse"] = sum(errors) / len(errors)
        return arrays, metrics

    strategy.configure_train, strategy.aggregate_train = configure_train, aggregate_train
    return strategy


if __name__ == "__main__":
    run(wrap=audited)  # your own: audited(FedAvg(...)).start(...)
