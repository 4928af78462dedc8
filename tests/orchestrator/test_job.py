from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from mlflow import MlflowClient
from ray.job_submission import JobSubmissionClient
from tiny import PLUGIN, share_cache

from benchmarks.faults.servers import MlflowServer, end, free_port

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
CUT_DOWN = [
    "data.limit=60",
    "model.width=4",
    "fl.rounds=2",
    "fl.clients=2",
    "audit.victims=4",
    (
        "audit.attacks=[{name: adaptive, inversion: {name: inverting_gradients, steps: 3},"
        " inverse: {steps: 3, batch_size: 8, width: 8}, calibration: 4}, {name: grey, level: 0.25}]"
    ),
    "resources.workers=1",
    "resources.cpus_per_worker=0.5",
    "search.panel=[{defense: {name: latent_autoencoder, steps: 2, client_steps: 1, public_steps: 2}}, {defense: darken}]",
]


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """A folder of the head's own, with a name short enough for the sockets in it."""
    with TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def head(tmp_path: Path, ray_folder: Path) -> Iterator[str]:
    """A Ray head with a dashboard, all on loopback; ends with the process group that was started."""
    port = free_port()
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")},
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [RAY, "start", "--head", "--block", "--num-cpus", "2", "--node-ip-address", "127.0.0.1"]
    command += ["--temp-dir", str(ray_folder), "--port", str(free_port())]
    command += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(port)]
    command += ["--ray-client-server-port", str(free_port()), "--include-dashboard", "true"]
    # The agents of two clusters on one machine would want the same port.
    command += ["--dashboard-agent-listen-port", str(free_port()), "--dashboard-agent-grpc-port", str(free_port())]
    with (tmp_path / "head.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 180
        while not _answers(f"http://127.0.0.1:{port}/api/version"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((tmp_path / "head.log").read_text()[-3000:])
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        end(process, 60)


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


def _shown_actors(url: str) -> set[str]:
    """What Ray's dashboard shows of actors, those that are over among them."""
    with urlopen(f"{url}/api/v0/actors?detail=true&limit=100", timeout=30) as answer:
        return {actor["repr_name"] for actor in json.load(answer)["data"]["result"]["result"]}


@pytest.mark.slow
def test_ray_job_submit_runs_a_sweep_with_a_plugin_into_an_mlflow_server(
    head: str, ray_folder: Path, mlflow_server: MlflowServer, tmp_path: Path, modules: Path
) -> None:
    kept = share_cache(tmp_path, modules) / "runs"
    (tmp_path / "mine.py").write_text(PLUGIN)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_AUTH", "RAY_ADDRESS"))}
    variables = {"MLFLOW_TRACKING_URI": mlflow_server.uri, "PATH": environment["PATH"]}
    entry = [
        sys.executable,
        "-m",
        "orchestrator",
        "sweep",
        "tune_configs/demo.yaml",
        "--plugin",
        str(tmp_path / "mine.py"),
        "--runs-dir",
        str(kept),
    ]
    for override in [*CUT_DOWN, "experiment=by-job"]:
        entry += ["--set", override]
    command = [RAY, "job", "submit", "--address", head, "--working-dir", "."]
    command += ["--submission-id", "by-job-1", "--metadata-json", json.dumps({"job_name": "by-job"})]
    command += ["--runtime-env-json", json.dumps({"env_vars": variables}), "--", *entry]
    client_environment = {**environment, "RAY_AUTH_MODE": "disabled"}
    for _ in range(30):
        done = subprocess.run(command, cwd=ROOT, env=client_environment, capture_output=True, text=True, timeout=500)
        # The head answers before its job agent has registered.
        if "No available agent" not in done.stdout + done.stderr:
            break
        time.sleep(3)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-4000:]
    (job,) = [job for job in JobSubmissionClient(head).list_jobs() if job.submission_id]
    assert (job.submission_id, (job.metadata or {})["job_name"]) == ("by-job-1", "by-job")
    assert {"by-job: trials", "by-job: worker 0", "by-job: messages"} <= _shown_actors(head)
    # One line for what holds of all trials, and all columns: a log is not a window.
    lines = said.splitlines()
    notes = [line.partition("note: ")[2] for line in lines if "note: " in line]
    assert len(notes) == len(set(notes))
    assert not any("Left out where the window is narrow" in line for line in lines)
    assert f"A page to hand on:  fedveil report by-job --uri {mlflow_server.uri} --html by-job.html" in lines
    package = Path(urlsplit((job.runtime_env or {})["working_dir"]).netloc).stem
    (unpacked,) = ray_folder.glob(f"session_2*/runtime_resources/working_dir_files/{package}")
    uploaded = [file for file in unpacked.rglob("*") if file.is_file()]
    assert unpacked / "tune_configs" / "demo.yaml" in uploaded
    assert sum(file.stat().st_size for file in uploaded) < 8e6
    client = MlflowClient(mlflow_server.uri)
    experiment = client.get_experiment_by_name("by-job")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.status for run in runs) == ["FINISHED"] * 3
    trials = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert {run.data.params["defense.name"] for run in trials} == {"latent_autoencoder", "darken"}
    assert all({"privacy/mse", "attack/grey/mse"} <= run.data.metrics.keys() for run in trials)
    assert (kept / "by-job" / "pareto.png").is_file()
    assert not (unpacked / "runs").exists()
