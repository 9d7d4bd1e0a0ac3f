"""A run notices that its cluster has become another one, and shares it out anew.

A pool's actors hold what they were given. Where a node goes, and none or one with less memory comes in its place, those
of some pools may fill what is left, so that others, or decoding, find no room and all of them wait for ever. Where
nodes join that nobody said would come, decoding takes their CPUs, and pools have no use for them.
"""

import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from typing import TypeVar

from clipray.config import Compute, Pool
from clipray.progress import say
from clipray.steps import resources

PATIENCE = 60.0  # seconds without a shard, on a smaller cluster, after which it is shared out anew
LOOK = 5.0  # seconds between looks
GROWN = 1.5  # times what pools can grow to, from which on a cluster is larger
SETTLED = 30.0  # seconds without another node, for they come one by one
WORTH = 300.0  # seconds of work left, from which on it pays to load all models again
SIGNAL = signal.SIGUSR2
# what actors ask for: by Ray's names, in what unit it is told, and the words for it
KINDS = {"CPU": (1, "CPUs"), "GPU": (1, "GPUs"), "memory": (1e9, "GB of memory")}
Item = TypeVar("Item")


class Changed(Exception):
    """The cluster is not the one that was shared out."""


class Shrunk(Changed):
    """The cluster has less than was shared out, and nothing moves."""


class Grown(Changed):
    """The cluster has far more than was shared out, and there is much to do."""


def shared_out(
    cards: Mapping[str, dict],
    compute: Compute,
    verbose: bool,
    left: int,
    work: Callable[[dict[str, Pool], str, bool], Generator[Item, None, None]],
) -> Iterator[Item]:
    """Share the cluster out among pools and yield what they do; share it anew where it has become another one.

    Args:
        cards: of each backbone that has work to do.
        left: how many items there will be.
        work: does what is to be done, with the pools by backbone and the device; where it is called again, which it is
            told, what is still to be done.
    """
    import ray

    again = False
    while True:
        shared = resources.pools(cards, compute, verbose)
        kind = "GPU" if shared.device == "cuda" else "CPU"
        fixed = set(cards) <= set(compute.pools)  # by the config, whatever the cluster has
        growth = Growth(kind, shared.most[kind], 0 if fixed else left)
        try:
            with (
                closing(work(shared.pools, shared.device, again)) as items,
                Watch(ray.cluster_resources) as watch,
            ):
                for item in watch.passed(items):
                    left -= 1
                    yield item
                    growth.look(ray.cluster_resources)
            return
        except Changed as change:
            say(f"{change}: sharing it out anew")
            again = True


class Growth:
    """Raises `Grown` where a cluster has far more than the pools can grow to, and the work left is worth it.

    Args:
        kind: the resource that pools compute with. most: how much of it they can grow to.
        items: that are to be done; 0: nothing is worth it.
        every, settled, worth: seconds, see above.
    """

    def __init__(
        self,
        kind: str,
        most: float,
        items: int,
        every: float = LOOK,
        settled: float = SETTLED,
        worth: float = WORTH,
    ):
        self.kind, self.most, self.items = kind, most, items
        self.every, self.settled, self.worth = every, settled, worth
        self.done, self.began = 0, time.monotonic()
        self.looked, self.since, self.had = self.began, self.began, most

    def look(self, look: Callable[[], Mapping[str, float]]) -> None:
        """Look at the cluster, now and then, after an item."""
        self.done += 1
        now = time.monotonic()
        if now - self.looked < self.every:
            return
        self.looked = now
        own = look().get(self.kind, 0.0)
        if own != self.had:
            self.had, self.since = own, now
        remaining = (self.items - self.done) * (now - self.began) / self.done
        if own < GROWN * self.most or now - self.since < self.settled or remaining < self.worth:
            return
        raise Grown(f"the cluster has {own:g} {self.kind}s, and was shared out with {self.most:g}")


class Watch:
    """Raises `Shrunk` out of an iterator that yields nothing while the cluster has less than at first.

    It waits for what no exception comes out of. So a thread looks at the cluster, and a signal ends the waiting; other
    threads than the main one get no signals, and wait as they do without it.

    Args:
        look: what the cluster has now, by resource.
        patience: seconds without an item. every: seconds between looks.
    """

    def __init__(
        self,
        look: Callable[[], Mapping[str, float]],
        patience: float = PATIENCE,
        every: float = LOOK,
    ):
        self.look, self.patience, self.every = look, patience, every
        self.waiting, self.moved, self.over = False, time.monotonic(), threading.Event()
        self.main = threading.current_thread() is threading.main_thread()
        self.had: Mapping[str, float] = {}

    def __enter__(self) -> "Watch":
        if self.main:
            self.had = dict(self.look())
            self.before = signal.signal(SIGNAL, self._raise)
            self.thread = threading.Thread(target=self._watch, daemon=True)
            self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.main:
            self.over.set()
            self.thread.join()
            signal.signal(SIGNAL, self.before)

    def passed(self, items: Iterator[Item]) -> Iterator[Item]:
        """Yield what comes, and raise `Shrunk` where nothing does on a smaller cluster."""
        end = object()
        while True:
            self.moved, self.waiting = time.monotonic(), True
            item = next(items, end)
            self.waiting = False
            if item is end:
                return
            yield item

    def _watch(self) -> None:
        while not self.over.wait(self.every):
            idle = self.waiting and time.monotonic() - self.moved > self.patience
            if idle and self._lost():
                signal.pthread_kill(threading.main_thread().ident, SIGNAL)

    def _lost(self) -> str:
        """Tell what the cluster had at first and has no more; empty where it has all."""
        now = self.look()
        less = [kind for kind in KINDS if now.get(kind, 0) < self.had.get(kind, 0)]
        told = []
        for kind in less:
            unit, words = KINDS[kind]
            told.append(f"{now.get(kind, 0) / unit:g} of {self.had[kind] / unit:g} {words}")
        return " and ".join(told)

    def _raise(self, *_: object) -> None:
        if self.waiting:  # or an item has come in between
            self.waiting = False
            raise Shrunk(f"nothing moves, and the cluster has {self._lost()} left")
