"""A cluster that its autoscaler builds: a head without CPUs, no worker at first, made-up GPUs when asked."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.heads import HEAD_PORTS, apart, end, free_ports, plain_environment, started

BIN = Path(sys.executable).parent
NODE = {"CPU": 3, "GPU": 2, "object_store_memory": 150_000_000}
COMMANDS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray")
# Ray's fake provider starts each "node" as a raylet of its own on this machine; its wheel lacks the example of this.
# There is no machine to log in to, so nothing is to be updated there.
PROVIDER = {
    "type": "fake_multinode",
    "use_node_id_as_ip": True,
    "disable_node_updaters": True,
    "disable_launch_config_check": True,
}
AUTOSCALING = {
    "cluster_name": "made-up",
    "max_workers": 1,
    "provider": PROVIDER,
    "available_node_types": {
        "ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0},
        "gpus": {"resources": NODE, "node_config": {}, "min_workers": 0, "max_workers": 1},
    },
    "head_node_type": "ray.head.default",
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 5,
    "auth": {"ssh_user": "nobody"},
    "file_mounts": {},
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    "worker_start_ray_commands": [],
} | {f"{name}_commands": [] for name in COMMANDS}

# The GPUs are made up, so models load on the CPU; where their actors stand is what is looked at.
CAMPAIGN = """
import sys
from pathlib import Path
import ray
from clipray import backbones
from clipray.config import Campaign
from clipray.steps import campaign as run
from clipray.steps import evaluations
from clipray.steps.embed import encode, texts
from clipray.progress import heartbeat

workspace = Path(sys.argv[1])


class Placed(encode.Embedder):
    def load(self, device, compiled):
        told = f"{device} {len(ray.get_gpu_ids())}"
        (workspace / f"{self.spec.name}.txt").write_text(told)
        return super().load("cpu", compiled)


ray.init(address=sys.argv[2], log_to_driver=False, logging_level="ERROR",
         runtime_env={"env_vars": {"PYTHONPATH": sys.argv[3]}})
print("START", ray.cluster_resources().get("CPU", 0))
original = texts.prepare
texts.prepare = lambda *parts: original(*parts[:3], "cpu", parts[4])
encode.Embedder = Placed
values = {"workspace": str(workspace), "datasets": ["colours"], "precision": "fp32", "seeds": 1}
values |= {"backbones": ["vit-p6-36", "rn-32"], "shots": (1,), "fusers": ["log_avg"], "limit": 60}
with heartbeat():
    todo = run.plan(Campaign(**values))
    run.prepare(todo)
    run.embed_images(todo)
    assert todo.failures == [], todo.failures
    places = evaluations.evaluate_datasets(todo)
print("DONE", list(places), ray.cluster_resources().get("GPU", 0))
"""


@pytest.fixture
def address(tmp_path):
    """A head node without CPUs whose autoscaler may add one node."""
    short = Path("/tmp") / f"clipray-auto-{os.getpid()}"
    ports = dict(zip(HEAD_PORTS, free_ports(len(HEAD_PORTS)), strict=True))
    config = tmp_path / "autoscaling.json"
    provider = PROVIDER | {"gcs_address": f"127.0.0.1:{ports['port']}"}
    config.write_text(json.dumps(AUTOSCALING | {"provider": provider}))
    environment = plain_environment(
        RAY_TMPDIR=str(short),
        RAY_AUTH_MODE="disabled",
        RAY_FAKE_CLUSTER="1",
        AUTOSCALER_UPDATE_INTERVAL_S="1",
        RAY_raylet_start_wait_time_s="120",
        PATH=f"{BIN}:{os.environ['PATH']}",
    )
    command = [BIN / "ray", "start", "--head", "--block", "--num-cpus=0", "--num-gpus=0"]
    command += [f"--autoscaling-config={config}", "--object-store-memory=100000000"]
    command += ["--disable-usage-stats", "--dashboard-host=127.0.0.1"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    process = None
    try:
        process = started(command, environment, tmp_path)
        yield f"127.0.0.1:{ports['port']}", environment
    finally:
        end(short)
        if process is not None:
            process.wait()
        subprocess.run(["rm", "-rf", str(short)], check=False)


def test_a_campaign_asks_for_gpus_and_uses_those_that_come(address, tmp_path):
    gcs, environment = address
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    done = apart(CAMPAIGN, str(workspace), gcs, environment=environment, timeout=500)
    assert "START 0" in done.stdout
    assert "DONE ['colours'] 2.0" in done.stdout
    assert "waiting for " in done.stderr
    placed = {path.stem: path.read_text() for path in workspace.glob("*.txt")}
    assert placed == dict.fromkeys(["vit-p6-36", "rn-32"], "cuda 1")
