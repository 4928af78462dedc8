"""Faults that are really caused in real small runs and sweeps, and what each of them costs."""
