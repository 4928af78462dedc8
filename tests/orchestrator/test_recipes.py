"""The files of docs/clusters.md, as far as they can be held against Ray's own checks and our command line."""

from __future__ import annotations

import re
import shlex
from importlib.metadata import version
from typing import Any

import pytest
from jsonschema import ValidationError
from pages import ROOT, blocks_of
from ray.autoscaler._private.util import prepare_config, validate_config
from ruamel.yaml import YAML

from fedveil.orchestrator.cli import parser
from fedveil.orchestrator.config import load_experiment

RECIPES = ROOT / "examples" / "cluster"
PAGE = ROOT / "docs" / "clusters.md"
DOCUMENT = PAGE.read_text(encoding="utf-8")
HOME = "/home/ray/fedveil/"
"""Where the image has the checkout."""


def read(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = YAML(typ="safe").load(RECIPES / name)
    return loaded


def test_ray_takes_the_description_of_a_cluster() -> None:
    config = prepare_config(read("ray-cluster.yaml"))
    validate_config(config)
    assert config["provider"]["type"] == "local"
    assert len(config["provider"]["worker_ips"]) == 2
    with pytest.raises(ValidationError, match="not of type 'string'"):
        validate_config({**config, "head_node_type": 3})


def test_all_name_the_version_of_ray_that_this_package_asks_for() -> None:
    dockerfile = (RECIPES / "Dockerfile").read_text(encoding="utf-8")
    assert f"FROM rayproject/ray:{version('ray')}-py311" in dockerfile
    assert read("rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == version("ray")


def test_the_kubernetes_job_runs_a_sweep_that_there_is() -> None:
    spec = read("rayjob.yaml")["spec"]
    python, flag, module, *words = shlex.split(spec["entrypoint"])
    assert (python, flag, module) == ("python", "-m", "fedveil.orchestrator")
    asked = parser().parse_args(words)
    assert asked.runs_dir.startswith("s3://")
    experiment, _ = load_experiment(ROOT / asked.file.as_posix().removeprefix(HOME), asked.set)
    assert experiment.search is not None
    assert experiment.resources.gpus_per_worker == 0.5
    environment = YAML(typ="safe").load(spec["runtimeEnvYAML"])["env_vars"]
    assert environment.keys() == {"MLFLOW_TRACKING_URI", "FEDVEIL_DATA"}
    cluster = spec["rayClusterSpec"]
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    for pod in pods:
        (container,) = pod["containers"]
        assert {mount["mountPath"] for mount in container["volumeMounts"]} == {environment["FEDVEIL_DATA"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_the_submitted_command_is_one_of_ours() -> None:
    commands = [words for block in blocks_of(PAGE) for words in block.commands()]
    (submitted,) = (words for words in commands if words[:3] == ["ray", "job", "submit"])
    words = submitted[submitted.index("--") + 1 :]
    assert words[:3] == ["python", "-m", "orchestrator"]
    asked = parser().parse_args(words[3:])
    assert (ROOT / asked.file).exists()


def test_files_that_the_document_names_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)`", DOCUMENT) + re.findall(r"\]\(\.\./([\w/.-]+)\)", DOCUMENT)
    assert len(named) >= 7
    for name in named:
        assert (ROOT / name).exists(), name
