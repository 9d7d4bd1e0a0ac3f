"""A run that waits for a node that is gone goes on with what is left; one that waits for other things waits on."""

import queue
import signal
import threading
import time

import pytest

from clipray.config import Compute, Pool
from clipray.steps import watch
from clipray.steps.resources import Shared
from clipray.steps.watch import SIGNAL, Grown, Growth, Shrunk, Watch


class Cluster:
    """What a cluster has, and work that comes through a queue, as Ray Data's results do."""

    def __init__(self):
        self.now = {"CPU": 3.0, "GPU": 1.0}
        self.done: queue.Queue = queue.Queue()

    def results(self):
        while (item := self.done.get()) is not None:
            yield item

    def later(self, seconds: float, step) -> None:
        threading.Timer(seconds, step).start()


@pytest.fixture
def cluster():
    return Cluster()


def watched(cluster: Cluster, patience: float = 0.3) -> list:
    with Watch(lambda: cluster.now, patience, every=0.05) as one:
        return list(one.passed(cluster.results()))


def test_a_smaller_cluster_on_which_nothing_moves_is_told(cluster):
    cluster.done.put("first")
    cluster.later(0.2, lambda: cluster.now.update(CPU=2.0))
    before, start = signal.getsignal(SIGNAL), time.monotonic()
    with pytest.raises(Shrunk, match="nothing moves, and the cluster has 2 of 3 CPUs left"):
        watched(cluster)
    assert 0.2 < time.monotonic() - start < 5
    assert signal.getsignal(SIGNAL) == before


def test_a_node_with_less_memory_in_the_place_of_another_one_is_told(cluster):
    """An actor asks for what the lost node had: by CPUs and GPUs there is room for it."""
    cluster.now["memory"] = 20e9
    cluster.later(0.2, lambda: cluster.now.update(memory=16e9))
    with pytest.raises(Shrunk, match="the cluster has 16 of 20 GB of memory left"):
        watched(cluster)


def test_slow_work_is_waited_for_where_the_cluster_has_all_that_it_had(cluster):
    cluster.later(1.0, lambda: cluster.done.put("late"))
    cluster.later(1.0, lambda: cluster.done.put(None))
    cluster.now["CPU"] = 2.0  # from the beginning
    assert watched(cluster) == ["late"]


def test_work_goes_on_where_something_comes_from_what_is_left(cluster):
    for number in range(8):
        cluster.later(0.15 * number, lambda number=number: cluster.done.put(number))
    cluster.later(0.1, lambda: cluster.now.update(CPU=2.0))
    cluster.later(1.2, lambda: cluster.done.put(None))
    assert watched(cluster) == list(range(8))


def test_the_consumer_may_take_its_time(cluster):
    for item in ("first", "second", None):
        cluster.done.put(item)
    with Watch(lambda: cluster.now, 0.1, every=0.02) as one:
        for _ in one.passed(cluster.results()):
            cluster.now["CPU"] = 1.0
            time.sleep(0.4)  # what the consumer does is not interrupted


def test_another_thread_waits_without_a_watch(cluster):
    cluster.later(0.5, lambda: cluster.done.put(None))
    found = []

    def run() -> None:
        cluster.now["CPU"] = 1.0
        found.append(watched(cluster, 0.1))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [[]]


def test_what_is_left_is_shared_out(cluster, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "cluster_resources", lambda: cluster.now)
    monkeypatch.setattr(watch, "Watch", lambda look: Watch(look, 0.3, every=0.05))
    shares = []

    def pools(cards, compute, verbose):
        shares.append(dict(cluster.now))
        size = int(cluster.now["CPU"])
        return Shared({"a": Pool(size=size, num_cpus=1)}, "cpu", dict(cluster.now))

    monkeypatch.setattr(watch.resources, "pools", pools)

    def work(own, device, again):
        assert again == (len(shares) > 1)
        if not again:
            yield "one shard"
            cluster.now["CPU"] = 2.0
            cluster.done.get()  # for ever
        yield from (f"shard {number} of {own['a'].size}" for number in range(2))

    found = list(watch.shared_out({"a": {}}, Compute(), False, 3, work))
    assert found == ["one shard", "shard 0 of 2", "shard 1 of 2"]
    assert [share["CPU"] for share in shares] == [3.0, 2.0]


@pytest.mark.parametrize(
    ("cpus", "left", "named", "shares"),
    [
        (8.0, 1000, False, [3.0, 8.0]),
        (4.0, 1000, False, [3.0]),  # one more is not worth loading all models again
        (8.0, 60, False, [3.0]),  # there is too little left
        (8.0, 1000, True, [3.0]),  # the config says how large the pools are
    ],
)
def test_a_larger_cluster_is_shared_out_anew(cluster, monkeypatch, cpus, left, named, shares):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "cluster_resources", lambda: cluster.now)
    limits = {"every": 0.02, "settled": 0.2, "worth": 1.0}
    monkeypatch.setattr(watch, "Growth", lambda *given: Growth(*given, **limits))
    seen, closed, done = [], [], []

    def pools(cards, compute, verbose):
        seen.append(cluster.now["CPU"])
        return Shared({"a": Pool(size=1, num_cpus=1)}, "cpu", {"CPU": cluster.now["CPU"]})

    monkeypatch.setattr(watch.resources, "pools", pools)

    def work(own, device, again):
        try:
            for number in range(len(done), 60):  # 0.6 s, and the others nobody waits for
                time.sleep(0.01)
                if number == 10:
                    cluster.now["CPU"] = cpus
                done.append(number)
                yield number
        finally:
            closed.append(again)

    compute = Compute(pools={"a": Pool(size=1)}) if named else Compute()
    found = list(watch.shared_out({"a": {}}, compute, False, left, work))
    assert found == list(range(60))  # nothing is done twice, and nothing is lost
    assert seen == shares
    assert closed == [False, True][: len(shares)]


def test_a_cluster_that_still_grows_is_waited_for():
    own = {"GPU": 2.0}
    growth = Growth("GPU", 2.0, 10**6, every=0.0, settled=0.3, worth=0.0)
    start = time.monotonic()

    def work() -> None:
        while True:
            time.sleep(0.02)
            own["GPU"] = min(10.0, 2.0 + (time.monotonic() - start) // 0.1)
            growth.look(lambda: own)

    with pytest.raises(Grown, match="the cluster has 10 GPUs, and was shared out with 2"):
        work()
    assert time.monotonic() - start > 0.8 + 0.3
