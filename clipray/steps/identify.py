"""The rows of a listed index get the ids of their images, which were found when these were embedded.

Equal images are numbered over all of a split, which no worker sees that embeds a part of it. So embeddings of repeats
are written with the plain hash at first, and get their numbers here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from clipray.artefacts import found, usable
from clipray.artefacts import index as parts
from clipray.artefacts.index import Counts, Index, Shard
from clipray.steps.mappers import Mapper
from clipray.steps.tally import failures_of
from clipray.store import Store

OF_LIST = ("chunks", "locations", "left_out", "absent")  # what the images themselves do not change
OF_ROWS = ("images", "parts", "content", "counts", "unreadable", "listed", "known_as")
Errors = dict[str, dict[str, str]]  # by the address of embeddings and the id of an image


def read(store: Store, index: Index, mapper: Mapper) -> Index:
    """Read the images of a listed index for their ids alone, and return it with these."""
    done, _ = embedded(store, index, mapper, known_as="")
    return done


def embedded(
    store: Store,
    index: Index,
    mapper: Mapper,
    known_as: str | None = None,
    others: Sequence[str] = (),
) -> tuple[Index, Errors]:
    """Give the rows of a listed index their ids, once all of its images have been embedded.

    Args:
        known_as: what embeddings of it are told by: its address, if they have been made by it; empty: what embeddings
            of the same images have been told by before, or else their content.
        others: addresses of files of the same shards that are not embeddings.

    Returns:
        the index, and the errors of repeated images under their new ids.
    """
    counts = [Counts(*told) for told in mapper(found.merged, _items(store, index))]
    errors = number(store, index, mapper, others)
    manifest = store.manifest(index.address)
    facts = {key: manifest[key] for key in OF_LIST if key in manifest}
    facts |= {"listed": False, "known_as": index.address if known_as is None else known_as}
    told_of = _in_place(counts, index)
    manifest = finish(store, index.address, manifest["what"], told_of, facts)
    found.clear(store, index.address)
    return told(index, manifest), errors


def _items(store: Store, index: Index) -> list[tuple]:
    return [(store, index.place, shards) for shards in found.by_part(index)]


def _in_place(counts: Sequence[Counts], index: Index) -> list[Counts]:
    """Return the counts of all parts of an index, given those of parts that have rows."""
    own, empty = iter(counts), Counts(0, 0, {}, {}, 0, "", {})
    return [next(own) if rows else empty for rows in index.parts]


def number(store: Store, index: Index, mapper: Mapper, others: Sequence[str] = ()) -> Errors:
    """Number repeats over all rows of an index, and in what was made of them; return the errors of these.

    Args:
        others: as in `embedded`.
    """
    (repeated,) = mapper(parts.number_repeats, [(store, index.address, len(index.parts))])
    if not repeated:
        return {}
    folders = [*sorted(_unfinished(store, index)), *others]
    shards = [own for own in found.by_part(index) if own[0].part in repeated]
    items = [(store, index.address, own, folders) for own in shards]
    errors: Errors = {}
    for told_of in mapper(renumber, items):
        for folder, own in told_of.items():
            errors.setdefault(folder, {}).update(own)
    return errors


def _unfinished(store: Store, index: Index) -> Iterator[str]:
    """Yield the addresses of embeddings of a split that are not complete, whichever run began them.

    A pool's embeddings have a manifest of the time before it grew.
    """
    above = f"embeddings/{index.dataset}/{index.split}"
    folders = [f"{above}/{name}" for name in store.names(above)]
    for folder, manifest in zip(folders, store.manifests(folders), strict=True):
        if manifest is None or manifest["what"].get("images") == index.identity:
            yield folder


def renumber(store: Store, address: str, shards: Sequence[Shard], folders: Sequence[str]) -> Errors:
    """Write the ids of an index with its repeats into embeddings of the same images.

    Args:
        address: of the index. shards: of one of its parts. folders: addresses of embeddings.

    Returns:
        the errors of all images in shards that were written.
    """
    table = store.read_table(f"{address}/{parts.part_name(shards[0].part)}", ["image_id"])
    errors: Errors = {}
    for shard in shards:
        ids = table["image_id"].slice(shard.start, shard.rows)
        if not parts.has_repeats(ids):
            continue
        for folder in folders:
            errors.setdefault(folder, {}).update(_renumbered(store, f"{folder}/{shard.name}", ids))
    return errors


def _renumbered(store: Store, path: str, ids: pa.ChunkedArray) -> dict[str, str]:
    try:
        table = store.read_table(path)
    except FileNotFoundError:
        return {}
    if not parts.plain(table["image_id"]).equals(parts.plain(ids)):
        return {}  # embeddings of other images
    if not table["image_id"].equals(ids):
        table = table.set_column(0, table.schema.field(0), ids)
        store.write_table(path, table)
    return failures_of(table)


def finish(
    store: Store, address: str, made_of: Any, counts: Sequence[Counts], facts: dict[str, Any]
) -> dict:
    """Declare an index complete and return its manifest: what its rows hold together, and `facts`.

    What embeddings of its images are told by is kept, so that another index of the same images finds them.
    """
    whole = parts.merged(counts)
    content = f"{whole.content:032x}"
    facts = {"left_out": whole.left_out} | facts
    if not facts["listed"]:
        known_as = facts.get("known_as") or _known_as(store, address, content)
        facts |= {"known_as": known_as}
        if known_as == address and not _known_as(store, address, content):
            store.finish(*_alias(store, address, content), known_as=address)
    store.finish(
        address,
        made_of,
        **{
            "images": whole.rows,
            "parts": [part.rows for part in counts],
            "content": content,
            "counts": whole._replace(left_out=facts["left_out"])._asdict(),
            "unreadable": whole.reasons,
        }
        | facts,
    )
    return store.manifest(address)


def _alias(store: Store, address: str, content: str) -> tuple[str, dict[str, str]]:
    """Return the address and the WHAT of what tells of an index by the content of its images."""
    _, dataset, name = address.split("/")
    split = name.rpartition("-")[0]
    what = {"split": split, "content": content}
    return store.address("index", dataset, f"content-of-{split}", what=what), what


def _known_as(store: Store, address: str, content: str) -> str:
    """Return what embeddings of the same images are told by, where an earlier index has made some; else nothing."""
    place, _ = _alias(store, address, content)
    return (store.manifest(place) or {}).get("known_as", "")


def facts_of(manifest: dict) -> dict[str, Any]:
    """Return what the manifest of an index tells that is not of the time when it was written."""
    return {key: manifest[key] for key in (*OF_LIST, *OF_ROWS) if key in manifest}


def told(index: Index, manifest: dict) -> Index:
    """Return an index with what its manifest tells of its rows."""
    counts = Counts(**manifest["counts"])
    labels = usable.labels_of(counts)
    absent = manifest.get("absent", index.classes - len(labels))
    said = remarks(index.split, counts, absent, index.classes) if index.classes else ()
    return replace(
        index,
        content=manifest["content"],
        listed=manifest["listed"],
        known_as=index.address if manifest["listed"] else manifest["known_as"],
        labels=labels,
        remarks=tuple(said),
    )


def remarks(split: str, counts: Counts, absent: int, n_classes: int) -> Iterator[str]:
    """Yield what a person should know of a split that can be used.

    Args:
        absent: classes without an image, of `n_classes`.
    """
    if counts.left_out:
        yield f"{split} split: left out as no image: {counted(counts.left_out)}"
    if counts.bad:
        yield f"{split} split: {counts.bad} of {counts.rows} rows cannot be used, such as {counts.first_bad}"
    if absent:
        yield f"{split} split: {absent} of {n_classes} classes have no image"


def counted(kinds: dict[str, int]) -> str:
    """Write kinds with their counts in words."""
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())
