"""The kinds of faults: importing this package registers them."""

from benchmarks.faults.kinds import clusters, files, processes, servers, side_by_side

__all__ = ["clusters", "files", "processes", "servers", "side_by_side"]
