"""Where labelled images come from: every layout as the same chunks of samples, and the index of a split.

A source never decodes an image and knows no model. A dataset's files are grouped into chunks that depend on the files
alone (never on the number of workers), so chunk and row stand for a sample in every run.
"""

import hashlib
from collections.abc import Iterator, Sequence

import pyarrow as pa

from clipray.config import Dataset, fingerprint
from clipray.errors import ConfigError
from clipray.schema import INDEX
from clipray.sources import bundled, drawn, folder, parquet, wds
from clipray.sources.chunks import Chunk, Sample, lines, resolve

__all__ = [
    *(
        "FORMATS",
        "Chunk",
        "Sample",
        "classnames",
        "digest",
        "fetch",
        "image_id",
        "index",
        "listing",
        "location",
    ),
    *("number_repeats", "scan", "templates"),
]


def listing(dataset: Dataset, split: str, data_root: str) -> list[Chunk]:
    """The chunks of a split, without reading an image.

    Raises:
        ConfigError: the split is not there; the message says what is, and what to write.
    """
    if split not in dataset.splits:
        raise ConfigError(
            f"dataset {dataset.name} has no {split} split; it has: {', '.join(dataset.splits)}"
        )
    return _format(dataset).listing(dataset, split, location(dataset, data_root))


def scan(chunk: Chunk) -> Iterator[Sample]:
    """Every sample of a chunk in order."""
    return FORMATS[chunk.format].scan(chunk)


def fetch(chunk: Chunk, rows: pa.Table) -> Iterator[bytes | Exception]:
    """The bytes of some rows of a chunk in order; an exception in place of what cannot be read.

    Args:
        rows: rows of the chunk's index, without the error rows.
    """
    return FORMATS[chunk.format].fetch(chunk, rows)


def location(dataset: Dataset, data_root: str) -> str:
    """The dataset's folder, or the name of a set that needs none."""
    return dataset.uri if _format(dataset) in (drawn, bundled) else resolve(dataset.uri, data_root)


def digest(chunks: Sequence[Chunk]) -> str:
    """16 hex digits that change when a file is added, removed, renamed or rewritten; not when the whole moves."""
    return fingerprint(
        [[c.format, c.uri.rpartition("/")[2], c.start, c.count, c.files, c.state] for c in chunks]
    )


def classnames(dataset: Dataset, data_root: str) -> list[str]:
    """The caption-ready names in label order: the config's list, its file, or what the layout itself names.

    Raises:
        ConfigError: there are none, one stands twice in a row of its own, or their number is not the layout's.
    """
    uri = location(dataset, data_root)
    known = _format(dataset).classes(dataset, uri)
    names = _texts(dataset, dataset.classnames, uri)
    if names is None:
        names = [name.replace("_", " ") for name in known or []]
    if not names:
        raise ConfigError(
            f"dataset {dataset.name}: no class names (looked for {dataset.classnames!r} in {uri}).\n  Put a file"
            " `classnames.txt` there (one name a line, in label order), or write `classnames: [cat, dog, …]`."
        )
    if known and len(known) != len(names):
        raise ConfigError(
            f"dataset {dataset.name}: {len(names)} class names, but {uri} has {len(known)} classes"
            f" ({', '.join(known[:5])}{', …' if len(known) > 5 else ''}).\n  Correct `classnames`."
        )
    return names


def templates(dataset: Dataset, data_root: str) -> list[str]:
    """The prompts, with "{c}" where the class name goes ("{}" in a source becomes "{c}").

    Raises:
        ConfigError: there are none, or one has no place for the name.
    """
    uri = location(dataset, data_root)
    found = _texts(dataset, dataset.templates, uri)
    if not found:
        raise ConfigError(
            f"dataset {dataset.name}: no prompt templates (looked for {dataset.templates!r} in {uri}).\n  Put a file"
            ' `zeroshot_classification_templates.txt` there, or write `templates: ["a photo of a {c}."]`.'
        )
    found = [text if "{c}" in text else text.replace("{}", "{c}", 1) for text in found]
    for text in found:
        if "{c}" not in text:
            raise ConfigError(
                f"dataset {dataset.name}: template {text!r} has no {{c}} where the class name goes"
            )
    return found


def image_id(data: bytes) -> str:
    """Who an image is: 32 hex digits of its bytes' hash."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def index(number: int, chunk: Chunk) -> pa.Table:
    """The index of one chunk: who the samples are, without their bytes (schema.INDEX, repeats not yet numbered).

    Args:
        number: the chunk's position in the listing.
    """
    rows = []
    for sample in scan(chunk):
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


def number_repeats(tables: Sequence[pa.Table]) -> pa.Table:
    """The index of a split from those of its chunks, ordered by (chunk, row); equal images get ".1", ".2" …

    >>> twice = index(0, Chunk("drawn", "colours", 0, 1, (), {"split": "test", "seed": 0}, ""))
    >>> ids = number_repeats([twice, twice])["image_id"].to_pylist()
    >>> ids[1] == ids[0] + ".1"
    True
    """
    table = pa.concat_tables(tables) if tables else INDEX.empty_table()
    table = table.sort_by([("chunk", "ascending"), ("row", "ascending")])
    seen: dict[str, int] = {}
    ids = []
    for name in table["image_id"].to_pylist():
        repeat = seen.get(name, 0)
        seen[name] = repeat + 1
        ids.append(f"{name}.{repeat}" if repeat else name)
    return table.set_column(0, INDEX.field("image_id"), pa.array(ids, pa.string()))


def _format(dataset: Dataset) -> object:
    if dataset.format not in FORMATS:
        raise ConfigError(
            f"dataset {dataset.name}: format {dataset.format!r} is unknown; known: {', '.join(FORMATS)}"
        )
    return FORMATS[dataset.format]


def _texts(dataset: Dataset, given: tuple[str, ...] | str, uri: str) -> list[str] | None:
    """A list as given, or the lines of a file in the dataset's folder; None where there is no such file."""
    if not isinstance(given, str):
        return list(given)
    return None if _format(dataset) in (drawn, bundled) else lines(resolve(given, uri))


FORMATS = {"folder": folder, "parquet": parquet, "wds": wds, "drawn": drawn, "sklearn": bundled}
