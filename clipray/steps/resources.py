"""What a cluster has, may get, and is asked for.

A cluster may start with no worker at all, so nothing is decided from what is there at the moment.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from clipray.config import Compute, Pool
from clipray.errors import ClusterError
from clipray.progress import doing, say
from clipray.steps.nodes import BOOTSTRAP, configured
from clipray.steps.pools import cost_of, share

PATIENCE = 1800.0  # seconds that the first CPU and GPU are waited for
MORE = 180.0  # seconds that all that was asked for is waited for, where some of each is there
LOOK = 1.0  # seconds between looks


class Resources(NamedTuple):
    """CPUs and GPUs of a cluster.

    Attributes:
        device: "cuda" or "cpu".
        cpus, gpus: there now.
        most_cpus, most_gpus: that it can grow to, as far as its autoscaler says.
    """

    device: str
    cpus: float
    gpus: float
    most_cpus: float
    most_gpus: float


def obtain(compute: Compute, verbose: bool, cpus: float = 1.0, gpus: float = 0.0) -> Resources:
    """Join the cluster, ask for a floor of resources, and wait until they are there.

    Args:
        cpus: wanted. gpus: wanted where the device is "cuda"; one at least is. Where the cluster cannot grow as far,
            it is asked for all that it can have.

    Raises:
        ConfigError: the config says "cuda", nothing has a GPU, and nothing can add one.
        ClusterError: not even one of each has come in time.
    """
    from clipray.steps import cluster

    own = cluster.connect(compute, verbose)
    most = {name: max(own.get(name, 0), limit(name)) for name in ("CPU", "GPU")}
    device = cluster.device(compute, {"GPU": most["GPU"]})
    floor = {"CPU": _at_most(cpus, most["CPU"])}
    if device == "cuda":
        floor["GPU"] = _at_most(max(gpus, 1.0), most["GPU"])
    own = wait(floor)
    gpu = own.get("GPU", 0.0) if device == "cuda" else 0.0
    return Resources(device, own["CPU"], gpu, max(own["CPU"], most["CPU"]), max(gpu, most["GPU"]))


class Shared(NamedTuple):
    """How a cluster is shared out.

    Attributes:
        pools: by backbone. device: "cuda" or "cpu".
        most: by resource, how much of it the pools can grow to.
    """

    pools: dict[str, Pool]
    device: str
    most: dict[str, float]


def pools(cards: Mapping[str, dict], compute: Compute, verbose: bool) -> Shared:
    """Obtain an actor of each backbone and a decoder, and share them out.

    Args:
        cards: of each backbone that has work to do.
    """
    costs = {name: cost_of(card) for name, card in cards.items()}
    own = obtain(compute, verbose, len(costs) + 1, len(costs))
    shared = share(costs, own.cpus, own.gpus, compute, own.most_cpus, own.most_gpus)
    return Shared(shared, own.device, {"CPU": own.most_cpus, "GPU": own.most_gpus})


def _at_most(wanted: float, most: float) -> float:
    """Limit what is asked for to what can be had; one at least, because a cluster of a head alone starts with none."""
    return max(1.0, min(wanted, most))


def limit(resource: str) -> float:
    """Look up how much of a resource an autoscaler can bring; 0 where there is none, or where nothing says so.

    KubeRay's autoscaler tells the cluster. That of `ray up` does not, but its config lies on the head node, where a
    submitted job runs.
    """
    from ray._private.state import state

    told = state.get_max_resources_from_cluster_config() or of_config(Path(BOOTSTRAP).expanduser())
    return float(told.get(resource, 0))


def of_config(path: Path) -> dict[str, float]:
    """Add up what all nodes bring that a config of `ray up` allows; empty where there is no such file."""
    most: dict[str, float] = {}
    for node in configured(path):
        for name, count in (node.get("resources") or {}).items():
            most[name] = most.get(name, 0.0) + count * node.get("max_workers", 0)
    return most


def wait(
    floor: Mapping[str, float],
    patience: float = PATIENCE,
    more: float = MORE,
    look: Callable[[], Mapping[str, float]] | None = None,
) -> dict[str, float]:
    """Ask the autoscaler for a floor of resources, and wait; a line says for what, and for how long so far.

    Args:
        floor: how much of each resource.
        patience: seconds to wait for one of each. more: seconds to wait for the floor.
        look: what the cluster has; `ray.cluster_resources` by default.

    Returns:
        what the cluster has now.

    Raises:
        ClusterError: not even one of each is there after all that time.
    """
    import ray
    from ray.autoscaler.sdk import request_resources

    look = ray.cluster_resources if look is None else look
    own = dict(look())
    if _reached(own, floor):
        return own
    # one bundle a unit: nodes of any size can bring them
    bundles = [{name: 1} for name, count in floor.items() for _ in range(round(count))]
    request_resources(bundles=bundles)
    start = time.monotonic()
    say(f"waiting for {_words(floor)}: the cluster has {_words(own, floor)} (asked the autoscaler)")

    def told() -> str:
        return f"waiting for {_words(floor)}"

    one = dict.fromkeys(floor, 1.0)
    try:
        with doing(told):
            while not _reached(own, floor):
                waited = time.monotonic() - start
                if waited > more and _reached(own, one):
                    break  # a floor that does not come whole is none the worse
                if waited > patience:
                    raise ClusterError(
                        f"{_words(floor)} did not come in {patience:.0f} s: the cluster has {_words(own, floor)}.\n"
                        "  Start a worker (`ray start --address=…`), or see what the autoscaler says (`ray status`)"
                    )
                time.sleep(LOOK)
                own = dict(look())
    finally:
        request_resources(bundles=[])  # the work itself keeps what it uses
    say(f"the cluster has {_words(own, floor)} after {time.monotonic() - start:.0f} s")
    return own


def _reached(own: Mapping[str, float], floor: Mapping[str, float]) -> bool:
    return all(own.get(name, 0) >= count for name, count in floor.items())


def _words(counts: Mapping[str, float], floor: Mapping[str, float] | None = None) -> str:
    names = counts if floor is None else floor
    return " and ".join(f"{counts.get(name, 0):g} {name}s" for name in names)
