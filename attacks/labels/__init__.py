"""Labels: granted to the attacker, or recovered from the update."""

from fedveil.attacks.labels.recovery import labels_of, recover_labels

__all__ = ["labels_of", "recover_labels"]
