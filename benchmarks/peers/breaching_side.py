"""The peer, breaching 0.1.2, made to attack our cells. Runs in the peer's own environment (see setup.sh).

It gets what our attacks get: the server's weights, the update, the batch size, labels, local steps and the learning rate.
Where it departs from what the package does out of the box:

- Its total variation and its patterned start are written for 3 channels. Grey images get the same total variation over one
  channel, without colour opponents, and the first channel of the patterned start.
- ``deepleakage`` searches labels too. As labels are known, it runs the package's attack for known labels with the same
  objective and optimiser.
- The feature prior of ``modern`` hooks the model, which the package's replay of several steps copies; it can't run
  there and is left out for several steps.
- L-BFGS takes up to 20 gradients per iteration; it is stopped by the number of gradients, not of iterations.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.cells import CHANNELS, CLASSES, LEARNING_RATE, Cell
from fedveil.fl.models import ModelSpec, build_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import breaching
    from breaching.attacks.auxiliaries import regularizers
    from breaching.attacks.optimization_based_attack import OptimizationBasedAttacker
    from omegaconf import open_dict

CONFIGURATIONS = ("deepleakage", "invertinggradients", "modern")


class GreyTotalVariation(regularizers.TotalVariation):
    """The package's total variation, for one channel."""

    def __init__(self, setup: dict[str, Any], **settings: Any) -> None:
        super().__init__(setup, **{**settings, "double_opponents": False})
        self.groups = 1
        self.weight = self.weight[:2]


class Attacker(OptimizationBasedAttacker):  # type: ignore[misc]
    """The package's attacker, stopped after ``evaluations`` gradients."""

    evaluations: int
    used: int = 0

    def _initialize_data(self, shape: Any) -> Tensor:
        patterned_grey = "patterned" in self.cfg.init and shape[1] == 1
        start = super()._initialize_data([shape[0], 3, *shape[2:]] if patterned_grey else shape)
        return start.detach()[:, : shape[1]].contiguous().requires_grad_()

    def _compute_objective(self, *arguments: Any) -> Callable[[], Tensor]:
        closure = super()._compute_objective(*arguments)
        if self.used >= self.evaluations:
            raise KeyboardInterrupt  # the package's way to end a run with its best candidate

        def counted() -> Tensor:
            self.used += 1
            value: Tensor = closure()
            return value

        return counted


def model_of(cell: Cell) -> nn.Module:
    """Return the cell's classifier, built by the same class as on our side."""
    shape = (CHANNELS[cell.data], 32, 32)
    return build_model(ModelSpec(cell.network.model, shape, CLASSES[cell.data], cell.network.norm))


def configuration(name: str, evaluations: int, steps: int) -> Any:
    """Return the package's own configuration ``name``, with labels known and the iterations that the budget allows."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        settings = breaching.get_attack_config(name)
    with open_dict(settings):
        settings.attack_type = "optimization"
        settings.optim.max_iterations = evaluations
        settings.optim.callback = 10**9
        if steps > 1 and settings.regularization is not None and "features" in settings.regularization:
            settings.regularization.features.scale = 0.0
    return settings


def messages(cell: Cell, content: dict[str, Any], at: int, model: nn.Module) -> tuple[list[Any], list[Any]]:
    """Return what the package calls the server's payload and the shared data, for update ``at`` of a cell."""
    labels = content["labels"][at * cell.batch :][: cell.batch]
    names = [name for name, _ in model.named_parameters()]
    local = None
    if cell.steps > 1:
        local = {"lr": LEARNING_RATE, "steps": cell.steps, "data_per_step": cell.batch, "labels": [labels] * cell.steps}
    about = SimpleNamespace(shape=tuple(content["images"].shape[1:]), modality="vision")
    payload = {"parameters": [content["weights"][n] for n in names], "buffers": None, "metadata": about}
    known = {"num_data_points": cell.batch, "labels": labels, "local_hyperparams": local}
    shared = {"gradients": [content["updates"][at][n] for n in names], "buffers": None, "metadata": known}
    return [payload], [shared]


def attacker_of(cell: Cell, name: str, evaluations: int, model: nn.Module) -> Attacker:
    """Return the package's attacker under configuration ``name``."""
    grey = CHANNELS[cell.data] == 1
    regularizers.regularizer_lookup["total_variation"] = GreyTotalVariation if grey else regularizers.TotalVariation
    setup = {"dtype": torch.float, "device": torch.device("cpu")}
    attacker = Attacker(model, nn.CrossEntropyLoss(), configuration(name, evaluations, cell.steps), setup)
    attacker.evaluations = evaluations
    return attacker


def mismatch(cell: Cell, content: dict[str, Any], at: int) -> float:
    """Return how far the update that the package computes from the true images is from the one sent, relative to it."""
    model = model_of(cell)
    attacker = attacker_of(cell, "deepleakage", 1, model)
    payload, shared = messages(cell, content, at, model)
    (rebuilt,), labels, _ = attacker.prepare_attack(payload, shared)
    objective = attacker.objective
    objective.initialize(attacker.loss_fn, attacker.cfg.impl, shared[0]["metadata"]["local_hyperparams"])
    images = content["images"][at * cell.batch :][: cell.batch]
    found, _ = objective._grad_fn(rebuilt, images, labels)
    sent = shared[0]["gradients"]
    error = sum(float((a - b).detach().square().sum()) for a, b in zip(found, sent, strict=True))
    return float((error / sum(float(b.square().sum()) for b in sent)) ** 0.5)


def attack(cell: Cell, content: dict[str, Any], at: int, name: str, evaluations: int) -> tuple[Tensor, float, int]:
    """Return the reconstruction (B, C, H, W), the attack's own last score, and the gradients it took."""
    model = model_of(cell)
    torch.manual_seed(at)
    attacker = attacker_of(cell, name, evaluations, model)
    payload, shared = messages(cell, content, at, model)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, stats = attacker.reconstruct(payload, shared, server_secrets={})
    return found["data"].detach().cpu(), float(stats["opt_value"]), attacker.used


def load(cell: Cell, folder: Path) -> dict[str, Any]:
    """Return a cell's file."""
    content: dict[str, Any] = torch.load(folder / f"{cell}.pt")
    return content
