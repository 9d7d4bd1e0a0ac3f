"""Where labelled images come from: every layout as the same chunks of samples, and the index of a split.

A source never decodes an image and knows no model. A dataset's files are grouped into chunks that depend on the files
alone (never on the number of workers), so chunk and row stand for a sample in every run.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import pyarrow as pa

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
from clipray.sources.rows import LEFT_OUT, image_id, left_out, nowhere, numbered, tabulate
from clipray.sources.storage import is_remote, local, resolve, shown, why

__all__ = [
    "FORMATS",
    "Chunk",
    "Sample",
    "alone",
    "classnames",
    "contents",
    "digest",
    "fetch",
    "identified",
    "identifying",
    "image_id",
    "index",
    "left_out",
    "lenient",
    "listing",
    "location",
    "numbered",
    "outline",
    "remarks",
    "scan",
    "skimmable",
    "survey",
    "tabulate",
    "templates",
]


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


def survey(chunk: Chunk, left: Counter | None = None) -> Iterator[Sample]:
    """Yield the samples that `scan` yields, without their bytes: no image is read.

    What is wrong with a sample is told as far as it can be seen so. What a layout reads stands in its own `survey`.

    Args:
        left: as in `scan`.
    """
    return FORMATS[chunk.format].survey(chunk, Counter() if left is None else left)


def skimmable(chunks: Sequence[Chunk]) -> bool:
    """Tell whether a survey of chunks takes far less than a scan; a layout that knows better has `skimmable`."""
    layouts = [(FORMATS[chunk.format], chunk) for chunk in chunks]
    return all(layout.skimmable(chunk) for layout, chunk in layouts if hasattr(layout, "skimmable"))


def alone(chunks: Sequence[Chunk]) -> bool:
    """Tell whether one image of chunks can be read without others; a layout where it cannot has `together`."""
    layouts = [(FORMATS[chunk.format], chunk) for chunk in chunks]
    return not any(
        layout.together(chunk) for layout, chunk in layouts if hasattr(layout, "together")
    )


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


def index(number: int, chunk: Chunk) -> pa.Table:
    """Make the index of one chunk: its samples without their bytes (schema.INDEX, repeats not yet numbered).

    What was left out is counted in the table's metadata: see `left_out`.

    Args:
        number: the chunk's position in the listing.
    """
    return _tabulated(number, chunk, scan)


def outline(number: int, chunk: Chunk) -> pa.Table:
    """Make what `index` makes without reading an image: rows without ids, and without what only bytes can tell."""
    return _tabulated(number, chunk, survey)


def identified(chunks: Mapping[int, Chunk], rows: pa.Table) -> pa.Table:
    """Read the images of rows of an outline that have no error; return the rows as `index` has them.

    Args:
        chunks, rows: as in `contents`.
    """
    found: list[dict] = []
    for _ in identifying(contents(chunks, rows), rows, found):
        pass
    return pa.Table.from_pylist(found, schema=INDEX)


def identifying(
    data: Iterable[bytes | Exception | None], rows: pa.Table, found: list[dict]
) -> Iterator[bytes | Exception | None]:
    """Pass on the images of rows of an outline, and give each row its id; what stands for an image is an exception.

    Args:
        data: each image's bytes, or why there are none; None for rows with an error.
        found: gets the rows as `index` has them.
    """
    for row, one in zip(rows.to_pylist(), data, strict=True):
        reason = row["error"]
        if isinstance(one, bytes):
            reason = pointers.reason(one)
        elif reason is None:
            reason = why(one)
        row["error"] = reason
        row["size"] = None if reason else len(one)
        row["image_id"] = image_id(nowhere(row["chunk"], row["key"]) if reason else one)
        found.append(row)
        yield OSError(reason) if reason else one


def _tabulated(number: int, chunk: Chunk, samples: Callable) -> pa.Table:
    left: Counter[str] = Counter()
    table = tabulate(number, samples(chunk, left), samples is scan)
    return table.replace_schema_metadata({LEFT_OUT: json.dumps(left)} if left else None)


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
