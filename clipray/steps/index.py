"""Which images a split holds: every image hashed and numbered once, before any model is loaded."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from clipray import sources
from clipray.config import Compute, Dataset
from clipray.store import Store

Mapper = Callable[[Callable, list[tuple]], Iterable[Any]]
PART = "index.parquet"
IN_PROCESS = 64  # chunks that are not worth starting Ray for
VERSION = 1  # of how bytes are hashed and numbered


@dataclass(frozen=True)
class Index:
    """A split's images: where each lies (`schema.INDEX`), in the order of the source."""

    dataset: str
    split: str
    chunks: list[sources.Chunk]
    table: pa.Table

    @property
    def content(self) -> str:
        """A digest of all image ids and labels, whatever their order: equal for equal collections anywhere."""
        ids, labels = self.table["image_id"].to_pylist(), self.table["label"].to_pylist()
        lines = sorted(f"{image_id} {label}" for image_id, label in zip(ids, labels, strict=True))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]

    def __len__(self) -> int:
        return len(self.table)

    def shards(self, rows: int) -> Iterator[tuple[str, pa.Table]]:
        """Deterministic parts of at most `rows` images, with their file names."""
        for start in range(0, len(self.table), rows):
            yield f"{start:09d}.parquet", self.table.slice(start, rows)


def index(
    store: Store, dataset: Dataset, split: str, data_root: str, mapper: Mapper, limit: int = 0
) -> Index:
    """The index of a split, read from the store if its source has not changed, else made and kept there.

    Args:
        store: where it is kept.
        dataset: the catalogue's entry.
        split: "train" or "test".
        data_root: what relative URIs lie below.
        mapper: how the chunks are read: `in_threads`, or Ray tasks.
        limit: images to take of it, evenly over classes; 0 for all.
    """
    chunks = sources.listing(dataset, split, data_root)
    what = {"listing": sources.digest(chunks), "version": VERSION}
    address = store.address("index", dataset.name, split, what=what)
    if store.manifest(address) is None:
        parts = mapper(sources.index, list(enumerate(chunks)))
        table = sources.number_repeats(list(parts))
        store.write_table(f"{address}/{PART}", table)
        store.finish(address, what, chunks=len(chunks), images=len(table))
    table = store.read_table(f"{address}/{PART}")
    return Index(dataset.name, split, chunks, evenly(table, limit) if limit else table)


def evenly(table: pa.Table, limit: int) -> pa.Table:
    """At most `limit` rows, evenly over labels and chosen by image id, in the table's own order."""
    frame = table.select(["image_id", "label"]).to_pandas()
    frame = frame.sort_values("image_id", kind="stable")
    frame["rank"] = frame.groupby("label", dropna=False).cumcount()
    chosen = frame.sort_values(["rank", "image_id"], kind="stable").index[:limit]
    return table.take(sorted(chosen))


def reader(compute: Compute) -> Mapper:
    """Threads for a few chunks, Ray tasks over the cluster for many."""

    def read(function: Callable, items: list[tuple]) -> Iterator[Any]:
        if len(items) <= IN_PROCESS:
            return in_threads(function, items)
        from clipray.steps.cluster import connect, tasks

        connect(compute, verbose=False)
        done = dict(tasks(function, items, compute.decode_cpus, 0, compute.max_retries))
        return (done[position] for position in range(len(items)))

    return read


def in_threads(function: Callable, items: list[tuple]) -> Iterator[Any]:
    """Results in order, computed by threads of this process: for work that mostly waits."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        yield from pool.map(lambda item: function(*item), items)
