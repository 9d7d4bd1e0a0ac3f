"""Ids of images that are found while these are embedded: kept shard by shard, until those of a whole split are known.

An id is a hash of an image's bytes. To read the images for their ids alone would be to read them all twice.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from clipray import schema, sources
from clipray.artefacts import index as parts
from clipray.artefacts.index import Counts, Index, Place, Shard
from clipray.store import Store

PREFIX = "found-"
READERS = 8  # files that are read at once


class Finder:
    """The rows of a shard, and their ids once its images have passed.

    Args:
        place: of the index, see `Index.place`. piece: of the shard, all but its name.
        rows: of the shard, as the index has them. They have ids already where its images were read before.
    """

    def __init__(self, store: Store, place: Place, piece: Sequence[int], rows: pa.Table):
        self.store, self.rows = store, rows
        self.path, self.passed = _path(place.address, piece[0], piece[2]), None
        if rows["image_id"].null_count:
            known = _known(store, self.path)
            self.rows = rows if known is None else known
            self.passed = [] if known is None else None

    def passing(
        self, data: Iterable[bytes | Exception | None]
    ) -> Iterable[bytes | Exception | None]:
        """Pass the shard's images on, in the order of its rows."""
        return data if self.passed is None else sources.identifying(data, self.rows, self.passed)

    def found(self) -> pa.Table:
        """Return the rows with their ids, and keep these for `merged`; all images must have passed."""
        if self.passed is not None:
            self.rows = pa.Table.from_pylist(self.passed, schema=schema.INDEX)
            self.store.write_table(self.path, self.rows)
            self.passed = None
        return self.rows


def merged(store: Store, place: Place, shards: Sequence[Shard]) -> Counts:
    """Give the rows of a part of an index the ids that were found; what nobody has read is read now.

    Args:
        place: of the index. shards: all of the part.
    """
    with ThreadPoolExecutor(READERS) as threads:
        tables = list(threads.map(lambda shard: _identified(store, place, shard), shards))
    table = pa.concat_tables(tables)
    store.write_table(f"{place.address}/{parts.part_name(shards[0].part)}", table)
    return parts.count(table, {})


def clear(store: Store, address: str) -> None:
    """Remove what workers have kept, once the index has all ids."""
    store.clear(address, PREFIX)


def by_part(index: Index) -> Iterator[list[Shard]]:
    """Yield the shards of each part of an index that has rows."""
    together: dict[int, list[Shard]] = {}
    for shard in index.shards(parts.shard_rows(index)):
        together.setdefault(shard.part, []).append(shard)
    yield from together.values()


def _identified(store: Store, place: Place, shard: Shard) -> pa.Table:
    known = _known(store, _path(place.address, shard.part, shard.start))
    if known is not None:
        return known
    rows, chunks = parts.read(store, place, *shard[1:])
    return sources.identified(chunks, rows) if rows["image_id"].null_count else rows


def _known(store: Store, path: str) -> pa.Table | None:
    try:
        return store.read_table(path)
    except FileNotFoundError:
        return None


def _path(address: str, part: int, start: int) -> str:
    return f"{address}/{PREFIX}{part:06d}-{start:06d}.parquet"
