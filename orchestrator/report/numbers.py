"""How numbers are written in the table and under the pictures."""

from __future__ import annotations


def mse_text(error: float) -> str:
    """Four decimals; one significant digit where those would read as an exact copy, and a plain 0 for one."""
    return f"{error:.4f}" if error >= 5e-5 else f"{error:.0e}" if error > 0 else "0"
