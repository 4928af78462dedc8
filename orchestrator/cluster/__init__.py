"""Ray below the trials: connecting to a cluster, the pool of worker slots, and progress from wherever trials run."""
