"""A run whose pools wait for a node that is gone notices it, and shares out what is left.

A pool's actors hold what they were given. Where a node goes and none comes in its place, those of some pools may fill
what is left, so that others, or decoding, find no room and all of them wait for ever.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from clipray.config import Compute, Pool
from clipray.progress import say
from clipray.steps import resources

PATIENCE = 60.0  # seconds without a shard, on a smaller cluster, after which it is shared out anew
LOOK = 5.0  # seconds between looks
SIGNAL = signal.SIGUSR2
Item = TypeVar("Item")


class Shrunk(Exception):
    """The cluster has less than was shared out, and nothing moves."""


def shared_out(
    cards: Mapping[str, dict],
    compute: Compute,
    verbose: bool,
    work: Callable[[dict[str, Pool], str, bool], Iterator[Item]],
) -> Iterator[Item]:
    """Share the cluster out among pools and yield what they do; share it anew where it has become smaller and waits.

    Args:
        cards: of each backbone that has work to do.
        work: does what is to be done, with the pools by backbone and the device; where it is called again, which it is
            told, what is still to be done.
    """
    import ray

    again = False
    while True:
        pools, device = resources.pools(cards, compute, verbose)
        try:
            with Watch(ray.cluster_resources) as watch:
                yield from watch.passed(work(pools, device, again))
            return
        except Shrunk as less:
            say(f"{less}: sharing out what is left")
            again = True


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
        kinds = [kind for kind in ("CPU", "GPU") if now.get(kind, 0) < self.had.get(kind, 0)]
        told = [f"{now.get(kind, 0):g} of {self.had[kind]:g} {kind}s" for kind in kinds]
        return " and ".join(told)

    def _raise(self, *_: object) -> None:
        if self.waiting:  # or an item has come in between
            self.waiting = False
            raise Shrunk(f"nothing moves, and the cluster has {self._lost()} left")
