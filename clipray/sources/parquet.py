"""Parquet files with images in them: the hub's layout, or a plain column of bytes or of paths.

Files of a split, below `<uri>` or `<uri>/data`: `<split>-*.parquet`, `<split>_*.parquet`, `<split>.parquet` or
`<split>/*.parquet`; a split's name that ends in `.parquet` is a file name or a pattern of its own. The image column
(`options: {image: …}`) is `struct<bytes, path>`, binary, or a string with a path below the dataset's folder; the label
column (`options: {label: …}`) holds integers, or strings that `options: {labels: […]}` lists in label order.
"""

import fnmatch
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipray.config import Dataset
from clipray.errors import ConfigError
from clipray.sources.chunks import (
    Chunk,
    Sample,
    entries,
    is_folder,
    join,
    nothing_for,
    open_fs,
    read_files,
    state,
)

IMAGE_COLUMNS = ("image", "img", "bytes", "path")
LABEL_COLUMNS = ("label", "labels", "cls")
KNOWN_OPTIONS = ("image", "label", "labels")


def classes(dataset: Dataset, uri: str) -> list[str] | None:
    """The class names that the first file's schema carries (as the hub writes them), or None."""
    for split in dataset.splits:
        for path, _ in _files(dataset, split, uri)[:1]:
            with _open(path) as file:
                schema = pq.read_schema(file)
            features = (
                json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
                .get("info", {})
                .get("features", {})
            )
            names = features.get(_column(dataset, schema, "label", LABEL_COLUMNS, path), {}).get(
                "names"
            )
            return list(names) if isinstance(names, list) else None
    return None


def listing(dataset: Dataset, split: str, uri: str) -> list[Chunk]:
    """One chunk per row group, in the order of the files' names."""
    unknown = set(dataset.options) - set(KNOWN_OPTIONS)
    if unknown:
        raise ConfigError(
            f"dataset {dataset.name}: options.{min(unknown)} is unknown; known: {', '.join(KNOWN_OPTIONS)}"
        )
    files = _files(dataset, split, uri)
    if not files:
        raise nothing_for(dataset, split, uri, f"{dataset.splits[split]}-*.parquet")
    chunks = []
    for path, info in files:
        try:
            with _open(path) as file:
                footer = pq.read_metadata(file)
        except (pa.ArrowException, OSError) as error:
            raise ConfigError(
                f"dataset {dataset.name}: {path} is not a complete parquet file: {error}"
            ) from error
        options = _columns(dataset, footer.schema.to_arrow_schema(), path) | {"folder": uri}
        for group in range(footer.num_row_groups):
            count = footer.row_group(group).num_rows
            chunks.append(Chunk("parquet", path, group, count, (), options, state([info])))
    return chunks


def scan(chunk: Chunk) -> Iterator[Sample]:
    """Every row of a row group in order."""
    table = _read(chunk, [chunk.options["image"], chunk.options["label"]])
    labels = chunk.options["labels"]
    for row in range(table.num_rows):
        label, data = (
            table[chunk.options["label"]][row].as_py(),
            _bytes(chunk, table[chunk.options["image"]][row].as_py()),
        )
        key = f"{chunk.uri.rpartition('/')[2]}#{chunk.start}/{row}"
        if isinstance(label, str):
            error = None if label in labels else f"label {label!r} is not in options.labels"
            label = labels.index(label) if label in labels else None
        else:
            error = None if label is not None else "no label"
        if isinstance(data, Exception):
            data, error = None, str(data)
        yield Sample(row, key, data, label, error=error)


def fetch(chunk: Chunk, rows: pa.Table) -> Iterator[bytes | Exception]:
    """The bytes of just those rows, in order; the row group's image column is read once."""
    column = _read(chunk, [chunk.options["image"]])[chunk.options["image"]]
    for row in rows["row"].to_pylist():
        yield _bytes(chunk, column[row].as_py())


def _files(dataset: Dataset, split: str, uri: str) -> list[tuple[str, dict]]:
    name = dataset.splits[split]
    patterns = (
        [name]
        if name.endswith(".parquet")
        else [f"{name}{rest}.parquet" for rest in ("", "-*", "_*", ".*")]
    )
    for folder in (uri, join(uri, "data")):
        there = entries(folder)
        found = [
            each
            for each in there
            if any(fnmatch.fnmatchcase(each, pattern) for pattern in patterns)
        ]
        if found:
            return [(join(folder, each), there[each]) for each in found]
        if name in there and is_folder(there[name]):
            below = entries(join(folder, name))
            return [
                (join(folder, name, each), below[each])
                for each in below
                if each.endswith(".parquet")
            ]
    return []


def _columns(dataset: Dataset, schema: pa.Schema, path: str) -> dict[str, Any]:
    """The two columns' names, checked, and the list that turns string labels into numbers."""
    image = _column(dataset, schema, "image", IMAGE_COLUMNS, path)
    label = _column(dataset, schema, "label", LABEL_COLUMNS, path)
    labels = list(dataset.options.get("labels", ()))
    kind = schema.field(label).type
    if not pa.types.is_integer(kind) and not (labels and _is_text(kind)):
        raise ConfigError(
            f"dataset {dataset.name}: column {label!r} of {path} holds {kind}, not integers.\n  For strings write"
            " `options: {labels: [<each string, in label order>]}`, or name another column: `options: {label: …}`."
        )
    kind = schema.field(image).type
    if not (
        pa.types.is_struct(kind)
        or _is_text(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    ):
        raise ConfigError(
            f"dataset {dataset.name}: column {image!r} of {path} holds {kind}, not image bytes, struct<bytes, path> or"
            " paths.\n  Name another column: `options: {image: …}`."
        )
    return {"image": image, "label": label, "labels": labels}


def _column(
    dataset: Dataset, schema: pa.Schema, kind: str, usual: tuple[str, ...], path: str
) -> str:
    wanted = (dataset.options[kind],) if kind in dataset.options else usual
    for name in wanted:
        if name in schema.names:
            return name
    raise ConfigError(
        f"dataset {dataset.name}: {path} has no {kind} column (looked for {', '.join(wanted)}; there is:"
        f" {', '.join(schema.names)}).\n  In the dataset's YAML write `options: {{{kind}: <its name>}}`."
    )


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _open(path: str) -> Any:
    fs, inner = open_fs(path)
    return fs.open(inner, "rb")


def _read(chunk: Chunk, columns: list[str]) -> pa.Table:
    with _open(chunk.uri) as file, pq.ParquetFile(file) as reader:
        return reader.read_row_group(chunk.start, columns=columns)


def _bytes(chunk: Chunk, value: Any) -> bytes | Exception:
    """The image's bytes from a cell: bytes, a path below the dataset's folder, or a struct of both."""
    if isinstance(value, dict):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if isinstance(value, str):
        found = next(read_files([join(chunk.options["folder"], value)]))
        return ValueError(f"cannot be read: {value}") if isinstance(found, Exception) else found
    return ValueError("no image bytes") if value is None else value
