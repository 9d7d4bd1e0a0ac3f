"""Where labelled images come from: every layout as the same chunks of samples, and the index of a split.

A source never decodes an image and knows no model. A dataset's files are grouped into chunks that depend on the files
alone (never on the number of workers), so chunk and row stand for a sample in every run.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipray.config import Dataset, fingerprint
from clipray.errors import ConfigError
from clipray.schema import INDEX
from clipray.sources import (
    bundled,
    drawn,
    flat,
    folder,
    given,
    listed,
    names,
    parquet,
    pointers,
    texts,
    wds,
)
from clipray.sources.chunks import LENIENT, VALIDATION, Chunk, Sample
from clipray.sources.storage import is_remote, local, resolve, shown

__all__ = [
    *("FORMATS", "Chunk", "Sample", "classnames", "digest", "fetch", "image_id", "index"),
    *(
        "contents",
        "left_out",
        "lenient",
        "listing",
        "location",
        "numbered",
        "remarks",
        "scan",
        "tabulate",
        "templates",
    ),
]

LEFT_OUT = b"left_out"  # key in the metadata of a chunk's index


def listing(dataset: Dataset, split: str, data_root: str) -> list[Chunk]:
    """List the chunks of a split, without reading an image.

    Raises:
        ConfigError: the split is not there; the message says what is, and what to write.
    """
    if split not in dataset.splits:
        raise ConfigError(
            f"dataset {dataset.name} has no {split} split; it has: {', '.join(dataset.splits)}"
        )
    return _format(dataset).listing(dataset, split, location(dataset, data_root))


def scan(chunk: Chunk, left: Counter | None = None) -> Iterator[Sample]:
    """Yield every sample of a chunk in order; a pointer in place of a file that was not fetched is an error.

    Args:
        left: gets the counts of what lies there and is no sample, by its kind.
    """
    for sample in FORMATS[chunk.format].scan(chunk, Counter() if left is None else left):
        reason = None if sample.data is None else pointers.reason(sample.data)
        yield sample._replace(data=None, error=reason) if reason else sample


def lenient(chunks: Sequence[Chunk]) -> list[Chunk]:
    """Return the same chunks, in which a sample without a label is no error."""
    return [chunk._replace(options={**chunk.options, LENIENT: True}) for chunk in chunks]


def fetch(chunk: Chunk, rows: pa.Table) -> Iterator[bytes | Exception]:
    """Yield the bytes of some rows of a chunk in order, or an exception in place of what cannot be read.

    Args:
        rows: rows of the chunk's index, without the error rows.
    """
    return FORMATS[chunk.format].fetch(chunk, rows)


def contents(chunks: Mapping[int, Chunk], rows: pa.Table) -> Iterator[bytes | Exception | None]:
    """Yield the bytes of rows of an index, in their order, which is by chunk; None for rows with an error.

    Args:
        chunks: by number, in order, those that the rows lie in.
    """
    for number, chunk in chunks.items():
        part = rows.filter(pa.compute.equal(rows["chunk"], number))
        good = part.filter(pa.compute.is_null(part["error"]))
        found = iter(fetch(chunk, good))
        yield from (None if error else next(found) for error in part["error"].to_pylist())


def location(dataset: Dataset, data_root: str) -> str:
    """Return the dataset's folder, or the name of a set that needs none."""
    if _format(dataset) in (drawn, bundled):
        return dataset.uri
    uri = resolve(dataset.uri, data_root)
    return uri if is_remote(uri) else local(uri)  # workers may be in another folder than the driver


def digest(chunks: Sequence[Chunk]) -> str:
    """Compute 16 hex digits that change when a file is added, removed, renamed or rewritten, but not by a move."""
    return fingerprint(
        [[c.format, c.uri.rpartition("/")[2], c.start, c.count, c.files, c.state] for c in chunks]
    )


def classnames(dataset: Dataset, data_root: str) -> list[str]:
    """Return the caption-ready names in label order: the config's list, its file, or what the layout itself names.

    Raises:
        ConfigError: there are none, one is empty, their number is not the layout's, or they are the layout's own in
            another order.
    """
    uri = location(dataset, data_root)
    known = _format(dataset).classes(dataset, uri)
    given = _texts(dataset, dataset.classnames, uri, texts.names)
    found = given
    if found is None:
        found = [" ".join(name.replace("_", " ").split()) for name in known or []]
    if not found:
        for split in dataset.splits:  # what is not there at all is told first
            listing(dataset, split, data_root)
        raise ConfigError(
            f"dataset {dataset.name}: no class names (looked for {dataset.classnames!r} in {shown(uri)}).\n  Put a file"
            " `classnames.txt` there (one name a line, in label order), or write `classnames: [cat, dog, …]`."
        )
    if not all(name.strip() for name in found):
        raise ConfigError(
            f"dataset {dataset.name}: a class name is empty.\n  Correct `classnames`."
        )
    if known and len(known) != len(found):
        raise ConfigError(
            f"dataset {dataset.name}: {len(found)} class names, but {shown(uri)} has {len(known)} classes"
            f" ({', '.join(known[:5])}{', …' if len(known) > 5 else ''}).\n  Correct `classnames`."
        )
    if known and given is not None:
        _refuse_swapped(dataset, known, given)
    return found


def templates(dataset: Dataset, data_root: str) -> list[str]:
    """Return the prompts, with "{c}" where the class name goes ("{}" in a source becomes "{c}").

    Raises:
        ConfigError: there are none, or one has no place for the name or several of different kinds.
    """
    uri = location(dataset, data_root)
    found = _texts(dataset, dataset.templates, uri, texts.templates)
    if not found:
        raise ConfigError(
            f"dataset {dataset.name}: no prompt templates (looked for {dataset.templates!r} in {shown(uri)}).\n  Put a"
            ' file `zeroshot_classification_templates.txt` there, or write `templates: ["a photo of a {c}."]`.'
        )
    return [_template(dataset, text) for text in found]


def remarks(dataset: Dataset, data_root: str) -> list[str]:
    """Yield what a person should know of a usable dataset: a split of another name, names that may not fit."""
    found = []
    test = dataset.splits["test"].strip("/").rpartition("/")[2]
    if test.casefold() in VALIDATION:
        found.append(f"its {test!r} split is taken for test")
    known = _format(dataset).classes(dataset, location(dataset, data_root))
    if not known:
        return found
    if twins := names.alike(known):
        found.append(f"classes whose names differ in case or separators only: {names.some(twins)}")
    given = _texts(dataset, dataset.classnames, location(dataset, data_root), texts.names)
    if given and (pairs := names.different(known, given)):
        found.append(
            f"class names that are not those of the data, to be checked: {names.some(pairs)}"
        )
    return found


def image_id(data: bytes) -> str:
    """Identify an image by 32 hex digits of its bytes' hash."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def index(number: int, chunk: Chunk) -> pa.Table:
    """Make the index of one chunk: its samples without their bytes (schema.INDEX, repeats not yet numbered).

    What was left out is counted in the table's metadata: see `left_out`.

    Args:
        number: the chunk's position in the listing.
    """
    left: Counter[str] = Counter()
    table = tabulate(number, scan(chunk, left))
    return table.replace_schema_metadata({LEFT_OUT: json.dumps(left)} if left else None)


def tabulate(number: int, samples: Iterable[Sample]) -> pa.Table:
    """Turn the samples of one chunk into rows of its index."""
    rows = []
    for sample in samples:
        readable = sample.data is not None
        about = sample.data if readable else f"{number}\0{sample.key}".encode()
        rows.append(
            {
                "image_id": image_id(about),
                "chunk": number,
                "row": sample.row,
                "key": sample.key,
                "offset": sample.offset,
                "size": len(sample.data) if readable else None,
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


def _format(dataset: Dataset) -> object:
    if dataset.format not in FORMATS:
        raise ConfigError(
            f"dataset {dataset.name}: format {dataset.format!r} is unknown; known: {', '.join(FORMATS)}"
        )
    known = FORMATS[dataset.format].KNOWN_OPTIONS
    for key in dataset.options:
        if key not in known:
            raise ConfigError(
                f"dataset {dataset.name}: options.{key} is unknown; known: {', '.join(known) or 'none'}"
            )
    return FORMATS[dataset.format]


def _texts(
    dataset: Dataset,
    given: tuple[str, ...] | str,
    uri: str,
    read: Callable[[str], list[str] | None],
) -> list[str] | None:
    """Return a list as given, or read it from a file in the dataset's folder; None where there is no such file."""
    if not isinstance(given, str):
        return list(given)
    return None if _format(dataset) in (drawn, bundled) else read(resolve(given, uri))


def _template(dataset: Dataset, text: str) -> str:
    if "{c}" not in text:
        fits = text.count("{}") == 1
        text = text.replace("{}", "{c}") if fits else text
    if "{c}" not in text or "{}" in text:
        why = "has no {c} where the class name goes"
        if "{}" in text:
            why = "has {} more than once, or beside {c}"
        raise ConfigError(
            f"dataset {dataset.name}: template {text!r} {why}.\n  Write it as in `a photo of a {{c}}.`"
            " (`templates`, or the file that it names)."
        )
    return text


def _refuse_swapped(dataset: Dataset, known: Sequence[str], given: Sequence[str]) -> None:
    if pairs := names.swapped(known, given):
        raise ConfigError(
            f"dataset {dataset.name}: the class names are those of the data in another order: {names.some(pairs)}.\n"
            f"  Write `classnames` in label order ({names.some(known)}), or leave it out."
        )


FORMATS = {
    "folder": folder,
    "parquet": parquet,
    "wds": wds,
    "drawn": drawn,
    "sklearn": bundled,
    # vectors of models that clipray need not load
    "embeddings": given,
    "logits": given,
    # images without labels, to predict on
    "flat": flat,
    "listed": listed,
}
