"""Federated learning: data, partitions, models, local training, aggregation, the round loop and its messages."""
