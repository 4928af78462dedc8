"""FedProx (Li et al. 2020, arXiv 1812.06127, algorithm 2)."""

from __future__ import annotations

from dataclasses import dataclass

from fedveil.fl.errors import SettingError
from fedveil.fl.strategies.base import STRATEGIES
from fedveil.fl.strategies.fedavg import FedAvg


@STRATEGIES.register("fedprox")
@dataclass(frozen=True)
class FedProx(FedAvg):
    """Federated averaging whose clients are held near the server's weights: mu/2 |w - w_server|^2 (eq. 2).

    Attributes:
        mu: at least 0; the paper tries 0.001 to 1.
    """

    mu: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.mu >= 0:
            raise SettingError("strategy fedprox", "mu", self.mu, "it must be at least 0")

    @property
    def proximal(self) -> float:
        """See `Strategy.proximal`."""
        return self.mu
