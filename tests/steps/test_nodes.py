"""What the nodes of a cluster have."""

import pytest

from clipray.config import Compute
from clipray.steps.crews import decoding
from clipray.steps.nodes import largest_memory


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
