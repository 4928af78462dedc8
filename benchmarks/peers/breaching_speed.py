"""The peer's side of the speed benchmark; runs in the peer's own environment.

A step is one of breaching's Inverting Gradients as it runs: closure, signed Adam, schedule, box, best candidate. The
package attacks one victim at a time.
"""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import torch
from torch import nn

from benchmarks.peers.breaching_side import OptimizationBasedAttacker, configuration
from benchmarks.peers.serving import CLASSES, SHAPE, Program, Request, serve
from fedveil.fl.models import ModelSpec, build_model


def inverting_gradients(request: Request) -> Program:
    """Prepare the package's attack on one victim: each further one costs as much again."""
    network = request.network
    model = build_model(ModelSpec(network.model, SHAPE, CLASSES, network.norm, network.width))
    setup = {"dtype": torch.float, "device": torch.device(request.device)}
    loss = nn.CrossEntropyLoss()
    attacker = OptimizationBasedAttacker(model, loss, configuration("invertinggradients", 1, 1), setup)
    torch.manual_seed(0)
    about = SimpleNamespace(shape=SHAPE, modality="vision")
    payload = [{"parameters": list(model.parameters()), "buffers": None, "metadata": about}]
    label = torch.randint(CLASSES, (1,))
    gradients = torch.autograd.grad(loss(model(torch.rand(1, *SHAPE)), label), list(model.parameters()))
    known = {"num_data_points": 1, "labels": label.to(request.device), "local_hyperparams": None}
    shared = [{"gradients": [g.to(request.device) for g in gradients], "buffers": None, "metadata": known}]
    models, labels, stats = attacker.prepare_attack(payload, shared)

    def go(steps: int) -> int:
        attacker.cfg.optim.max_iterations = steps
        attacker._run_trial(models, shared, labels, stats, 0)
        return steps

    return go


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    serve({"inverting_gradients": inverting_gradients})
