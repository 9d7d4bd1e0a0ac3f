"""Sharing out a cluster: hand-worked cases and the check before launch."""

import pytest

from clipray.config import Compute, Pool
from clipray.errors import ConfigError
from clipray.steps.embed.pools import apportion, share


def test_each_pool_gets_cpus_by_cost():
    pools = share({"small": 1.0, "large": 3.0}, cpus=8.5, gpus=0, compute=Compute(decode_cpus=0.5))
    assert {name: pool.size for name, pool in pools.items()} == {"small": 2, "large": 6}
    assert all(pool.num_cpus == 1 and pool.num_gpus == 0 for pool in pools.values())


def test_more_pools_than_cpus_share_them():
    pools = share(dict.fromkeys("abcde", 1.0), cpus=2, gpus=0, compute=Compute(decode_cpus=0.5))
    assert all(pool == Pool(size=1, num_cpus=0.3) for pool in pools.values())


def test_gpus_are_shared_out_whole_where_there_are_enough():
    pools = share({"a": 1.0, "b": 1.0}, cpus=16, gpus=4, compute=Compute())
    assert all(pool.size == 2 and pool.num_gpus == 1 for pool in pools.values())


def test_nine_pools_fit_on_four_gpus():
    pools = share({f"m{i}": 1.0 for i in range(9)}, cpus=16, gpus=4, compute=Compute())
    gpu = next(iter(pools.values())).num_gpus
    assert gpu == 0.33  # three actors to a GPU: 9 actors need 3 GPUs of the 4
    assert sum(pool.size * pool.num_gpus for pool in pools.values()) <= 4


def test_named_pools_are_taken_as_they_are_and_the_rest_shares_what_is_left():
    compute = Compute(decode_cpus=1, pools={"a": Pool(size=2, num_cpus=2)})
    pools = share({"a": 1.0, "b": 1.0}, cpus=8, gpus=0, compute=compute)
    assert pools["a"] == Pool(size=2, num_cpus=2)
    assert pools["b"] == Pool(size=3, num_cpus=1)


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
        share({"a": 1.0}, cpus=4, gpus=gpus, compute=compute)


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
    costs = {"small": 1.0, "large": 3.0}
    pools = share(costs, cpus=2.5, gpus=0, compute=Compute(decode_cpus=0.5), most_cpus=8.5)
    assert {name: (pool.size, pool.max_size) for name, pool in pools.items()} == {
        "small": (1, 2),
        "large": (1, 6),
    }
    # nine backbones on the first GPU take a ninth each; eight GPUs hold 72 of them
    nine = share({f"m{n}": 1.0 for n in range(9)}, 16, 1, Compute(), most_cpus=128, most_gpus=8)
    assert sum(pool.max_size * pool.num_gpus for pool in nine.values()) <= 8
    assert all(pool.max_size == 8 for pool in nine.values())
    fixed = share(costs, cpus=8.5, gpus=0, compute=Compute(decode_cpus=0.5), most_cpus=8.5)
    assert all(pool.max_size == 0 for pool in fixed.values())
