"""The nodes of a cluster: those that are there, and the kinds that its autoscaler may add."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import yaml

BOOTSTRAP = "~/ray_bootstrap_config.yaml"  # where `ray up` puts its config on the head node


class Node(NamedTuple):
    """A node of a cluster, or one that an autoscaler may add.

    Attributes:
        cpus, gpus: that it has. memory: bytes that tasks and actors may ask for; 0: it does not say.
    """

    cpus: float
    gpus: float
    memory: float


def present() -> list[Node]:
    """Look up the nodes that are there."""
    import ray

    return [node_of(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def coming() -> list[Node]:
    """Look up what nodes an autoscaler may add, one of each kind, as far as it says; see `resources.limit`."""
    from ray._private.state import state

    told = state.get_cluster_config()
    groups = told.node_group_configs if told else ()
    kinds = [dict(group.resources) for group in groups if group.max_count]
    if not kinds:
        named = configured(Path(BOOTSTRAP).expanduser())
        kinds = [kind.get("resources") or {} for kind in named if kind.get("max_workers", 0)]
    return [node_of(own) for own in kinds]


def configured(path: Path) -> list[dict]:
    """Read the kinds of nodes of a config of `ray up`; none where there is no such file."""
    if not path.is_file():
        return []
    return list(yaml.safe_load(path.read_text()).get("available_node_types", {}).values())


def node_of(own: Mapping[str, float]) -> Node:
    """Read a node off its resources, by Ray's names of them."""
    return Node(own.get("CPU", 0.0), own.get("GPU", 0.0), own.get("memory", 0.0))


def largest_memory(cpus: float, gpus: float = 0.0) -> int:
    """Look up the most bytes that a task may ask for of a node that has its CPUs and GPUs; 0 where none has them."""
    fit = [node.memory for node in present() if node.cpus >= cpus and node.gpus >= gpus]
    return int(max(fit, default=0))
