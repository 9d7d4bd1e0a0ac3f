"""Which images a split holds, in parts: workers write and read the rows, the driver holds counts.

An index is listed at first: its rows tell where each image lies and its label, and no image is read for it. Its rows
have ids once the images have been read, which is when they are embedded (`artefacts.found`).

A part is some consecutive chunks of the listing, so parts depend on the files alone. Beside each part's rows
(`schema.INDEX`) lie its chunks, once for each place that the dataset was seen at: an index is the same wherever the
files lie, but a worker has to know where to read.
"""

import functools
import gzip
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipray import fingerprint, sources
from clipray.artefacts.shards import Shard, cut
from clipray.config import Dataset
from clipray.numerics import draws
from clipray.store import Store

PART_ROWS = 8192  # rows that a part has at least, where they are known beforehand
PART_CHUNKS = 8  # chunks of a part at most, where their rows are not
SHARD_ROWS = 256  # images a shard
FEW_SHARD_ROWS, FEW_ROWS = 64, 4096  # images a shard, where there are no more than so many
DIGITS = 32  # of an image's hash; what follows in its id numbers its repeats
REASONS = 5  # reasons of error rows that are listed; all rows are counted
TEXTS = ("classnames", "templates")  # of a dataset: no image or label depends on them
CACHED = 4  # parts that a worker remembers: neighbouring shards come one after another


class Place(NamedTuple):
    """What a worker needs to read rows of an index.

    Attributes:
        listed: whether they have no ids, so that what a worker remembers of them is not taken for rows with ids.
    """

    address: str
    chunks_at: str
    location: str
    listed: bool


class Counts(NamedTuple):
    """What is to be known of rows without looking at them again; counts of parts add up.

    Attributes:
        rows: of the part.
        content: the sum of a digest of each row's hash and label, so that their order does not matter; 0 where rows
            are listed only.
        labels: by label, how many images can be used.
        reasons: by reason, how many rows cannot be used: the most frequent ones.
        bad: how many rows cannot be used. first_bad: one of them, and its reason.
        left_out: by kind, how much lies among the files and is no image.
    """

    rows: int
    content: int
    labels: dict[int, int]
    reasons: dict[str, int]
    bad: int
    first_bad: str
    left_out: dict[str, int]


@dataclass(frozen=True)
class Index:
    """What the driver knows of a split: how many rows its parts have, and where they lie.

    Attributes:
        address: the folder of its rows.
        chunks_at: the folder of its chunks; where it is some images of another index, that of the other.
        location: the name of the place that the chunks are read from.
        parts: rows of each part.
        chunk_parts: for each part, the number of the part in `chunks_at` whose chunks its rows lie in.
        content: a digest of all image hashes and labels, whatever their order; of no meaning while it is listed.
        remarks: what a person should know of the split: left out, not readable.
        known_as: what embeddings of it are told by, where that is not its content: the address of the list by which
            they were made, or of a pool, which has the same embeddings however much it has grown.
        of: the split that a pool is drawn from. apart: the one whose images are never drawn from it.
        listed: whether some rows have no ids yet, because no image was read.
        classes: C, where each image has to be of one; 0 where labels are not needed.
        row_groups: rows of each chunk, where whoever reads an image reads all of its chunk; empty elsewhere, and for
            some images of another index.
        labels: by label, how many images can be used; of a pool, how many of its split can be drawn as far as is known.
    """

    dataset: str
    split: str
    address: str
    chunks_at: str
    location: str
    parts: tuple[int, ...]
    chunk_parts: tuple[int, ...]
    content: str
    remarks: tuple[str, ...] = ()
    known_as: str = ""
    of: "Index | None" = None
    apart: "Index | None" = None
    listed: bool = False
    classes: int = 0
    row_groups: tuple[int, ...] = field(default=(), repr=False)
    labels: dict[int, int] = field(default_factory=dict, hash=False)

    def __len__(self) -> int:
        return sum(self.parts)

    @property
    def identity(self) -> str:
        """What embeddings of it are embeddings of."""
        return self.known_as or self.content

    @property
    def place(self) -> Place:
        """What a worker needs to read a shard of it."""
        return Place(self.address, self.chunks_at, self.location, self.listed)

    def shards(self, rows: int) -> Iterator[Shard]:
        """Yield deterministic pieces of at most `rows` rows; none reaches over the end of a part or large row group."""
        ends = zip(itertools.accumulate(self.row_groups), self.row_groups, strict=True)
        large = [end for end, group in ends if group >= rows]
        return cut(self.parts, self.chunk_parts, large, rows)

    def table(self, store: Store, columns: Sequence[str] | None = None) -> pa.Table:
        """Read all rows, in order; for what looks at a whole split, never for the driver of a campaign.

        Raises `ValueError` where ids are asked for that are not known yet.
        """
        if self.listed and (columns is None or "image_id" in columns):
            raise ValueError(f"the images of {self.address} have no ids yet")
        names = [part_name(part) for part in range(len(self.parts))]
        tables = [store.read_table(f"{self.address}/{name}", columns) for name in names]
        return pa.concat_tables(tables)


def shard_rows(index: Index) -> int:
    """Decide how many images a shard has: few where there are few, so that all backbones soon have something to do.

    It depends on the files alone, so that the names of shards and the batches never change with the cluster; and for
    some images of a split, on the split that they are drawn from, so that they may grow.
    """
    return SHARD_ROWS if len(index.of or index) > FEW_ROWS else FEW_SHARD_ROWS


def part_name(part: int) -> str:
    """Return the name of the file of a part's rows."""
    return f"{part:06d}.parquet"


def chunks_name(part: int, location: str) -> str:
    """Return the name of the file of a part's chunks as they are read from one place."""
    return f"{part:06d}-{location}.json.gz"


def location_name(location: str) -> str:
    """Return a short name of a dataset's place."""
    return fingerprint.fingerprint(location)[:8]


def groups(chunks: Sequence[sources.Chunk]) -> list[list[tuple[int, sources.Chunk]]]:
    """Group numbered chunks into parts."""
    found: list[list[tuple[int, sources.Chunk]]] = []
    known = unknown = 0
    for numbered in enumerate(chunks):
        if not found or known >= PART_ROWS or unknown >= PART_CHUNKS:
            found.append([])
            known = unknown = 0
        found[-1].append(numbered)
        known += numbered[1].count or 0
        unknown += numbered[1].count is None
    return found


def write_part(
    store: Store, address: str, part: int, location: str, chunks: Sequence[tuple[int, Any]]
) -> Counts:
    """Read every sample of a part's chunks, and write their rows; repeats are numbered later, over all parts."""
    tables = [sources.index(number, chunk) for number, chunk in chunks]
    return _write_rows(store, address, part, location, chunks, tables)


def write_listed(
    store: Store, address: str, part: int, location: str, chunks: Sequence[tuple[int, Any]]
) -> Counts:
    """List the samples of a part's chunks, many at a time, for most of it is waiting for storage; write their rows."""
    with ThreadPoolExecutor(PART_CHUNKS) as threads:
        tables = list(threads.map(lambda numbered: sources.outline(*numbered), chunks))
    return _write_rows(store, address, part, location, chunks, tables)


def _write_rows(
    store: Store,
    address: str,
    part: int,
    location: str,
    chunks: Sequence[tuple[int, Any]],
    tables: Sequence[pa.Table],
) -> Counts:
    table = pa.concat_tables([table.replace_schema_metadata(None) for table in tables])
    write_chunks(store, address, part, location, chunks)
    store.write_table(f"{address}/{part_name(part)}", table)
    return count(table, sources.left_out(tables))


def write_chunks(
    store: Store, address: str, part: int, location: str, chunks: Sequence[tuple[int, Any]]
) -> None:
    """Write where the rows of a part are read from."""
    text = json.dumps([[number, list(chunk)] for number, chunk in chunks])
    data = gzip.compress(text.encode(), compresslevel=5, mtime=0)
    store.write(f"{address}/{chunks_name(part, location)}", data)


def count(table: pa.Table, left_out: dict[str, int]) -> Counts:
    """Count what is to be known of some rows of an index."""
    bad = table.filter(pc.is_valid(table["error"]))
    first = f"{bad['key'][0].as_py()}: {bad['error'][0].as_py()}" if len(bad) else ""
    reasons = Counter(bad["error"].to_pylist()).most_common(REASONS)
    listed = table["image_id"].null_count
    content = 0 if listed else content_sum(table["image_id"], table["label"])
    return Counts(len(table), content, labels(table), dict(reasons), len(bad), first, left_out)


def labels(table: pa.Table) -> dict[int, int]:
    """Count, by label, the rows that can be used."""
    good = table.filter(pc.and_(pc.is_null(table["error"]), pc.is_valid(table["label"])))
    return dict(sorted(Counter(good["label"].to_pylist()).items()))


def content_sum(image_ids: pa.ChunkedArray, labels: pa.ChunkedArray) -> int:
    """Sum up, mod 2^128, a digest of each row's hash and label; the number of a repeat does not count.

    >>> rows = pa.chunked_array([["a", "b"]]), pa.chunked_array([[0, 1]])
    >>> back = pa.chunked_array([["b", "a"]]), pa.chunked_array([[1, 0]])
    >>> content_sum(*rows) == content_sum(*back) != 0
    True
    """
    hashes = plain(image_ids).to_pylist()
    total = 0
    for image_id, label in zip(hashes, labels.to_pylist(), strict=True):
        digest = hashlib.blake2b(f"{image_id} {label}".encode(), digest_size=16).digest()
        total += int.from_bytes(digest, "big")
    return total % 2**128


def merged(counts: Sequence[Counts]) -> Counts:
    """Add up the counts of all parts."""
    by_label: Counter[int] = Counter()
    reasons: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    for one in counts:
        by_label.update(one.labels)
        reasons.update(one.reasons)
        left_out.update(one.left_out)
    return Counts(
        rows=sum(one.rows for one in counts),
        content=sum(one.content for one in counts) % 2**128,
        labels=dict(sorted(by_label.items())),
        reasons=dict(reasons.most_common(REASONS)),
        bad=sum(one.bad for one in counts),
        first_bad=next((one.first_bad for one in counts if one.bad), ""),
        left_out=dict(sorted(left_out.items())),
    )


def number_repeats(store: Store, address: str, parts: int) -> list[int]:
    """Number equal images over all parts of an index; rewrite the parts that change, and return those with repeats."""
    names = [f"{address}/{part_name(part)}" for part in range(parts)]
    columns = [store.read_table(name, ["image_id"])["image_id"] for name in names]
    every = [plain(chunk) for column in columns for chunk in column.chunks]
    numbered = sources.numbered(pa.chunked_array(every, pa.string()))
    start, repeated = 0, []
    for part, (name, column) in enumerate(zip(names, columns, strict=True)):
        ids = numbered.slice(start, len(column))
        start += len(column)
        if not ids.equals(column):
            table = store.read_table(name)
            store.write_table(name, table.set_column(0, table.schema.field(0), ids))
        if has_repeats(ids):
            repeated.append(part)
    return repeated


def plain(image_ids: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return ids without the numbers of repeats: the hashes of the images."""
    return pc.utf8_slice_codeunits(image_ids, 0, DIGITS)


def has_repeats(image_ids: pa.Array | pa.ChunkedArray) -> bool:
    """Tell whether some id has the number of a repeat."""
    return bool(pc.any(pc.greater(pc.utf8_length(image_ids), DIGITS)).as_py())


def write_chosen(store: Store, whole: Index, address: str, chosen: np.ndarray) -> list[Counts]:
    """Write an index of some images of another, part by part; a part without any of them is kept as an empty one.

    Args:
        chosen: positions of their rows in the other index, sorted.
    """
    counts = []
    for part, rows in enumerate(by_part(whole, chosen)):
        table = store.read_table(f"{whole.address}/{part_name(part)}")
        own = table.take(pa.array(rows, pa.int64()))
        store.write_table(f"{address}/{part_name(part)}", own)
        counts.append(count(own, {}))
    return counts


def by_part(index: Index, chosen: np.ndarray) -> list[np.ndarray]:
    """Return for each part of an index which of its rows are chosen.

    Args:
        chosen: positions in the whole index, sorted.
    """
    starts = np.cumsum([0, *index.parts])
    cuts = np.searchsorted(chosen, starts)
    every = zip(cuts, cuts[1:], starts, strict=False)
    return [chosen[first:last] - start for first, last, start in every]


def read(
    store: Store, place: Place, part: int, chunk_part: int, start: int, rows: int
) -> tuple[pa.Table, dict[int, sources.Chunk]]:
    """Read the rows of a shard, copied, and the chunks that they lie in, by their numbers.

    Args:
        place: of the index.
    """
    own = rows_of(store, place, part, start, rows)
    chunks = chunks_of(store.uri, place.chunks_at, chunk_part, place.location)
    numbers = pc.unique(own["chunk"]).to_pylist()
    return own, {number: chunks[number] for number in sorted(numbers)}


def rows_of(store: Store, place: Place, part: int, start: int, rows: int) -> pa.Table:
    """Read the rows of a shard, copied: a slice would carry its whole part along wherever it is sent."""
    table = _rows(store.uri, place.address, place.listed, part)
    return table.take(pa.array(range(start, start + rows)))


@functools.lru_cache(CACHED)
def _rows(workspace: str, address: str, listed: bool, part: int) -> pa.Table:
    return Store(workspace).read_table(f"{address}/{part_name(part)}")


@functools.lru_cache(CACHED)
def chunks_of(workspace: str, address: str, part: int, location: str) -> dict[int, sources.Chunk]:
    """Return the chunks of a part by their numbers, as they are read from one place."""
    text = gzip.decompress(Store(workspace).read(f"{address}/{chunks_name(part, location)}"))
    return {number: sources.Chunk(*fields) for number, fields in json.loads(text)}


def what(dataset: Dataset, split: str, chunks: list[sources.Chunk]) -> dict[str, Any]:
    """Return the WHAT of an index: the dataset's entry, the state of its files, and the code that reads them.

    Prompts are left out: they are in the classifiers' addresses, and no image need be read again for them.
    """
    entry = {key: value for key, value in fingerprint.plain(dataset).items() if key not in TEXTS}
    layout = sources.FORMATS[dataset.format]
    code = (layout.scan, layout.survey, sources.tabulate, sources.numbered, content_sum)
    return {
        "dataset": entry,
        "split": split,
        "listing": sources.digest(chunks),
        "code": fingerprint.code(*code),
    }


def evenly(table: pa.Table, limit: int) -> np.ndarray:
    """Choose at most `limit` rows, evenly over labels and in the order of a column; return their sorted positions.

    Args:
        table: with columns `label` and `place`.
    """
    labels = table["label"].combine_chunks().dictionary_encode("encode").indices.to_numpy()
    places = pc.rank(table["place"], tiebreaker="first").to_numpy()
    return draws.evenly(labels, places, limit)
