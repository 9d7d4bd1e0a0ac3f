"""The nodes of a cluster."""

from collections.abc import Mapping
from typing import NamedTuple


class Node(NamedTuple):
    """A node of a cluster.

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


def node_of(own: Mapping[str, float]) -> Node:
    """Read a node off its resources, by Ray's names of them."""
    return Node(own.get("CPU", 0.0), own.get("GPU", 0.0), own.get("memory", 0.0))


def largest_memory(cpus: float, gpus: float = 0.0) -> int:
    """Look up the most bytes that a task may ask for of a node that has its CPUs and GPUs; 0 where none has them."""
    fit = [node.memory for node in present() if node.cpus >= cpus and node.gpus >= gpus]
    return int(max(fit, default=0))
