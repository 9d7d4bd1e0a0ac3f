"""A cluster that starts with nothing: what is missing is asked for and waited for, and nodes that join are used."""

import os

from clipray.steps import resources
from tests.heads import apart

# In a process of its own: the other tests of a session share a Ray that has CPUs from the start.
LATE = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
import ray
from ray.cluster_utils import Cluster
from clipray.config import Campaign, Compute
from clipray.errors import ClusterError
from clipray.progress import heartbeat
from clipray.steps import campaign as run
from clipray.steps import resources

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR",
         runtime_env={"env_vars": {"PYTHONPATH": sys.argv[2]}})
assert "CPU" not in ray.cluster_resources()


def work():
    values = {"workspace": sys.argv[1], "datasets": ["colours"], "backbones": ["vit-p6-36"]}
    todo = run.plan(Campaign(**values, precision="fp32", shots=(1,), seeds=1))
    run.prepare(todo)
    run.embed_images(todo)
    assert todo.failures == [], todo.failures
    assert run.plan(todo.campaign).images == 0
    return resources.obtain(Compute(), False, cpus=1)


with heartbeat(), ThreadPoolExecutor(1) as threads:
    try:
        resources.wait({"CPU": 1}, patience=1)
    except ClusterError as error:
        print("TOLD", error)
    working = threads.submit(work)
    time.sleep(3)
    cluster.add_node(num_cpus=2)  # here, for a node starts in the main thread alone
    own = working.result()
print("OWN", own.device, own.cpus)
ray.shutdown()
cluster.shutdown()
"""


def test_a_head_without_cpus_waits_for_its_first_worker(tmp_path):
    done = apart(LATE, str(tmp_path / "workspace"), environment=dict(os.environ), timeout=400)
    assert "TOLD 1 CPUs did not come in 1 s: the cluster has 0 CPUs" in done.stdout
    assert "OWN cpu 2.0" in done.stdout
    assert "waiting for 1 CPUs: the cluster has 0 CPUs (asked the autoscaler)" in done.stderr


def test_what_ray_up_may_start_is_read_from_its_config(tmp_path):
    config = tmp_path / "ray_bootstrap_config.yaml"
    assert resources.of_config(config) == {}
    config.write_text(
        "available_node_types:\n"
        "  head: {max_workers: 0, resources: {CPU: 8}}\n"
        "  cpu: {max_workers: 4, resources: {CPU: 16}}\n"
        "  gpu: {max_workers: 2, resources: {CPU: 8, GPU: 4}}\n"
    )
    assert resources.of_config(config) == {"CPU": 80.0, "GPU": 8.0}
