"""How work on many parts is spread: over threads of this process, or over the cluster."""

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from clipray.config import Compute

Mapper = Callable[[Callable, list[tuple]], Iterable[Any]]
IN_PROCESS = 8  # parts that are not worth starting Ray for


def reader(compute: Compute) -> Mapper:
    """Make a mapper: threads for a few parts, Ray tasks for many; once Ray has started, it does all."""
    starting, started = threading.Lock(), threading.Event()

    def read(function: Callable, items: list[tuple]) -> Iterator[Any]:
        if len(items) <= IN_PROCESS and not started.is_set():
            return in_threads(function, items)
        from clipray.steps.cluster import connect, tasks

        with starting:
            connect(compute, verbose=False)
            started.set()
        done = dict(tasks(function, items, compute.decode_cpus, 0, compute.max_retries))
        return (done[position] for position in range(len(items)))

    return read


def in_threads(function: Callable, items: list[tuple]) -> Iterator[Any]:
    """Yield results in order, computed by threads of this process; for work that mostly waits."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        yield from pool.map(lambda item: function(*item), items)
