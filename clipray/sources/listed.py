"""A list of images without labels: a text file with one path or URI a line, or Parquet with a column of them.

Relative paths lie below the folder of the list. A Parquet file, or each one in a folder of them, has a column of paths,
of bytes, or of `struct<bytes, path>`: `options: {image: …}`, or one of the usual names. A column of integers named
`label` gives labels, where there is one.
"""

from collections import Counter
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from clipray.config import Dataset
from clipray.errors import ConfigError
from clipray.sources import columns, parquet, pointers, texts
from clipray.sources.chunks import LENIENT, Chunk, Sample
from clipray.sources.storage import (
    entries,
    join,
    opened,
    read_files,
    resolve,
    shown,
    state,
    targets,
    why,
)

CHUNK = 1024
ALL = "."  # a split's name that stands for every file
KNOWN_OPTIONS = ("image",)
COLUMNS = (*columns.IMAGE_COLUMNS, "uri", "url", "image_path", "file", "file_name", "filename")
WEB = ("http://", "https://")


def classes(dataset: Dataset, uri: str) -> None:
    """There are no class names."""


def listing(dataset: Dataset, split: str, uri: str) -> list[Chunk]:
    """Chunks of up to 1024 lines, or one for each row group."""
    if uri.lower().endswith(".parquet"):
        files = [uri]
    elif dataset.splits[split] == ALL:
        files = [join(uri, name) for name in entries(uri) if name.lower().endswith(".parquet")]
    else:
        files = [path for path, _ in parquet.files_of(dataset, split, uri)]
    if not files:
        return _lines(dataset, uri)
    return [chunk for path in files for chunk in _groups(dataset, path, uri if path != uri else "")]


def scan(chunk: Chunk, left: Counter) -> Iterator[Sample]:
    """Every line of a chunk in order."""
    for row, (data, (place, _)) in enumerate(zip(_read(chunk), chunk.files, strict=True)):
        if isinstance(data, bytes):
            yield Sample(row, shown(place), data, None)
        else:
            yield Sample(row, shown(place), None, None, error=str(data))


def survey(chunk: Chunk, left: Counter) -> Iterator[Sample]:
    """Every line of a chunk in order; no file is opened."""
    for row, (place, _) in enumerate(chunk.files):
        error = str(_refused(place)) if place.startswith(WEB) else None
        yield Sample(row, shown(place), None, None, error=error)


def fetch(chunk: Chunk, rows: pa.Table) -> Iterator[bytes | Exception]:
    """The bytes of just those rows, in order."""
    wanted = [chunk.files[row] for row in rows["row"].to_pylist()]
    return _read(chunk._replace(files=wanted))


def _read(chunk: Chunk) -> Iterator[bytes | Exception]:
    near = [place for place, _ in chunk.files if not place.startswith(WEB)]
    found = read_files(near)
    for place, _ in chunk.files:
        if place.startswith(WEB):
            yield _refused(place)
            continue
        data = next(found)
        yield data if isinstance(data, bytes) else ValueError(why(data))


def _refused(place: str) -> Exception:
    return ValueError(f"{shown(place)}: {parquet.NO_WEB}")


def _lines(dataset: Dataset, uri: str) -> list[Chunk]:
    found = texts.lines(uri)
    if not found:
        why = "it holds no line" if found is not None else "there is no such file"
        raise ConfigError(
            f"{dataset.name}: {shown(uri)}: {why}. Write one path or URI of an image a line"
        )
    folder = uri.rpartition("/")[0] or "/"
    places = [line if line.startswith(WEB) else resolve(line, folder) for line in found]
    chunks = []
    for start in range(0, len(places), CHUNK):
        part = places[start : start + CHUNK]
        near = [place for place in part if not place.startswith(WEB)]
        files = tuple((place, None) for place in part)
        chunks.append(Chunk("listed", uri, start, len(part), files, {}, state(targets(near))))
    return chunks


def _groups(dataset: Dataset, path: str, below: str) -> list[Chunk]:
    """The row groups of a Parquet file, as the reader of labelled ones takes them.

    Args:
        below: what relative paths lie below; "": the file's own folder.
    """
    folder, _, name = path.rpartition("/")
    info = entries(folder).get(name, {"name": path, "size": None})
    pointers.refuse_small(path, info)
    try:
        with opened(path) as file:
            footer = pq.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        missing = isinstance(error, FileNotFoundError)
        why = "there is no such file" if missing else f"it is not a complete Parquet file: {error}"
        raise ConfigError(f"{dataset.name}: {shown(path)}: {why}") from error
    schema = footer.schema.to_arrow_schema()
    image, label = columns.image_of(dataset, schema, COLUMNS, path), _label(schema)
    options = {"image": image, "label": label, "labels": [], LENIENT: True}
    options["folder"] = below or folder or "/"
    chunks = []
    for group in range(footer.num_row_groups):
        count = footer.row_group(group).num_rows
        chunk = Chunk("parquet", path, group, count, (), options, state([info]))
        chunks.append(parquet.with_targets(chunk, footer))
    return chunks


def _label(schema: pa.Schema) -> str | None:
    """The column of labels, where it is plainly one."""
    for name in columns.LABEL_COLUMNS:
        if schema.names.count(name) == 1 and pa.types.is_integer(schema.field(name).type):
            return name
    return None
