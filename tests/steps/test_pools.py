"""Sharing out a cluster: hand-worked cases, a fluid model of GPUs that take turns, and the check before launch."""

import numpy as np
import pytest
from scipy.optimize import linprog

from clipray.config import Compute, Pool
from clipray.errors import ConfigError
from clipray.steps.pools import Cost, apportion, busy, placed, share, share_processes

# GFLOPs of an image and 10⁶ bytes of half-precision weights: the nine backbones of the paper
NINE = {
    "RN50": (12, 77),
    "RN101": (19, 113),
    "RN50x4": (41, 174),
    "RN50x16": (106, 335),
    "RN50x64": (552, 840),
    "ViT-B-32": (8.8, 175),
    "ViT-B-16": (35, 172),
    "ViT-L-14": (162, 608),
    "ViT-L-14-336": (381, 610),
}


def costs(**seconds):
    return {name: Cost(value) for name, value in seconds.items()}


def test_each_pool_gets_cpus_by_cost():
    compute = Compute(decode_cpus=0.5)
    pools = share(costs(small=1.0, large=3.0), cpus=8.5, gpus=0, compute=compute)
    assert {name: pool.size for name, pool in pools.items()} == {"small": 2, "large": 6}
    assert all(pool.num_cpus == 1 and pool.num_gpus == 0 for pool in pools.values())


def test_more_pools_than_cpus_share_them():
    compute = Compute(decode_cpus=0.5)
    pools = share({name: Cost(1.0) for name in "abcde"}, cpus=2, gpus=0, compute=compute)
    assert all(pool == Pool(size=1, num_cpus=0.3) for pool in pools.values())


@pytest.mark.parametrize(("cpus", "processes"), [(1, 1), (2, 2), (4, 4)])
def test_where_cores_are_fewer_than_backbones_they_share_processes(cpus, processes):
    seconds = dict(zip("abcdefghi", (1, 1, 2, 1, 1, 2, 1, 1, 2), strict=True))
    pools = share({name: Cost(value) for name, value in seconds.items()}, cpus, 0, Compute())
    crews = share_processes(list(seconds), pools, seconds)
    assert [name for crew in crews for name in crew.names] == list(seconds)  # each once, in order
    assert len(crews) == processes
    held = sum(crew.pool.num_cpus for crew in crews)
    assert held == pytest.approx(sum(pool.num_cpus for pool in pools.values()))
    loads = [sum(seconds[name] for name in crew.names) for crew in crews]
    assert max(loads) - min(loads) <= max(seconds.values())


@pytest.mark.parametrize("seed", range(200))
def test_actors_find_a_node_each_and_decoding_a_place_wherever_they_are_put(seed):
    random = np.random.default_rng(seed)
    nodes = random.choice([1.0, 2.0, 3.0, 4.0], random.integers(2, 6)).tolist()
    seconds = {f"b{m}": float(random.uniform(1, 5)) for m in range(random.integers(1, 12))}
    compute = Compute(decode_cpus=float(random.choice([0.25, 0.5, 1.0])))
    pools = share({k: Cost(v) for k, v in seconds.items()}, sum(nodes), 0, compute)
    crews = [crew.pool for crew in share_processes(list(seconds), pools, seconds)]
    own = placed(crews, nodes, compute.decode_cpus)
    assert all(a.num_cpus <= b.num_cpus for a, b in zip(own, crews, strict=True))
    for _ in range(30):  # nodes as the worst scheduler fills them
        free = list(nodes)
        for size in random.permutation([pool.num_cpus for pool in own for _ in range(pool.size)]):
            fits = [node for node, left in enumerate(free) if left >= size - 1e-9]
            assert fits, (nodes, crews, own)
            free[random.choice(fits)] -= size
        if compute.decode_cpus < max(nodes):
            assert max(free) >= compute.decode_cpus - 1e-9, (nodes, crews, own)


def test_actors_keep_what_they_have_where_nothing_is_in_the_way():
    crews = [Pool(size=1, num_cpus=0.75), Pool(size=1, num_cpus=0.75)]
    assert placed(crews, [2.0], 0.5) == crews
    assert placed(crews, [2.0, 2.0], 0.5) == crews
    assert [pool.num_cpus for pool in placed(crews, [1.0, 1.0], 0.5)] == [0.5, 0.5]
    whole = [Pool(size=3, num_cpus=1), Pool(size=1, num_cpus=1)]
    assert placed(whole, [3.0, 2.0], 0.5) == whole


def test_one_process_has_both_cores_where_two_would_wait_for_each_other():
    uneven = {"rn50": 0.085, "vit-b-16": 0.2, "vit-b-32": 0.041}  # of two processes one is idle
    even = {"rn-32": 0.05, "rn-48": 0.14, "vit-p8": 0.09, "vit-p6": 0.09, "convnext": 0.21}
    for seconds, threads in ((uneven, [2]), (even, [1, 1])):
        pools = share({name: Cost(value) for name, value in seconds.items()}, 2, 0, Compute())
        crews = share_processes(list(seconds), pools, seconds)
        assert [crew.pool.threads for crew in crews] == threads


def test_backbones_with_a_core_or_a_gpu_have_their_own_processes():
    seconds = {"a": 1.0, "b": 1.0, "c": 1.0}
    for gpus in (0, 1):
        pools = share({name: Cost(1.0) for name in seconds}, 8, gpus, Compute())
        crews = share_processes(list(seconds), pools, seconds)
        assert [crew.names for crew in crews] == [("a",), ("b",), ("c",)]
        assert [crew.pool for crew in crews] == [pools[name] for name in seconds]


def test_a_shared_process_grows_with_its_members_pools():
    every = {name: Cost(1.0) for name in "abcde"}
    pools = share(every, cpus=1.5, gpus=0, compute=Compute(decode_cpus=0.5), most_cpus=10.5)
    (crew,) = share_processes(list(every), pools, dict.fromkeys(every, 1.0))
    assert crew.pool.max_size * crew.pool.num_cpus == pytest.approx(10)


def test_decoding_has_its_share_of_many_cpus():
    every = {"a": Cost(0.01, 0, 0.01), "b": Cost(0.02, 0, 0.01)}
    pools = share(every, cpus=100, gpus=0, compute=Compute())
    held = sum(pool.size * pool.num_cpus for pool in pools.values())
    assert 74 <= held <= 76  # decoding is a quarter of 0.04 seconds


def test_a_single_backbone_computes_with_both_cores_where_decoding_takes_little():
    pools = share({"a": Cost(0.1, 0, 0.005)}, cpus=2, gpus=0, compute=Compute())
    assert pools["a"] == Pool(size=1, num_cpus=1, threads=2)
    pools = share({"a": Cost(0.01, 0, 0.01)}, cpus=2, gpus=0, compute=Compute())
    assert pools["a"].threads == 0


def test_gpus_are_shared_out_whole_where_there_are_enough():
    pools = share(costs(a=1.0, b=1.0), cpus=64, gpus=4, compute=Compute())
    assert all(pool.size == 2 and pool.num_gpus == 1 for pool in pools.values())


@pytest.mark.parametrize("gpus", [3, 8])
def test_the_papers_backbones_keep_gpus_busy(gpus):
    every = {name: Cost(gflops / 1e3, memory) for name, (gflops, memory) in NINE.items()}
    pools = share(every, cpus=128, gpus=gpus, compute=Compute(gpu_memory=40 * 2**30))
    assert sum(pool.size * pool.num_gpus for pool in pools.values()) <= gpus
    seconds = {name: cost.seconds for name, cost in every.items()}
    sizes = {name: pool.size for name, pool in pools.items()}
    seats = int(1 / pools["RN50"].num_gpus)
    orders = [np.random.default_rng(seed).permutation(list(NINE)) for seed in range(20)]
    shares = [fluid(seconds, sizes, gpus, seats, order) for order in orders]
    assert min(shares) >= 0.9
    assert busy(seconds, sizes) <= min(shares)  # it is a bound


def fluid(seconds, sizes, gpus, seats, order):
    """The busy share of GPUs whose actors take turns, filled pool by pool: a linear program of their rates."""
    actors = [name for name in order for _ in range(sizes[name])]
    at = sorted({(name, place // seats) for place, name in enumerate(actors)})
    turns = [[seconds[name] * (gpu == own) for name, own in at] + [0] for gpu in range(gpus)]
    equal = [[float(name == one) for name, _ in at] + [-1] for one in seconds]
    goal = [0.0] * len(at) + [-1]
    found = linprog(goal, turns, [1] * gpus, equal, [0] * len(seconds))
    return -found.fun * sum(seconds.values()) / gpus


def test_models_that_fill_a_gpu_share_it_no_further_than_they_must():
    every = {f"m{i}": Cost(1.0 + i, 4000) for i in range(4)}
    pools = share(every, cpus=64, gpus=4, compute=Compute(gpu_memory=16 * 2**30))
    assert all(pool == Pool(size=1, num_cpus=1, num_gpus=1) for pool in pools.values())


def test_named_pools_are_taken_as_they_are_and_the_rest_shares_what_is_left():
    compute = Compute(decode_cpus=1, pools={"a": Pool(size=2, num_cpus=2)})
    pools = share(costs(a=1.0, b=1.0), cpus=8, gpus=0, compute=compute)
    assert pools["a"] == Pool(size=2, num_cpus=2)
    assert (pools["b"].size, pools["b"].num_cpus) == (3, 1)


@pytest.mark.parametrize(
    ("compute", "gpus", "words"),
    [
        (Compute(pools={"a": Pool(size=4, num_cpus=1)}), 0, "4.5 CPUs, the cluster has 4"),
        (
            Compute(pools={"a": Pool(size=3, num_cpus=0.1, num_gpus=1)}),
            2,
            "3 GPUs, the cluster has 2",
        ),
    ],
)
def test_pools_that_do_not_fit_are_refused_before_launch(compute, gpus, words):
    with pytest.raises(ConfigError, match=words):
        share(costs(a=1.0), cpus=4, gpus=gpus, compute=compute)


def test_apportion_equals_a_slow_search():
    """No other way of handing out the seats has a smaller greatest cost per seat."""
    from itertools import product

    costs, seats = {"a": 1.0, "b": 2.5, "c": 4.0}, 9
    best = min(
        max(cost / n for cost, n in zip(costs.values(), ways, strict=True))
        for ways in product(range(1, seats), repeat=3)
        if sum(ways) == seats
    )
    sizes = apportion(costs, seats)
    assert sum(sizes.values()) == seats
    assert max(costs[name] / sizes[name] for name in costs) == best


def test_pools_grow_by_the_same_shares_where_the_cluster_can():
    two = costs(small=1.0, large=3.0)
    pools = share(two, cpus=2.5, gpus=0, compute=Compute(decode_cpus=0.5), most_cpus=8.5)
    assert {name: (pool.size, pool.max_size) for name, pool in pools.items()} == {
        "small": (1, 2),
        "large": (1, 6),
    }
    # nine backbones on the first GPU take a ninth each; eight GPUs hold 72 of them
    nine = share(
        {f"m{n}": Cost(1.0) for n in range(9)}, 16, 1, Compute(), most_cpus=128, most_gpus=8
    )
    assert sum(pool.max_size * pool.num_gpus for pool in nine.values()) <= 8
    assert all(pool.max_size == 8 for pool in nine.values())
    fixed = share(two, cpus=8.5, gpus=0, compute=Compute(decode_cpus=0.5), most_cpus=8.5)
    assert all(pool.max_size == 0 for pool in fixed.values())
