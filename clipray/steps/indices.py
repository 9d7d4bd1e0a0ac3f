"""Which images a split holds: listed by workers before any model is loaded, and read once, when they are embedded.

What needs the ids of images that are not to be embedded now reads them for it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from clipray import sources
from clipray.artefacts import index as parts
from clipray.artefacts import usable
from clipray.artefacts.index import Counts, Index
from clipray.config import Dataset
from clipray.fingerprint import code
from clipray.numerics import draws
from clipray.steps import identify
from clipray.steps.mappers import Mapper
from clipray.store import Store

PROBES = 8  # images that are looked at before it seems that none can be read


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
    """Look up the index of a split with the ids of its images, or make it where its source is new or has changed.

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


def listed(found: Source, mapper: Mapper, limit: int = 0, drawn: bool = False) -> Index:
    """Look up the index of a split, or list its images without reading them: their ids are found with embeddings.

    The images of a split that has had another index are read, though: its files may have been touched, and what was
    made of the same images serves still. So are those of a split where it seems that none can be read, and of layouts
    that are read faster than they are listed.

    Args:
        mapper, limit: as in `index`. drawn: whether it is for drawing some of its images, whatever index it has had.

    Raises:
        ConfigError: as `index` does, as far as it can be seen.
    """
    return _limited(found, _whole(found, mapper, drawn=drawn), limit, mapper)


def made(found: Source, mapper: Mapper, limit: int = 0) -> Index:
    """Look up or make the index of a split with all ids; arguments and errors as in `index`."""
    chosen = _limited(found, _whole(found, mapper, read=not limit), limit, mapper)
    if not chosen.listed:
        return chosen
    read = identify.read(found.store, chosen, mapper)
    _check(found, found.store.manifest(read.address))
    return read


def _whole(found: Source, mapper: Mapper, read: bool = False, drawn: bool = False) -> Index:
    """Look up or make the index of all images of a split.

    Args:
        read: whether the images are read for their ids where it is made. drawn: as in `listed`.
    """
    store, dataset, split, location, chunks, names = found
    made_of = parts.what(dataset, split, chunks)
    if names is None:
        made_of |= {"labels": "not needed"}
        found = found._replace(chunks=sources.lenient(chunks))
    address = store.address("index", dataset.name, split, what=made_of)
    classes = len(names or ())
    whole = Index(dataset.name, split, address, address, location, (), (), "", classes=classes)
    if not sources.alone(chunks):
        whole = replace(whole, row_groups=tuple(chunk.count for chunk in chunks))
    manifest = store.manifest(address)
    if manifest is None:
        read = read or not sources.skimmable(chunks) or (not drawn and _had_others(store, address))
        manifest = _make(found, address, made_of, mapper, read)
        if not read and not _seems_readable(found, _in_parts(whole, manifest)):
            manifest = _make(found, address, made_of, mapper, read=True)
    elif location not in manifest["locations"]:
        manifest = _also_at(found, address, made_of, manifest)
    _check(found, manifest)
    return _in_parts(whole, manifest)


def _had_others(store: Store, address: str) -> bool:
    """Tell whether the split whose index has an address has had another one."""
    folder, _, name = address.rpartition("/")
    split = f"{name.rpartition('-')[0]}-"
    return any(other.startswith(split) and other != name for other in store.names(folder))


def _check(found: Source, manifest: dict) -> None:
    """Raise `ConfigError` where labels are needed and a split cannot be used, as far as its index tells."""
    if found.names is not None:
        counts = Counts(**manifest["counts"])
        usable.check(found.dataset.name, found.split, counts, len(found.names))


def _in_parts(whole: Index, manifest: dict) -> Index:
    numbers = tuple(range(len(manifest["parts"])))
    whole = replace(whole, parts=tuple(manifest["parts"]), chunk_parts=numbers)
    return identify.told(whole, manifest)


def _make(found: Source, address: str, made_of: dict, mapper: Mapper, read: bool) -> dict:
    """Make all parts of an index, declare it complete, and return its manifest.

    Args:
        read: whether the images are read for their ids.
    """
    store, location = found.store, found.location
    groups = enumerate(parts.groups(found.chunks))
    items = [(store, address, part, location, group) for part, group in groups]
    write = parts.write_part if read else parts.write_listed
    counts = [Counts(*told) for told in mapper(write, items)]
    if read:
        list(mapper(parts.number_repeats, [(store, address, len(counts))]))
    facts = {"locations": [location], "chunks": len(found.chunks), "listed": not read}
    return identify.finish(store, address, made_of, counts, facts)


def _seems_readable(found: Source, whole: Index) -> bool:
    """Look at an image of a list, or some, and tell whether one can be read: else all may be pointers or gone.

    It is not asked where to read one is to read many.
    """
    if not len(whole) or not sources.alone(found.chunks):
        return True
    looked = np.unique(np.arange(PROBES) * len(whole) // PROBES)
    for part, rows in enumerate(parts.by_part(whole, looked)):
        for row in rows.tolist():
            table, chunks = parts.read(found.store, whole.place, part, part, row, 1)
            if sources.identified(chunks, table)["error"][0].as_py() is None:
                return True
    return False


def _also_at(found: Source, address: str, made_of: dict, manifest: dict) -> dict:
    """Write the chunks of an index for another place where its files are seen, and return the new manifest."""
    store, location = found.store, found.location
    for part, group in enumerate(parts.groups(found.chunks)):
        parts.write_chunks(store, address, part, location, group)
    facts = identify.facts_of(manifest) | {"locations": [*manifest["locations"], location]}
    store.finish(address, made_of, **facts)
    return store.manifest(address)


def _limited(found: Source, whole: Index, limit: int, mapper: Mapper) -> Index:
    """Look up or make the index of some images of another one, evenly over classes; it is an artefact of its own."""
    if not 0 < limit < len(whole):
        return whole
    store = found.store
    made_of = {"of": whole.address, "limit": limit, "code": code(parts.evenly, places)}
    address = store.address("index", whole.dataset, whole.split, what=made_of)
    manifest = store.manifest(address)
    if manifest is None:
        (counts,) = mapper(write_limited, [(store, whole, address, limit)])
        counts = [Counts(*told) for told in counts]
        facts = {"listed": whole.listed, "absent": whole.classes - len(whole.labels)}
        facts |= {"left_out": store.manifest(whole.address)["left_out"]}
        manifest = identify.finish(store, address, made_of, counts, facts)
    few = replace(
        whole, address=address, parts=tuple(manifest["parts"]), known_as="", row_groups=()
    )
    return identify.told(few, manifest)


def write_limited(store: Store, whole: Index, address: str, limit: int) -> list[Counts]:
    """Write the chosen rows of each part; a part that none is chosen of stays, empty."""
    table = whole.table(store, ["key", "label"])
    table = table.append_column("place", places(table))
    return parts.write_chosen(store, whole, address, parts.evenly(table, limit))


def places(table: pa.Table) -> pa.Array:
    """Return the order in which images are taken, as numbers: by name, which is known before an image is read."""
    return pa.array([draws.place("limit", key) for key in table["key"].to_pylist()], pa.uint64())
