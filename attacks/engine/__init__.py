"""Gradient matching for many victims at once: the distance to what was observed, and its slope."""
