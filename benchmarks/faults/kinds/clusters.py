"""A node that dies, and an object store that is away."""

from __future__ import annotations

import os
import signal
import time
import uuid

from benchmarks.faults.experiment import NAME
from benchmarks.faults.nodes import ENVIRONMENT, two_nodes
from benchmarks.faults.servers import free_port
from benchmarks.faults.stage import Stage, fault
from fedveil.orchestrator.run.mirror import Mirror
from fedveil.orchestrator.run.place import Place


@fault("node", "one of two nodes killed", "run")
def node_killed(stage: Stage) -> None:
    """What it had under way is replayed on the other."""
    stage.environment |= {key: ENVIRONMENT[key] for key in ("RAY_AUTH_MODE", "OMP_NUM_THREADS")}
    with two_nodes(stage.folder) as (address, raylet):
        one_each = {"resources": {"workers": 2, "cpus_per_worker": 1}}
        command = stage.start("run", "--ray", address, settings=one_each)
        stage.anywhen(command)
        os.kill(raylet, signal.SIGKILL)
        stage.finish(command)


@fault("store", "the object store of runs_dir away for a while", "sweep")
def store_away(stage: Stage) -> None:
    """The copy of the runs there counts, not the folder here."""
    import boto3
    from moto.server import ThreadedMotoServer

    port, bucket = free_port(), f"hospital-{uuid.uuid4().hex}"
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    stage.environment |= keys
    where = f"s3://test:test@{bucket}/runs?scheme=http&endpoint_override=127.0.0.1:{port}&region=us-east-1"
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    try:
        client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        client.create_bucket(Bucket=bucket)
        command = stage.start("sweep", "--runs-dir", where)
        stage.anywhen(command)
        server.stop()
        time.sleep(stage.chance.uniform(5, 30))
        server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
        server.start()
        stage.finish(command)
        stage.runs = stage.folder / "copy"
        Mirror(stage.runs / NAME, Place(where.replace("/runs?", f"/runs/{NAME}?"))).fetch()
    finally:
        server.stop()
