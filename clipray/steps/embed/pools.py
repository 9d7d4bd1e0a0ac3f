"""How a cluster's CPUs and GPUs are shared out among the backbones' actor pools; arithmetic only."""

import math

from clipray.config import Compute, Pool
from clipray.errors import ConfigError


def share(
    costs: dict[str, float],
    cpus: float,
    gpus: float,
    compute: Compute,
    most_cpus: float = 0.0,
    most_gpus: float = 0.0,
) -> dict[str, Pool]:
    """One pool a backbone, checked against the cluster.

    Pools that the config names are taken as they are; the others share what is left by cost, so that all of them
    take about the same time per image. Where there are fewer devices than pools, actors share a device. Where the
    cluster can grow, so can they, by the same shares.

    Args:
        costs: measured seconds per image of each backbone that has work to do.
        cpus: the cluster's CPUs. gpus: its GPUs; 0 computes on CPUs.
        compute: the config's `compute`.
        most_cpus, most_gpus: that the cluster can grow to.

    Raises:
        ConfigError: the pools do not fit; pools that wait for each other would hang for half an hour first.
    """
    named = {name: compute.pools[name] for name in costs if name in compute.pools}
    free = {name: cost for name, cost in costs.items() if name not in named}
    named_cpus = compute.decode_cpus + sum(p.size * p.num_cpus for p in named.values())
    named_gpus = sum(pool.size * pool.num_gpus for pool in named.values())
    if gpus:
        pools = _on_gpus(free, gpus - named_gpus, cpus - named_cpus)
        more = most_gpus - named_gpus
    else:
        pools = _on_cpus(free, cpus - named_cpus)
        more = most_cpus - named_cpus
    pools = named | {name: pools[name] for name in free}
    check(pools, cpus, gpus, compute.decode_cpus)
    return {name: pools[name] for name in costs} | _grown(free, pools, more)


def _grown(costs: dict[str, float], pools: dict[str, Pool], units: float) -> dict[str, Pool]:
    """The pools with the sizes that they may grow to on that many devices; all actors take the same of one."""
    if not costs:
        return {}
    each = max(pools[name].num_gpus or pools[name].num_cpus for name in costs)
    seats = int(units / each + 1e-6) if each else 0
    if seats <= sum(pools[name].size for name in costs):
        return {}
    sizes = apportion(costs, seats)
    return {
        name: pools[name].model_copy(update={"max_size": max(size, pools[name].size)})
        for name, size in sizes.items()
    }


def _on_cpus(costs: dict[str, float], cpus: float) -> dict[str, Pool]:
    if not costs:
        return {}
    if cpus >= len(costs):
        return {
            name: Pool(size=size, num_cpus=1) for name, size in apportion(costs, int(cpus)).items()
        }
    each = math.floor(100 * max(0.0, cpus) / len(costs)) / 100
    return {name: Pool(size=1, num_cpus=each) for name in costs}


def _on_gpus(costs: dict[str, float], gpus: float, cpus: float) -> dict[str, Pool]:
    if not costs:
        return {}
    if gpus >= len(costs):
        sizes, gpu = apportion(costs, int(gpus)), 1.0
    else:
        together = math.ceil(len(costs) / max(1, int(gpus)))
        sizes, gpu = dict.fromkeys(costs, 1), math.floor(100 / together) / 100
    cpu = min(1.0, math.floor(100 * max(0.0, cpus) / sum(sizes.values())) / 100)
    return {name: Pool(size=size, num_cpus=cpu, num_gpus=gpu) for name, size in sizes.items()}


def apportion(costs: dict[str, float], seats: int) -> dict[str, int]:
    """Whole seats by cost, at least one each: every next one goes where most cost waits for a seat.

    >>> apportion({"small": 1.0, "large": 3.0}, 4)
    {'small': 1, 'large': 3}
    """
    sizes = dict.fromkeys(costs, 1)
    for _ in range(seats - len(costs)):
        sizes[max(costs, key=lambda name: costs[name] / sizes[name])] += 1
    return sizes


def check(pools: dict[str, Pool], cpus: float, gpus: float, decode_cpus: float) -> None:
    """`ConfigError` where the pools and one decoding task need more than the cluster has."""
    need_cpus = sum(pool.size * pool.num_cpus for pool in pools.values()) + decode_cpus
    need_gpus = sum(pool.size * pool.num_gpus for pool in pools.values())
    if need_cpus > cpus + 1e-6:
        raise ConfigError(
            f"the pools and decoding ask for {need_cpus:g} CPUs, the cluster has {cpus:g}: "
            f"lower compute.pools.<backbone>.size or num_cpus, or compute.decode_cpus (now {decode_cpus:g})"
        )
    if need_gpus > gpus + 1e-6:
        raise ConfigError(
            f"the pools ask for {need_gpus:g} GPUs, the cluster has {gpus:g}: "
            "lower compute.pools.<backbone>.size or num_gpus, or run fewer backbones at a time"
        )
