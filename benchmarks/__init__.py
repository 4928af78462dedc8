"""Measurements against peers and floors; see docs/benchmarks.md. A package, since an installed one has this name, too."""
