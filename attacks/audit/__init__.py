"""From what clients sent to a report: capture, attacks, scores."""
