from __future__ import annotations

import platform

import torch

from fedveil.orchestrator.cluster.nodes import installed
from fedveil.orchestrator.config import load_experiment
from fedveil.orchestrator.run.colors import run_color
from fedveil.orchestrator.run.tags import tags_of


def test_a_run_says_what_it_ran_on() -> None:
    experiment, _ = load_experiment({"experiment": "e", "defense": "latent"})
    tags = tags_of(experiment)
    assert tags["mlflow.runColor"] == run_color(experiment)
    said = dict(one.split(" ") for one in tags["fedveil.versions"].split(", "))
    assert said["python"] == platform.python_version()
    assert said["torch"] == torch.__version__.partition("+")[0] or said["torch"] == torch.__version__
    assert said["fedveil"] == installed("fedveil")
    assert installed("no-such-package") == "missing"
