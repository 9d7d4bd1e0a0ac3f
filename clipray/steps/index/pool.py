"""The images of a train split that support sets may hold: only they are embedded.

Labels are known before an image is decoded, so the support sets are drawn from the index, by the function that draws
them for the evaluation. What is drawn makes a pool. More shots or seeds, and images that turn out not to be usable, add
parts to it; none is ever taken away. A support set drawn from the pool is that drawn from the whole split: in each
seed's order a pool holds the first images of every class, and further ones do not move them.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clipray.artefacts import index as parts
from clipray.artefacts.index import Index
from clipray.fingerprint import code, fingerprint
from clipray.numerics import draws
from clipray.steps.mappers import Mapper
from clipray.store import Store

SPARE, SHARE = (
    2,
    4,
)  # images a class beyond the shots: two, or a quarter of the shots where that is more


def pool(
    store: Store,
    train: Index,
    test: Index,
    classes: int,
    shots: Sequence[int],
    seeds: int,
    mapper: Mapper,
    unusable: Collection[str] = (),
) -> Index:
    """Return the pool of a train split, grown until it holds every image that a support set may hold.

    Args:
        train, test: the splits; images of the test split are never drawn.
        classes: C. shots: images a class. seeds: number of draws.
        mapper: how the splits are read, where the pool does not hold enough.
        unusable: ids of images of the pool that have no embedding.
    """
    address = place(store, train, test)
    known = store.manifest(address) or _nothing()
    wanted = [max(shots), seeds, classes, fingerprint(sorted(unusable))]
    if not any(_holds(drawn, wanted) for drawn in known["drawn"]):
        item = (store, train, test, address, known, max(shots), seeds, classes, sorted(unusable))
        (known,) = mapper(grow, [item])
        known["drawn"].append(wanted)
        made_of = what(train, test)
        store.finish(address, made_of, **{key: known[key] for key in _nothing()})
    return replace(
        train,
        address=address,
        parts=tuple(known["parts"]),
        chunk_parts=tuple(known["chunk_parts"]),
        content=known["content"],
        pool=address,
        of=train,
        apart=test,
    )


def what(train: Index, test: Index) -> dict[str, Any]:
    """Return the WHAT of a pool: the rows that it is drawn from, not how many are drawn."""
    return {"train": train.address, "test": test.address, "code": code(draws.draws)}


def place(store: Store, train: Index, test: Index) -> str:
    """Return the address of a pool."""
    return store.address("index", train.dataset, "pool", what=what(train, test))


def grow(
    store: Store,
    train: Index,
    test: Index,
    address: str,
    known: dict[str, Any],
    most: int,
    seeds: int,
    classes: int,
    unusable: Sequence[str],
) -> dict[str, Any]:
    """Write what a pool lacks as new parts, and return what its manifest has to tell.

    A spare of each class is taken with the others, so that few images that cannot be decoded cost no second round.

    Args:
        known: what its manifest tells now. most: shots. seeds, classes: as in `pool`.
    """
    rows = train.table(store, ["image_id", "key", "label", "error"])
    usable = pc.and_(pc.is_null(rows["error"]), pc.is_valid(rows["label"]))
    bad = pa.array(unusable, pa.string())
    usable = pc.and_(usable, pc.invert(pc.is_in(rows["image_id"], value_set=bad)))
    rows = rows.filter(usable)
    ids, labels_N = rows["image_id"].to_pylist(), rows["label"].to_numpy()
    tested = test.table(store, ["image_id"])["image_id"].to_pylist()
    have = _ids(store, address, len(known["parts"]))
    enough = most + max(SPARE, -(-most // SHARE))
    found: dict[int, set[str]] = {most: set(), enough: set()}
    names, free_N = rows["key"].to_pylist(), draws.apart(ids, tested)
    drawn = draws.draws(names, labels_N, classes, [most, enough], range(seeds), free_N)
    for support in drawn:
        found[support.shots] |= {ids[row] for row in support.rows_K} - have
    if not found[most]:
        return known
    return _add(store, train, address, known, pa.array(sorted(found[enough]), pa.string()))


def _add(
    store: Store, train: Index, address: str, known: dict[str, Any], chosen: pa.Array
) -> dict[str, Any]:
    """Write rows of a split as new parts of its pool, one for each part of the split that has some."""
    lengths, chunk_parts = list(known["parts"]), list(known["chunk_parts"])
    content = int(known["content"], 16)
    for part, chunk_part in enumerate(train.chunk_parts):
        table = store.read_table(f"{train.address}/{parts.part_name(part)}")
        own = table.filter(pc.is_in(table["image_id"], value_set=chosen))
        if len(own):
            store.write_table(f"{address}/{parts.part_name(len(lengths))}", own)
            lengths.append(len(own))
            chunk_parts.append(chunk_part)
            content += parts.content_sum(own["image_id"], own["label"])
    found = {"parts": lengths, "chunk_parts": chunk_parts, "content": f"{content % 2**128:032x}"}
    return known | found


def _nothing() -> dict[str, Any]:
    return {"parts": [], "chunk_parts": [], "content": f"{0:032x}", "drawn": []}


def _holds(drawn: Sequence[Any], wanted: Sequence[Any]) -> bool:
    """Tell whether a pool holds what is wanted: as many shots and seeds, with the same unusable images."""
    shots, seeds, *rest = drawn
    return shots >= wanted[0] and seeds >= wanted[1] and rest == wanted[2:]


def _ids(store: Store, address: str, count: int) -> set[str]:
    found: set[str] = set()
    for part in range(count):
        table = store.read_table(f"{address}/{parts.part_name(part)}", ["image_id"])
        found |= set(table["image_id"].to_pylist())
    return found
