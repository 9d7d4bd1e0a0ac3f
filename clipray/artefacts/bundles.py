"""Shards that a worker reads one after another, because they lie in the same row groups.

A row group is the least that can be read of a Parquet file. Two workers that read two shards of it would both read it
whole. Row groups of more than a thousand rows are read by several all the same: one worker alone would decode all of
it. Of other layouts each shard is a bundle of its own.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice
from typing import Any

import pyarrow as pa

from clipray import sources
from clipray.artefacts import index as parts
from clipray.artefacts.found import Finder
from clipray.artefacts.index import Index, Place, Shard
from clipray.store import Store

# row groups of a bundle whose end is in the middle of one: one of so many is read twice
GROUPS = 8
MOST = 1024  # rows of a bundle at most: others decode beside it


def bundles(index: Index, shards: Iterable[Shard], most: int = MOST) -> Iterator[list[Shard]]:
    """Put neighbouring shards together that lie in the same row groups.

    Args:
        shards: some of the index, in order.
        most: rows at which a bundle ends.
    """
    ends = set(accumulate(index.row_groups))
    most = min(most, GROUPS * max(index.row_groups, default=0))
    bundle: list[Shard] = []
    rows = following = 0
    for shard in shards:
        first = int(shard.name.partition(".")[0])
        apart = first != following or first in ends
        if bundle and (apart or rows >= most):
            yield bundle
            bundle, rows = [], 0
        bundle.append(shard)
        rows += shard.rows
        following = first + shard.rows
    if bundle:
        yield bundle


def read(
    store: Store, place: Place, pieces: Sequence[Sequence[int]]
) -> Iterator[tuple[Finder, Iterator[Any]]]:
    """Read the shards of a bundle, one after another: their rows, and the images' bytes, or why there are none.

    Args:
        place: of the index. pieces: the shards without their names.

    Yields:
        for each shard what finds its ids, and its images, which must all be taken before the next shard.
    """
    found = [parts.read(store, place, *piece) for piece in pieces]
    finders = [
        Finder(store, place, piece, rows) for piece, (rows, _) in zip(pieces, found, strict=True)
    ]
    chunks = {number: chunk for _, own in found for number, chunk in own.items()}
    data = sources.contents(chunks, pa.concat_tables([finder.rows for finder in finders]))
    for finder in finders:
        yield finder, islice(data, len(finder.rows))
