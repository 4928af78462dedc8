"""Measurements, each against a named peer or floor. A package of its own, since others install one of that name (Opacus)."""
