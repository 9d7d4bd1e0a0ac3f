"""Where the time of embedding went: seconds of decoding and of each backbone, how busy pools were, bytes moved."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from clipray.config import Pool

DECODING = "decoding"
MEGABYTE = 1e6


@contextmanager
def timed(task: dict[str, Any], name: str) -> Iterator[None]:
    """Note in a shard's task when it began and ended, in seconds since 1970."""
    begin = time.time()
    try:
        yield
    finally:
        task.setdefault("spent", {})[name] = begin, time.time()


def metered(data: Iterable[Any], task: dict[str, Any]) -> Iterator[Any]:
    """Pass images on, and count their bytes in the task."""
    for one in data:
        if isinstance(one, bytes):
            task["read"] = task.get("read", 0) + len(one)
        yield one


class Spent:
    """Sums over the shards of one run, which may embed in several rounds."""

    def __init__(self):
        self.pools: dict[str, Pool] = {}
        self.seconds: dict[str, float] = {}
        self.moved = {"read": 0, "written": 0}
        self.start = 0.0

    def begin(self, pools: Mapping[str, Pool]) -> None:
        """Begin a round with these pools, by backbone."""
        self.start = self.start or time.perf_counter()
        self.pools |= pools

    def add(self, task: Mapping[str, Any]) -> None:
        """Add what a worker tells of a shard."""
        for name, (begin, end) in task.get("spent", {}).items():
            self.seconds[name] = self.seconds.get(name, 0.0) + end - begin
        for name in self.moved:
            self.moved[name] += task.get(name, 0)

    def facts(self) -> dict[str, Any]:
        """Sum up, as JSON holds it: seconds, the `busy` share of each backbone's actors, bytes."""
        lasted = time.perf_counter() - self.start
        busy = {
            name: self.seconds[name] / (lasted * pool.size)
            for name, pool in self.pools.items()
            if name in self.seconds
        }
        return {
            "seconds": round(lasted, 1),
            "worked_seconds": {name: round(value, 1) for name, value in self.seconds.items()},
            "busy": {name: round(value, 3) for name, value in busy.items()},
            "bytes_read": self.moved["read"],
            "bytes_written": self.moved["written"],
        }


def words(facts: Mapping[str, Any]) -> str:
    """Write a sum in one line, the longest first.

    >>> words({"worked_seconds": {"decoding": 2.0, "rn-32": 30.0}, "busy": {"rn-32": 0.75},
    ...        "bytes_read": 5_000_000, "bytes_written": 1_200_000})
    'where the time went: rn-32 30 s (busy 75 %), decoding 2 s; 5.0 MB of images read, 1.2 MB of embeddings written'
    """
    parts = []
    for name, seconds in sorted(facts["worked_seconds"].items(), key=lambda one: -one[1]):
        busy = facts["busy"].get(name)
        parts.append(f"{name} {seconds:.0f} s" + (f" (busy {100 * busy:.0f} %)" if busy else ""))
    read, written = (facts[key] / MEGABYTE for key in ("bytes_read", "bytes_written"))
    return (
        f"where the time went: {', '.join(parts)}; {read:.1f} MB of images read, "
        f"{written:.1f} MB of embeddings written"
    )
