"""Samples as rows of an index (`schema.INDEX`): their ids and names, and what lies beside them."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipray.schema import INDEX
from clipray.sources.chunks import Sample

LEFT_OUT = b"left_out"  # key in the metadata of a chunk's index


def image_id(data: bytes) -> str:
    """Identify an image by 32 hex digits of its bytes' hash."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def tabulate(number: int, samples: Iterable[Sample], read: bool = True) -> pa.Table:
    """Turn the samples of one chunk into rows of its index.

    Args:
        read: whether they come with their bytes; else no row has an id.
    """
    rows = []
    keys: dict[str, int] = {}
    for sample in samples:
        key = _unlike(sample.key, keys)
        size, own_id = sample.size, None
        if read:
            readable = sample.data is not None
            size = len(sample.data) if readable else None
            own_id = image_id(sample.data if readable else nowhere(number, key))
        rows.append(
            {
                "image_id": own_id,
                "chunk": number,
                "row": sample.row,
                "key": key,
                "offset": sample.offset,
                "size": size,
                "label": sample.label,
                "error": sample.error,
            }
        )
    return pa.Table.from_pylist(rows, schema=INDEX)


def left_out(tables: Iterable[pa.Table]) -> dict[str, int]:
    """Count, by kind, what lies among the images of chunks and is no sample, from their indices."""
    total: Counter[str] = Counter()
    for table in tables:
        total.update(json.loads((table.schema.metadata or {}).get(LEFT_OUT, b"{}")))
    return dict(sorted(total.items()))


def numbered(image_ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Number repeated names, in order: the later ones get ".1", ".2", …

    >>> numbered(pa.chunked_array([["a", "b"], ["a", "a"]])).to_pylist()
    ['a', 'b', 'a.1', 'a.2']
    """
    counted = pc.value_counts(image_ids)
    repeated = counted.field("values").filter(pc.greater(counted.field("counts"), 1))
    if not len(repeated):
        return image_ids
    rows = np.flatnonzero(pc.is_in(image_ids, value_set=repeated).to_numpy(zero_copy_only=False))
    twins = pa.table({"name": image_ids.take(pa.array(rows)), "row": rows})
    twins = twins.sort_by([("name", "ascending"), ("row", "ascending")])
    codes = twins["name"].combine_chunks().dictionary_encode().indices.to_numpy()
    first = np.concatenate([[0], np.flatnonzero(np.diff(codes)) + 1])
    # the place among equal names: the distance from the first one of them
    place = np.arange(len(codes)) - first[codes]
    later = pa.array(place > 0)
    suffix = pa.array(place).cast(pa.string())
    names = pc.binary_join_element_wise(twins["name"], suffix, ".")
    names = pc.if_else(later, names, twins["name"])
    mask = np.zeros(len(image_ids), bool)
    mask[rows] = True
    in_order = names.take(pc.sort_indices(twins["row"]))
    return pa.chunked_array(
        [pc.replace_with_mask(image_ids.combine_chunks(), mask, in_order.combine_chunks())]
    )


def nowhere(number: int, key: str) -> bytes:
    """Return what the id of a row is a hash of where there are no bytes."""
    return f"{number}\0{key}".encode()


def _unlike(key: str, keys: dict[str, int]) -> str:
    """Return a name that no other sample of the chunk has: a tar may hold several members of one name.

    Args:
        keys: the names so far, and for each the last number that was tried behind it; gets this one.
    """
    name = key
    while name in keys:
        keys[key] += 1
        name = f"{key} ({keys[key]})"
    keys[name] = 1
    return name
