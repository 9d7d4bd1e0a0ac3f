"""How a cluster's CPUs and GPUs are shared out among the backbones' actor pools; arithmetic only."""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from clipray.config import Compute, Pool
from clipray.errors import ConfigError

BUSY = 0.9  # of its time that a GPU works, at least, where seats can be made small enough for it
SEATS = 16  # actors on one GPU at most: each has a copy of its weights, and a process
WEIGHTS = 3.0  # memory that an actor takes, in sizes of its weights: activations and workspace beside them
PROCESS = 1000.0  # 10⁶ bytes of a GPU that each process takes for itself
# of the speed of as many processes that a process with several threads reaches, at least
THREADED = 0.75
NAMED = 8  # models that embed class names on one GPU at a time; what finds no room is tried alone
FOR_GPUS = 0.25  # of a cluster's CPUs at most that actors on GPUs hold; the others decode


class Cost(NamedTuple):
    """What one image costs a backbone.

    Attributes:
        seconds: measured, on whatever device. memory_mb: its weights, in 10⁶ bytes.
        decode_seconds: of one CPU, to read and crop the image; the same for all backbones.
    """

    seconds: float
    memory_mb: float = 0.0
    decode_seconds: float = 0.0


class Process(NamedTuple):
    """Backbones whose actors are one process, in the order in which they see a shard, and the pool of it."""

    names: tuple[str, ...]
    pool: Pool


def cost_of(card: dict) -> Cost:
    """Read a backbone's cost off its card."""
    seconds, memory = card["seconds_per_image"], card["memory_mb"]
    return Cost(seconds, memory, card.get("decode_seconds", 0.0))


def share(
    costs: dict[str, Cost],
    cpus: float,
    gpus: float,
    compute: Compute,
    most_cpus: float = 0.0,
    most_gpus: float = 0.0,
) -> dict[str, Pool]:
    """Give each backbone a pool, and check all of them against the cluster.

    Pools that the config names are taken as they are. The others share what is left by cost, so that all of them
    take about the same time per image. Decoding has a share of the CPUs, by its cost. GPUs are cut into equal seats,
    as small as it takes to keep them busy: equal seats fill a GPU in whatever order actors start. Where the cluster
    can grow, so can the pools, by the same shares.

    Args:
        costs: of each backbone that has work to do.
        cpus: the cluster's CPUs. gpus: its GPUs; 0 computes on CPUs.
        compute: the config's `compute`.
        most_cpus, most_gpus: that the cluster can grow to.

    Raises:
        ConfigError: the pools do not fit; pools that wait for each other would hang for half an hour first.
    """
    named = {name: compute.pools[name] for name in costs if name in compute.pools}
    unnamed = {name: cost for name, cost in costs.items() if name not in named}
    free = {name: cost.seconds for name, cost in unnamed.items()}
    named_cpus = compute.decode_cpus + sum(p.size * p.num_cpus for p in named.values())
    named_gpus = sum(pool.size * pool.num_gpus for pool in named.values())
    if gpus:
        most = max(1, min((seats_of(cost, compute) for cost in unnamed.values()), default=1))
        pools = _on_gpus(free, gpus - named_gpus, cpus - named_cpus, most)
        more = most_gpus - named_gpus
    else:
        decode = max((cost.decode_seconds for cost in costs.values()), default=0.0)
        kept = _for_decoding(free, decode, cpus - named_cpus)
        pools = _on_cpus(free, cpus - named_cpus - kept)
        own = cpus - named_cpus + compute.decode_cpus - kept
        pools = _with_threads(pools, own, decode / max(sum(free.values()) + decode, 1e-12))
        more = most_cpus - named_cpus
        more -= _for_decoding(free, decode, more)
    pools = named | {name: pools[name] for name in free}
    check(pools, cpus, gpus, compute.decode_cpus)
    return {name: pools[name] for name in costs} | _grown(free, pools, more)


def share_processes(
    order: Sequence[str], pools: Mapping[str, Pool], seconds: Mapping[str, float]
) -> list[Process]:
    """Let backbones that have less than a CPU each share processes, about as many as they have CPUs together.

    Each process imports torch and open_clip anew, and takes memory for them. Neighbours in the chain share one, with
    about the same work for each process. Where that leaves one of them idle for long, there are fewer processes, each
    with more threads. A shared pool grows with its members' pools.

    Args:
        order: the backbones as the chain has them. pools: of each backbone. seconds: that an image costs each.
    """
    small = [name for name in order if _is_small(pools[name])]
    cpus = sum(pools[name].num_cpus for name in small)
    most = max(1, math.ceil(cpus - 1e-6))
    seats = max(range(most, 0, -1), key=lambda number: _speed(small, seconds, number, cpus))
    seat = _seated(small, seconds, seats)
    shared = [tuple(names) for _, names in groupby(order, key=lambda name: seat.get(name, name))]
    threads = _threads(cpus, seats)
    return [Process(names, _together([pools[name] for name in names], threads)) for names in shared]


def placed(pools: Sequence[Pool], nodes: Sequence[float], decode: float) -> list[Pool]:
    """Let actors ask for less than they were given where they would fill every node, and leave no decoding task room.

    The sums of a cluster do not tell whether each actor finds a node, and a decoding task a place beside them: two
    nodes of one CPU hold two actors of three quarters, and then nothing of a half. It concerns single actors alone, and
    not where each takes one CPU: what takes whole ones leaves whole ones.

    Args:
        nodes: CPUs of each. decode: CPUs of a decoding task.
    """
    parts = [pool for pool in pools if pool.size == 1 and not pool.num_gpus]
    if len(nodes) < 2 or all(pool.num_cpus in (0, 1) for pool in parts):
        return list(pools)
    most = max(pool.num_cpus for pool in parts)
    room = [node - decode for node in nodes if node > decode] or list(nodes)
    # a size at which some node holds one actor more
    sizes = {free / count for free in room for count in range(1, len(parts) + 1)}
    fits = [size for size in {most, *sizes} if size <= most and _seats(room, size) >= len(parts)]
    scale = max(fits, default=most) / most
    return [
        pool.model_copy(update={"num_cpus": math.floor(1e4 * pool.num_cpus * scale) / 1e4})
        if pool in parts
        else pool
        for pool in pools
    ]


def _seats(room: Sequence[float], size: float) -> int:
    """Count the actors that nodes hold beside a decoding task on each; more than these find no place without one."""
    return sum(int(free / size + 1e-9) for free in room)


def _seated(names: Sequence[str], seconds: Mapping[str, float], seats: int) -> dict[str, int]:
    """Give each backbone one of some processes, in order."""
    whole = sum(seconds[name] for name in names) or 1.0
    seat, before = {}, 0.0
    for name in names:
        middle = before + seconds[name] / 2
        seat[name] = min(seats - 1, int(seats * middle / whole))
        before += seconds[name]
    return seat


def _speed(names: Sequence[str], seconds: Mapping[str, float], seats: int, cpus: float) -> float:
    """Tell how many cores' speed some processes reach, where the slowest sets the pace."""
    seat, threads = _seated(names, seconds, seats), _threads(cpus, seats)
    loads = [sum(seconds[name] for name in names if seat[name] == one) for one in range(seats)]
    each = threads * THREADED if threads > 1 else 1.0
    return each * sum(loads) / max(loads) if any(loads) else each


def _threads(cpus: float, seats: int) -> int:
    return max(1, round(cpus / seats))


def _is_small(pool: Pool) -> bool:
    return pool.size == 1 and pool.num_gpus == 0 and pool.num_cpus < 1


def _together(pools: Sequence[Pool], threads: int) -> Pool:
    """Make one pool of several of single actors, each of which computes with some threads."""
    if len(pools) == 1:
        return pools[0]
    cpus = math.fsum(pool.num_cpus for pool in pools)
    most = math.fsum(max(1, pool.max_size) * pool.num_cpus for pool in pools)
    sizes = int(most / cpus + 1e-6) if cpus else 1
    largest = sizes if sizes > 1 else 0
    return Pool(size=1, max_size=largest, num_cpus=round(cpus, 6), threads=threads)


def _grown(costs: dict[str, float], pools: dict[str, Pool], units: float) -> dict[str, Pool]:
    """Give the pools the sizes that they may grow to on that many devices; all actors of a pool take the same share."""
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


def seats_of(cost: Cost, compute: Compute) -> int:
    """Count the actors of a backbone that the memory of one GPU holds, one at least."""
    memory = WEIGHTS * cost.memory_mb + PROCESS
    return max(1, min(SEATS, int(compute.gpu_memory / 1e6 / memory)))


def turns(tasks: int, gpus: float) -> tuple[float, ...]:
    """Return the part of a GPU that each of some tasks takes, and what those take that find no room so.

    Each task on a GPU is a process of its own, which imports and loads for much longer than it computes.

    >>> turns(3, 0.0), turns(3, 4.0), turns(9, 1.0)
    ((0.0,), (1.0,), (0.125, 1.0))
    """
    if not gpus:
        return (0.0,)
    each = min(NAMED, math.ceil(tasks / max(1, int(gpus))))
    return (1.0,) if each <= 1 else (math.floor(1000 / each) / 1000, 1.0)


def _for_decoding(costs: dict[str, float], decode: float, cpus: float) -> int:
    """CPUs that are left to decoding, beyond the one task that it has in any case."""
    whole = sum(costs.values()) + decode
    return max(0, int(cpus * decode / whole)) if cpus >= 2 * len(costs) and whole else 0


def _on_cpus(costs: dict[str, float], cpus: float) -> dict[str, Pool]:
    if not costs:
        return {}
    if cpus >= len(costs):
        sizes = apportion(costs, int(cpus))
        return {name: Pool(size=size, num_cpus=1) for name, size in sizes.items()}
    each = math.floor(100 * max(0.0, cpus) / len(costs)) / 100
    return {name: Pool(size=1, num_cpus=each) for name in costs}


def _with_threads(pools: dict[str, Pool], cpus: float, decoding: float) -> dict[str, Pool]:
    """Let actors compute with the cores that would be idle: two on two cores where decoding takes little of them.

    Args:
        cpus: of the pools and of the one decoder. decoding: the part of all time that it takes.
    """
    actors = sum(pool.size for pool in pools.values())
    threads = round(cpus * (1 - decoding) / actors) if actors else 1
    if threads < 2:
        return pools
    return {name: pool.model_copy(update={"threads": threads}) for name, pool in pools.items()}


def _on_gpus(costs: dict[str, float], gpus: float, cpus: float, most: int) -> dict[str, Pool]:
    """Cut every GPU into as few equal seats as keep it busy; `most` fit on one, or more where it takes more."""
    if not costs:
        return {}
    whole = max(1, int(gpus))
    fewest = math.ceil(len(costs) / whole)  # every backbone has a seat, whatever its memory
    sizes, seats = {}, fewest
    most = fewest if whole == 1 else max(fewest, most)  # on one GPU all take turns as they are
    for seats in range(fewest, most + 1):
        sizes = apportion(costs, seats * whole)
        if busy(costs, sizes) >= BUSY:
            break
    gpu = 1.0 if seats == 1 else math.floor(1000 / seats) / 1000
    total = sum(sizes.values())
    cpu = min(1.0, math.floor(100 * FOR_GPUS * max(0.0, cpus) / total) / 100)
    return {name: Pool(size=size, num_cpus=cpu, num_gpus=gpu) for name, size in sizes.items()}


def busy(costs: dict[str, float], sizes: dict[str, int]) -> float:
    """The share of their time that all seats together work, where none gets the time that another leaves.

    >>> busy({"small": 1.0, "large": 3.0}, {"small": 1, "large": 2})  # 4 of 3 x 1.5 seconds
    0.8888888888888888
    """
    longest = max(costs[name] / size for name, size in sizes.items())
    return sum(costs.values()) / (longest * sum(sizes.values()))


def apportion(costs: dict[str, float], seats: int) -> dict[str, int]:
    """Deal out whole seats by cost, at least one each: the next seat goes to the most cost per seat.

    >>> apportion({"small": 1.0, "large": 3.0}, 4)
    {'small': 1, 'large': 3}
    """
    sizes = dict.fromkeys(costs, 1)
    for _ in range(seats - len(costs)):
        sizes[max(costs, key=lambda name: costs[name] / sizes[name])] += 1
    return sizes


def check(pools: dict[str, Pool], cpus: float, gpus: float, decode_cpus: float) -> None:
    """Raise `ConfigError` where the pools and one decoding task need more than the cluster has."""
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
