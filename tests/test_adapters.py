"""The examples for other frameworks, each in an environment with the real package."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ADAPTERS = ROOT / "examples" / "adapters"
REQUIRED = os.environ.get("FEDVEIL_PEERS") == "required"
"""Where the registry is known to be within reach, as in CI, a missing environment is a fault."""
UNREACHED = re.compile(r"error sending request|dns error|timed out|connect error", re.IGNORECASE)
LONGEST = 600
"""Seconds after which a simulation hangs."""


def environment(peer: str) -> Path:
    """The Python of a peer's environment, made where it is not there yet; skips only what no registry gives."""
    if not (ROOT / ".venv" / "bin" / "uv").exists() and not REQUIRED:
        pytest.skip("there is no .venv as make makes it")
    made = subprocess.run(
        ["sh", str(ADAPTERS / "environments.sh"), peer], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if made.returncode:
        if UNREACHED.search(made.stderr) and not REQUIRED:
            pytest.skip(f"the package registry is out of reach: {made.stderr.strip().splitlines()[0]}")
        pytest.fail(f"the environment cannot be made:\n{made.stderr}")
    return ROOT / f".venv-{peer}-adapter" / "bin" / "python"


def run(python: Path, script: Path, folder: Path) -> str:
    """Run a script to its end and return what it printed, in a process group that is gone afterwards."""
    # Short: Ray's sockets lie below it, whose paths may not be long.
    ray = tempfile.mkdtemp(prefix="ray-")
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [str(python), str(script)],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "RAY_TMPDIR": ray, **quiet},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=LONGEST)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(ray, ignore_errors=True)
    assert process.returncode == 0, output
    return output


@pytest.mark.slow
@pytest.mark.parametrize("script", [pytest.param("flower_mod.py", marks=pytest.mark.long), "flower_strategy.py"])
def test_a_flower_client_and_a_flower_server_audit_each_round_of_a_simulation(tmp_path: Path, script: str) -> None:
    output = run(environment("flower"), ADAPTERS / script, tmp_path)
    rounds = re.findall(r"^round (\d): mean squared error (\S+)$", output, re.MULTILINE)
    assert [number for number, _ in rounds] == ["1", "2"]
    # One image behind each update comes back; a grey one would be 0.05 off or more.
    assert all(float(error) < 0.01 for _, error in rounds)


@pytest.mark.slow
def test_an_nvflare_filter_audits_each_round_of_a_simulation(tmp_path: Path) -> None:
    run(environment("nvflare"), ADAPTERS / "nvflare_job.py", tmp_path)
    record = tmp_path / "leak_workspace" / "server" / "simulate_job" / "metrics" / "round_metrics.jsonl"
    rounds = [json.loads(line) for line in record.read_text().splitlines()]
    assert [sorted(site["name"] for site in one["sites"]) for one in rounds] == [["site-1", "site-2"]] * 2
    errors = [site["metrics"] for one in rounds for site in one["sites"]]
    assert all(metrics[0]["name"] == "leak_mse" for metrics in errors)
    assert max(metrics[0]["value"] for metrics in errors) < 0.01


def test_the_examples_are_short() -> None:
    scripts = [*ADAPTERS.glob("*.py"), ROOT / "examples" / "audit_opacus_update.py"]
    lengths = {path.name: len(path.read_text().splitlines()) for path in scripts}
    assert lengths.keys() > {"flower_mod.py", "flower_strategy.py", "nvflare_filter.py", "audit_opacus_update.py"}
    for framework in ("flower", "nvflare"):  # no adapters: what these join
        del lengths[f"{framework}_federation.py"]
    assert max(lengths.values()) < 40
