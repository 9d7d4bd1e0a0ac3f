"""A shard's crops as they are passed on, and what a task that makes them takes."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from clipray.artefacts.index import SHARD_ROWS
from clipray.config import Compute
from clipray.encoding import column, crop_bytes
from clipray.images import Preprocess

HELD = 3.0  # times its crops, that a task holds of a shard: as they are, joined, and as a block


def packed(crops: dict[Preprocess, list[bytes]]) -> dict[str, pa.Array]:
    """Put the crops of each group into one cell of a column, and let go of them as they were.

    A copy at a time is held, for a shard of large crops is hundreds of megabytes.
    """
    columns = {}
    for group in sorted(crops):
        data = pa.py_buffer(b"".join(crops.pop(group)))
        ends = pa.py_buffer(np.array([0, data.size], np.int64))
        columns[column(group)] = pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, data])
    return columns


def decode_memory(compute: Compute, groups: Iterable[Preprocess]) -> int:
    """Count the bytes of heap that a decoding task takes: what any does, and a shard's crops.

    Args:
        groups: that it crops for.
    """
    return compute.decode_memory + int(HELD * SHARD_ROWS * crop_bytes(groups))
