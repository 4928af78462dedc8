"""Labels: granted to the attacker, or recovered from the update."""

from fedveil.attacks.labels.recovery import label_rule, labels_of, likeliest_rate, recover_labels

__all__ = ["label_rule", "labels_of", "likeliest_rate", "recover_labels"]
