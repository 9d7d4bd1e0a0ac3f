"""Images of a train split are drawn from its list and added to its pool: unread, or read before."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipray import schema, sources
from clipray.artefacts import index as parts
from clipray.artefacts.index import Index
from clipray.numerics import draws
from clipray.store import Store

TESTED = "it stands in the test split too"


class Outcast(NamedTuple):
    """What of a split was drawn and cannot be used, as a pool's manifest tells it.

    Attributes:
        files: that hold the rows, each with its reason.
        labels: by label, how many.
        unread: how many of them cannot be read. first: one of these, and its reason.
        inside: how many of them are in the pool all the same, because they joined it before they were read.
    """

    files: int
    labels: dict[int, int]
    unread: int
    first: str
    inside: int


def outcast(known: dict[str, Any]) -> Outcast:
    """Read what a pool's manifest tells of images that cannot be used; JSON has made the labels text."""
    out = Outcast(**known["out"])
    return out._replace(labels={int(label): count for label, count in out.labels.items()})


def choose(
    store: Store,
    train: Index,
    address: str,
    known: dict[str, Any],
    shots: tuple[int, int],
    seeds: int,
    classes: int,
    unusable: Sequence[str],
) -> list[tuple[int, np.ndarray]]:
    """Draw from a listed split, and tell what a pool lacks of it: by part of the list, which of its rows.

    Args:
        known: what the pool's manifest tells. seeds, classes, unusable: as in `pool.pool`.
        shots: images of each class that the pool must hold, and how many are read where it does not hold these.
    """
    rows = train.table(store, ["chunk", "row", "key", "label", "error"])
    names, labels_N = rows["key"].to_pylist(), rows["label"].fill_null(-1).to_numpy()
    own = _rows(store, address, [parts.part_name(n) for n in range(len(known["parts"]))])
    out = _rows(store, address, [_outcasts(n) for n in range(outcast(known).files)])
    lost = own.filter(pc.is_in(own["image_id"], value_set=pa.array(unusable, pa.string())))
    free_N = rows["error"].is_null().to_numpy(zero_copy_only=False)
    free_N &= ~np.isin(_codes(rows), np.concatenate([_codes(out), _codes(lost)]))
    lacking_N = ~np.isin(_codes(rows), _codes(own))
    drawn = draws.draws(names, labels_N, classes, shots, range(seeds), free_N)
    needed, wanted = (_rows_of(drawn, number) for number in shots)
    if not lacking_N[needed].any():
        return []
    chosen = parts.by_part(train, wanted[lacking_N[wanted]])
    return [(part, rows) for part, rows in enumerate(chosen) if len(rows)]


def _rows_of(drawn: Sequence[draws.Draw], shots: int) -> np.ndarray:
    """Return the sorted rows of all draws of some number of shots."""
    rows = [np.zeros(0, np.int64), *(one.rows_K for one in drawn if one.shots == shots)]
    return np.unique(np.concatenate(rows))


def join(
    store: Store,
    train: Index,
    address: str,
    known: dict[str, Any],
    lacking: Sequence[tuple[int, np.ndarray]],
) -> dict[str, Any]:
    """Add rows of a list to a pool as new parts, without ids.

    Args:
        lacking: as `choose` tells them.

    Returns:
        what the pool's manifest has to tell.
    """
    lengths, chunk_parts, unread = (list(known[k]) for k in ("parts", "chunk_parts", "unread"))
    for part, rows in lacking:
        table = store.read_table(f"{train.address}/{parts.part_name(part)}").take(pa.array(rows))
        bare = pa.nulls(len(table), pa.string())
        number = len(lengths)
        table = table.set_column(0, table.schema.field(0), bare)
        store.write_table(f"{address}/{parts.part_name(number)}", table)
        unread.append(number)
        lengths.append(len(table))
        chunk_parts.append(train.chunk_parts[part])
    return known | {"parts": lengths, "chunk_parts": chunk_parts, "unread": unread}


def settle_joined(store: Store, test: Index, address: str, known: dict[str, Any]) -> dict[str, Any]:
    """Put images of a pool apart that joined it unread and cannot be drawn; their rows stay, for they are embedded.

    Returns:
        what the pool's manifest has to tell.
    """
    content = int(known["content"], 16)
    tested = test.table(store, ["image_id"])["image_id"].to_pylist()
    bad = []
    for part in known["unread"]:
        table = store.read_table(f"{address}/{parts.part_name(part)}")
        content += parts.content_sum(table["image_id"], table["label"])
        bad.append(table.filter(pa.array(~_free(table, tested))))
    out = outcast(known)
    if bad:
        bad = pa.concat_tables(bad)
        out = _put_out(store, address, out, bad)._replace(inside=out.inside + len(bad))
    facts = {"unread": [], "content": f"{content % 2**128:032x}"}
    return known | facts | {"out": out._asdict()}


def _free(table: pa.Table, tested: Sequence[str]) -> np.ndarray:
    """Tell of each row whether its image can be read and is not among those of the test split."""
    kept = table["error"].is_null().to_numpy(zero_copy_only=False)
    return kept & draws.apart(table["image_id"].to_pylist(), tested)


def read(store: Store, train: Index, address: str, part: int, rows: np.ndarray) -> None:
    """Read the images of some rows of a part of a list, and write their rows with ids for `settle`.

    A worker reads files and ranges of tars as they are, and of Parquet the row groups that hold some of them, one after
    another.
    """
    table = store.read_table(f"{train.address}/{parts.part_name(part)}").take(pa.array(rows))
    place, location = train.chunks_at, train.location
    chunks = parts.chunks_of(store.uri, place, train.chunk_parts[part], location)
    numbers = sorted(pc.unique(table["chunk"]).to_pylist())
    identified = sources.identified({number: chunks[number] for number in numbers}, table)
    store.write_table(f"{address}/{_read(part)}", identified)


def settle(
    store: Store,
    train: Index,
    test: Index,
    address: str,
    known: dict[str, Any],
    changed: Sequence[int],
) -> dict[str, Any]:
    """Add images that were read to a pool as new parts, and put those apart that cannot be drawn.

    Ids of the pool stay as they are; further repeats of an image are numbered on.

    Args:
        changed: parts of the list of which some rows were read.

    Returns:
        what the pool's manifest has to tell.
    """
    lengths, chunk_parts = list(known["parts"]), list(known["chunk_parts"])
    content = int(known["content"], 16)
    tested = test.table(store, ["image_id"])["image_id"].to_pylist()
    good, bad = [], []
    for part in changed:
        table = store.read_table(f"{address}/{_read(part)}")
        kept = _free(table, tested)
        good.append(table.filter(pa.array(kept)))
        bad.append(table.filter(pa.array(~kept)))
    own = _rows(store, address, [parts.part_name(n) for n in range(len(lengths))])
    for part, piece in zip(changed, _numbered(own, good), strict=True):
        if not len(piece):
            continue
        store.write_table(f"{address}/{parts.part_name(len(lengths))}", piece)
        lengths.append(len(piece))
        chunk_parts.append(train.chunk_parts[part])
        content += parts.content_sum(piece["image_id"], piece["label"])
    out = _put_out(store, address, outcast(known), pa.concat_tables(bad))
    facts = {"parts": lengths, "chunk_parts": chunk_parts, "content": f"{content % 2**128:032x}"}
    return known | facts | {"out": out._asdict()}


def _numbered(own: pa.Table, more: Sequence[pa.Table]) -> Iterator[pa.Table]:
    """Yield rows that join those of a pool with ids that number repeats of an image on."""
    columns = [parts.plain(own["image_id"]), *(piece["image_id"] for piece in more)]
    chunks = [chunk for column in columns for chunk in column.chunks]
    ids = sources.numbered(pa.chunked_array(chunks, pa.string()))
    start = len(own)
    for piece in more:
        yield piece.set_column(0, piece.schema.field(0), ids.slice(start, len(piece)))
        start += len(piece)


def clear(store: Store, address: str, changed: Sequence[int]) -> None:
    """Remove what `read` has written of some parts; no task needs it any more."""
    for part in changed:
        store.remove(f"{address}/{_read(part)}")


def _put_out(store: Store, address: str, out: Outcast, bad: pa.Table) -> Outcast:
    """Keep images that cannot be used, with the reasons, so that they are told and never read again."""
    if not len(bad):
        return out
    unread = bad.filter(pc.is_valid(bad["error"]))
    first = f"{unread['key'][0]}: {unread['error'][0]}" if len(unread) else ""
    reasons = bad["error"].fill_null(TESTED)
    bad = bad.set_column(bad.schema.get_field_index("error"), "error", reasons)
    store.write_table(f"{address}/{_outcasts(out.files)}", bad)
    labels = Counter(out.labels) + Counter(bad["label"].to_pylist())
    unread = out.unread + len(unread)
    return out._replace(
        files=out.files + 1, labels=dict(labels), unread=unread, first=out.first or first
    )


def _read(part: int) -> str:
    """Return the name of a file of images that were read, before it is known what can be drawn."""
    return f"read-{part:06d}.parquet"


def _outcasts(number: int) -> str:
    """Return the name of a file of images that cannot be used."""
    return f"out-{number:06d}.parquet"


def _rows(store: Store, address: str, names: Sequence[str]) -> pa.Table:
    """Read rows of some files of a pool."""
    columns = ["image_id", "chunk", "row"]
    tables = [store.read_table(f"{address}/{name}", columns) for name in names]
    empty = pa.schema([schema.INDEX.field(name) for name in columns]).empty_table()
    return pa.concat_tables([empty, *tables])


def _codes(rows: pa.Table) -> np.ndarray:
    """Return a number for each row that no other row of the split has, from its chunk and its place there."""
    chunk_N = rows["chunk"].to_numpy().astype(np.int64)
    return chunk_N << 32 | rows["row"].to_numpy().astype(np.int64)
