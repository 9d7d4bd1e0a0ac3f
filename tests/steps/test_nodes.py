"""What the nodes of a cluster have: those that are there, and those that may come."""

import pytest

from clipray.config import Compute
from clipray.steps import nodes
from clipray.steps.crews import decoding
from clipray.steps.nodes import Node, largest_memory

GB = 10**9


def test_a_head_without_cpus_does_not_count_for_what_tasks_may_ask_for(monkeypatch):
    """It runs none: what only it has would be waited for without end."""
    ray = pytest.importorskip("ray")
    resources = [
        {"memory": 64.0},
        {"CPU": 4.0, "memory": 8.0},
        {"CPU": 2.0, "GPU": 1.0, "memory": 4.0},
    ]
    there = [{"Alive": True, "Resources": own} for own in resources]
    gone = {"Alive": False, "Resources": {"CPU": 8.0, "memory": 99.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [*there, gone])
    assert (largest_memory(1), largest_memory(1, 0.25), largest_memory(16)) == (8, 4, 0)
    assert decoding(Compute(), [])["memory"] == 8


def test_kinds_of_nodes_that_an_autoscaler_may_add_count_too(monkeypatch, tmp_path):
    """As `ray up` says them; a kind of which there are none at most does not, and one without memory asks for none."""
    pytest.importorskip("ray")
    from ray._private.state import state
    from ray.core.generated.autoscaler_pb2 import ClusterConfig

    monkeypatch.setattr(state, "get_cluster_config", lambda: None)
    config = tmp_path / "ray_bootstrap_config.yaml"
    monkeypatch.setattr(nodes, "BOOTSTRAP", str(config))
    assert nodes.coming() == []
    config.write_text(
        "available_node_types:\n"
        "  head: {max_workers: 0, resources: {CPU: 8, memory: 1}}\n"
        "  cpu: {max_workers: 4, resources: {CPU: 16, memory: 22000000000}}\n"
        "  gpu: {max_workers: 2, resources: {CPU: 8, GPU: 4}}\n"
    )
    assert nodes.coming() == [Node(16, 0, 22 * GB), Node(8, 4, 0)]
    told = ClusterConfig()  # as KubeRay says it
    told.node_group_configs.add(resources={"CPU": 4, "memory": 8 * GB}, max_count=-1)
    told.node_group_configs.add(resources={"CPU": 64}, max_count=0)
    monkeypatch.setattr(state, "get_cluster_config", lambda: told)
    assert nodes.coming() == [Node(4, 0, 8 * GB)]
