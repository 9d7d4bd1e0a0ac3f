"""Images of a split are embedded in pieces, which depend on the files alone and never on the cluster."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Shard(NamedTuple):
    """Some consecutive rows of a part, which are embedded together and lie in one file."""

    name: str  # of its file
    part: int
    chunk_part: int  # the part whose chunks its rows lie in
    start: int  # within the part
    rows: int


def cut(
    parts: Sequence[int], chunk_parts: Sequence[int], ends: Sequence[int], rows: int
) -> Iterator[Shard]:
    """Cut parts into pieces of at most `rows` rows.

    Args:
        parts: rows of each. chunk_parts: for each the part whose chunks its rows lie in.
        ends: positions in the whole split at which a piece has to end, in order.

    >>> [(shard.name[:9], shard.rows) for shard in cut([5, 3], [0, 1], [4], 3)]
    [('000000000', 3), ('000000003', 1), ('000000004', 1), ('000000005', 3)]
    """
    before = 0
    for part, length in enumerate(parts):
        start = 0
        while start < length:
            following = bisect_right(ends, before + start)
            stop = min(start + rows, length)
            if following < len(ends):
                stop = min(stop, ends[following] - before)
            name = f"{before + start:09d}.parquet"
            yield Shard(name, part, chunk_parts[part], start, stop - start)
            start = stop
        before += length
