"""Which images a split holds: every image hashed and numbered once, by workers, before any model is loaded.

Of a train split of which only support sets are looked at, no image is read: its rows are listed, without ids.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pyarrow as pa

from clipray import sources
from clipray.artefacts import index as parts
from clipray.artefacts import usable
from clipray.artefacts.index import Counts, Index
from clipray.config import Dataset
from clipray.fingerprint import code
from clipray.numerics import draws
from clipray.steps.mappers import Mapper
from clipray.store import Store


class Source(NamedTuple):
    """A split as it lies there, before an image is read.

    Attributes:
        location: the name of its place. names: the class names; None where labels are taken as they are.
    """

    store: Store
    dataset: Dataset
    split: str
    location: str
    chunks: list[sources.Chunk]
    names: Sequence[str] | None


def index(
    store: Store,
    dataset: Dataset,
    split: str,
    data_root: str,
    mapper: Mapper,
    limit: int = 0,
    names: Sequence[str] | None = None,
    labelled: bool = True,
) -> Index:
    """Look up the index of a split in the store, or make it where its source is new or has changed.

    Args:
        store: where it is kept.
        dataset: the catalogue's entry.
        split: "train" or "test".
        data_root: what relative URIs lie below.
        mapper: how the parts are made: `in_threads`, or Ray tasks.
        limit: images to take of it, evenly over classes; 0 for all.
        names: the class names, where they are known already.
        labelled: whether images without a label are of no use; else labels are taken as they are.

    Raises:
        ConfigError: no image can be read, or a label is of no class.
    """
    return made(source(store, dataset, split, data_root, names, labelled), mapper, limit)


def source(
    store: Store,
    dataset: Dataset,
    split: str,
    data_root: str,
    names: Sequence[str] | None = None,
    labelled: bool = True,
) -> Source:
    """List the files of a split; arguments and errors as in `index`."""
    if labelled and names is None:
        names = sources.classnames(dataset, data_root)
    chunks = sources.listing(dataset, split, data_root)
    location = parts.location_name(sources.location(dataset, data_root))
    return Source(store, dataset, split, location, chunks, names if labelled else None)


def known(found: Source, limit: int = 0) -> Index | None:
    """Look up the index of a split whose images have all been read; None where they have not."""
    return _index(found, None, limit, listed=False)


def made(found: Source, mapper: Mapper, limit: int = 0, listed: bool = False) -> Index:
    """Look up the index of a split, or make it.

    Args:
        mapper, limit: as in `index`. listed: whether no image is read, so that the rows have no ids.

    Raises:
        ConfigError: as `index` does, as far as it can be seen.
    """
    return _index(found, mapper, limit, listed)


def _index(found: Source, mapper: Mapper | None, limit: int, listed: bool) -> Index | None:
    store, dataset, split, location, chunks, names = found
    made_of = parts.what(dataset, split, chunks, listed)
    if names is None:
        chunks = sources.lenient(chunks)
        made_of |= {"labels": "not needed"}
    address = store.address("index", dataset.name, split, what=made_of)
    manifest = store.manifest(address)
    if manifest is None and mapper is None:
        return None
    if manifest is None:
        write = parts.write_listed if listed else parts.write_part
        manifest = _make(store, address, made_of, location, chunks, mapper, write)
    elif location not in manifest["locations"]:
        manifest = _also_at(store, address, made_of, location, chunks, manifest)
    counts = Counts(**manifest["counts"])
    remarks: tuple[str, ...] = ()
    if names is not None:
        usable.check(dataset.name, split, counts, len(names))
        remarks = tuple(_remarks(split, counts, len(names)))
    whole = Index(
        dataset=dataset.name,
        split=split,
        address=address,
        chunks_at=address,
        location=location,
        parts=tuple(manifest["parts"]),
        chunk_parts=tuple(range(len(manifest["parts"]))),
        content=manifest["content"],
        remarks=remarks,
        listed=listed,
        labels=usable.labels_of(counts),
    )
    return limited(store, whole, limit, mapper) if 0 < limit < len(whole) else whole


def _make(
    store: Store,
    address: str,
    made_of: dict,
    location: str,
    chunks: list[sources.Chunk],
    mapper: Mapper,
    write: Callable,
) -> dict:
    """Make all parts of an index, number the repeats over them, declare it complete, and return its manifest.

    Args:
        write: `write_part`, or `write_listed`, whose rows have no ids of which some could be equal.
    """
    items = [
        (store, address, part, location, group) for part, group in enumerate(parts.groups(chunks))
    ]
    counts = [Counts(*one) for one in mapper(write, items)]
    if write is parts.write_part:
        list(mapper(parts.number_repeats, [(store, address, len(counts))]))
    facts = _facts(counts) | {"locations": [location], "chunks": len(chunks)}
    store.finish(address, made_of, **facts)
    return store.manifest(address)


def _facts(counts: Sequence[Counts]) -> dict[str, Any]:
    """Return what the manifest of an index tells: the rows of each part, and what they hold together."""
    whole = parts.merged(counts)
    return {
        "images": whole.rows,
        "parts": [one.rows for one in counts],
        "content": f"{whole.content:032x}",
        "counts": whole._asdict(),
        "left_out": whole.left_out,
        "unreadable": whole.reasons,
    }


def _also_at(
    store: Store,
    address: str,
    made_of: dict,
    location: str,
    chunks: list[sources.Chunk],
    manifest: dict,
) -> dict:
    """Write the chunks of an index for another place where its files are seen, and return the new manifest."""
    for part, group in enumerate(parts.groups(chunks)):
        parts.write_chunks(store, address, part, location, group)
    known = ("images", "parts", "content", "counts", "left_out", "unreadable", "chunks")
    facts = {key: manifest[key] for key in known}
    store.finish(address, made_of, **facts, locations=[*manifest["locations"], location])
    return store.manifest(address)


def limited(store: Store, whole: Index, limit: int, mapper: Mapper | None) -> Index | None:
    """Make or look up an index of some images of another one, evenly over classes; it is an artefact of its own.

    Args:
        mapper: how it is made; None: return None where it is not there.
    """
    made_of = {"of": whole.address, "limit": limit, "code": code(parts.evenly, places)}
    address = store.address("index", whole.dataset, whole.split, what=made_of)
    manifest = store.manifest(address)
    if manifest is None and mapper is None:
        return None
    if manifest is None:
        (counts,) = mapper(write_limited, [(store, whole, address, limit)])
        store.finish(address, made_of, **_facts([Counts(*one) for one in counts]))
        manifest = store.manifest(address)
    return replace(
        whole,
        address=address,
        parts=tuple(manifest["parts"]),
        content=manifest["content"],
        labels=usable.labels_of(Counts(**manifest["counts"])),
    )


def write_limited(store: Store, whole: Index, address: str, limit: int) -> list[Counts]:
    """Write the chosen rows of each part; a part that none is chosen of stays, empty."""
    table = whole.table(store, ["image_id", "key", "label"])
    table = table.append_column("place", places(whole.split, table))
    return parts.write_chosen(store, whole, address, parts.evenly(table, limit))


def places(split: str, table: pa.Table) -> pa.Array:
    """Return the order in which images are taken, as text or numbers: by id, or, of a train split, by name.

    An image's name is known before it is read, so that those of a listed train split are the same ones.
    """
    if split != "train":
        return table["image_id"].combine_chunks()
    return pa.array([draws.place("limit", key) for key in table["key"].to_pylist()], pa.uint64())


def _remarks(split: str, counts: Counts, n_classes: int) -> Iterator[str]:
    """Yield what a person should know of a split that can be used."""
    if counts.left_out:
        yield f"{split} split: left out as no image: {counted(counts.left_out)}"
    if counts.bad:
        yield f"{split} split: {counts.bad} of {counts.rows} rows cannot be used, such as {counts.first_bad}"
    missing = n_classes - len(counts.labels)
    if missing:
        yield f"{split} split: {missing} of {n_classes} classes have no image"


def counted(kinds: dict[str, int]) -> str:
    """Write kinds with their counts in words."""
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())
