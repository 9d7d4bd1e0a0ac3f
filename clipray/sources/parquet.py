"""Parquet files with images in them: the hub's layout, or a plain column of bytes or of paths.

Files of a split, below `<uri>` or `<uri>/data`: `<split>-*.parquet`, `<split>_*.parquet`, `<split>.parquet` or
`<split>/*.parquet`; a split's name that ends in `.parquet` is a file name or a pattern of its own. The image column
(`options: {image: …}`) is `struct<bytes, path>`, binary, or a string with a path (absolute, or below the dataset's
folder). The label column (`options: {label: …}`) holds integers, or strings that `options: {labels: […]}` lists in
label order.
"""

import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipray.config import Dataset
from clipray.errors import ConfigError
from clipray.sources import columns, pointers
from clipray.sources.chunks import LENIENT, Chunk, Sample, folder_named, nothing_for
from clipray.sources.storage import (
    entries,
    is_folder,
    join,
    opened,
    read_files,
    resolve,
    shown,
    skimmed,
    state,
    targets,
)

KNOWN_OPTIONS = ("image", "label", "labels")
AT_ONCE = 16  # files whose ends are read together
LARGEST = 2**63 - 1  # a label that schema.INDEX can hold
# bytes of images that a worker keeps in case that the next shard is of the same row group
KEPT = 256 * 2**20
BUFFER = 2**20  # bytes that are read at a time of a row group that is larger
BATCH = 32  # rows of it
NO_WEB = "images at web addresses are not fetched: download them"

DAMAGED = "its row group is damaged"

_kept: dict[tuple, pa.ChunkedArray] = {}
_footers: dict[tuple, pq.FileMetaData] = {}


def classes(dataset: Dataset, uri: str) -> list[str] | None:
    """The strings of `options: {labels: […]}`, or the names in the first file's schema (as the hub writes them)."""
    for split in dataset.splits:
        for path, info in files_of(dataset, split, uri)[:1]:
            schema = _footer(dataset, path, info).schema.to_arrow_schema()
            return columns.class_names(schema, columns.chosen(dataset, schema, path))
    return None


def listing(dataset: Dataset, split: str, uri: str) -> list[Chunk]:
    """One chunk per row group, in the order of the files' names."""
    files = files_of(dataset, split, uri)
    if not files:
        raise nothing_for(dataset, split, uri, f"{dataset.splits[split]}-*.parquet")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        footers = list(pool.map(lambda file: _footer(dataset, *file), files))
    chunks = []
    for (path, info), footer in zip(files, footers, strict=True):
        chosen = columns.chosen(dataset, footer.schema.to_arrow_schema(), path)
        options = chosen._asdict() | {"folder": uri}
        for group in range(footer.num_row_groups):
            count = footer.row_group(group).num_rows
            chunk = Chunk("parquet", path, group, count, (), options, state([info]))
            chunks.append(with_targets(chunk, footer))
    return chunks


def together(chunk: Chunk) -> bool:
    """Tell whether whoever reads an image reads all those of its row group: not where files beside it hold them."""
    return not chunk.options.get("paths")


def scan(chunk: Chunk, left: Counter) -> Iterator[Sample]:
    """Every row of a row group in order."""
    return _rows(chunk, read_images=True)


def survey(chunk: Chunk, left: Counter) -> Iterator[Sample]:
    """Every row of a row group in order, from the column of labels, and that of paths where images lie elsewhere."""
    return _rows(chunk, read_images=False)


def _rows(chunk: Chunk, read_images: bool) -> Iterator[Sample]:
    name = f"{shown(chunk.uri.rpartition('/')[2])}#{chunk.start}"
    wanted = chunk.options["label"]  # None in a list of images without labels
    try:
        table = _read(chunk, [wanted] if wanted else [], read_images)
    except (pa.ArrowException, OSError) as error:
        if _is_of_storage(error):
            raise
        for row in range(chunk.count):
            yield Sample(row, f"{name}/{row}", None, None, error=f"{DAMAGED}: {error}")
        return
    images = table[chunk.options["image"]] if chunk.options["image"] in table.column_names else None
    for row in range(chunk.count):
        label, error = _label(chunk, table[wanted][row].as_py()) if wanted else (None, None)
        if chunk.options.get(LENIENT):
            error = None
        data = None
        if images is not None:
            cell = images[row].as_py()
            data = _bytes(chunk, cell) if read_images else _refused(cell)
        if isinstance(data, Exception):
            data, error = None, str(data)
        yield Sample(row, f"{name}/{row}", data, label, error=error)


def fetch(chunk: Chunk, rows: pa.Table) -> Iterator[bytes | Exception]:
    """The bytes of just those rows, in order; a row group's image column is read once for neighbouring rows.

    A row group is the least that can be read of a column: few rows of many large row groups cost as many bytes as all.
    One that is too large to be held is read from its beginning to the last of the rows.
    """
    wanted = rows["row"].to_pylist()
    cells = _cells(chunk, wanted)
    for number in range(len(wanted)):
        try:
            cell = next(cells)
        except (pa.ArrowException, OSError) as error:
            if _is_of_storage(error):
                raise
            yield from [ValueError(f"{DAMAGED}: {error}")] * (len(wanted) - number)
            return
        yield _bytes(chunk, cell)


def _cells(chunk: Chunk, wanted: Sequence[int]) -> Iterator[Any]:
    """Yield the cells of the image column of some rows of a row group; `wanted` is in order."""
    image = chunk.options["image"]
    key = (chunk.uri, chunk.start, image, chunk.state)
    if key not in _kept:
        with _reader(chunk, opened, buffer_size=BUFFER) as reader:
            if _size(reader, chunk) > KEPT:
                yield from _passing(reader, chunk, wanted)
                return
            column = reader.read_row_group(chunk.start, columns=[image])[image]
        _kept.clear()
        _kept[key] = column
    column = _kept[key]
    for row in wanted:
        yield column[row].as_py()


def _size(reader: pq.ParquetFile, chunk: Chunk) -> int:
    """The bytes of a row group's image column in memory."""
    group = reader.metadata.row_group(chunk.start)
    columns_of = (group.column(number) for number in range(group.num_columns))
    image = chunk.options["image"]
    own = (one for one in columns_of if one.path_in_schema.partition(".")[0] == image)
    return sum(one.total_uncompressed_size for one in own)


def _passing(reader: pq.ParquetFile, chunk: Chunk, wanted: Sequence[int]) -> Iterator[Any]:
    """Yield cells of a row group as it is read, some rows at a time."""
    image, left = chunk.options["image"], iter(wanted)
    row, first = next(left, None), 0
    for batch in reader.iter_batches(BATCH, [chunk.start], [image], use_threads=False):
        while row is not None and row < first + len(batch):
            yield batch[image][row - first].as_py()
            row = next(left, None)
        if row is None:
            return
        first += len(batch)


def files_of(dataset: Dataset, split: str, uri: str) -> list[tuple[str, dict]]:
    """Path and facts of each file of a split, from the first place that has any; empty where none has.

    The places, in this order: files in the dataset's folder whose names are the split's, a folder of the split's name
    there, and both again in a folder `data`, as the Hugging Face hub has it.
    """
    name = dataset.splits[split]
    for folder in (uri, join(uri, "data")):
        there = entries(folder)
        named = [file for file in there if _fits(file, name)]
        if named:
            _refuse_mixed(dataset, split, folder, named)
            return [(join(folder, file), there[file]) for file in named]
        inner = folder_named(there, name)
        if inner is not None and is_folder(there[inner]):
            return _parquet_files(join(folder, inner))
    return []


def _parquet_files(folder: str) -> list[tuple[str, dict]]:
    """Path and facts of each Parquet file in a folder."""
    there = entries(folder)
    names = [file for file in there if file.lower().endswith(".parquet")]
    return [(join(folder, file), there[file]) for file in names]


def _fits(file: str, split: str) -> bool:
    """Whether a file's name is of a split: as its name or pattern says, or the split with a separator behind it."""
    if split.endswith(".parquet"):
        return file == split or fnmatch.fnmatchcase(file, split)
    stem, dot, suffix = file.casefold().rpartition(".")
    rest = stem.removeprefix(split.casefold())
    return bool(dot) and suffix == "parquet" and rest != stem and (not rest or rest[0] in "-_.")


def _refuse_mixed(dataset: Dataset, split: str, folder: str, files: list[str]) -> None:
    """Refuse files that belong to several splits by their names (train-…, train_extra-…), and incomplete ones."""
    name = dataset.splits[split]
    if name.endswith(".parquet"):  # the config says which
        return
    kinds: dict[str, str] = {}
    promised: dict[str, int] = {}
    for file in files:
        rest = file[len(name) : -len(".parquet")]
        kinds.setdefault(re.sub(r"[0-9a-f]{16}|[0-9]+|\bof\b|[-_.]", "", rest.lower()), file)
        if shard := re.match(r"(.*)-[0-9]+-of-([0-9]+)", file):
            promised[f"{shard[1]} of {shard[2]}"] = int(shard[2])
    if len(kinds) > 1:
        raise ConfigError(
            f"dataset {dataset.name}: files of several kinds in {shown(folder)} fit its {split} split:"
            f" {', '.join(map(shown, kinds.values()))}.\n  Say which in the dataset's YAML by a pattern:"
            f" `splits: {{{split}: {name}-*.parquet}}`."
        )
    if promised and (len(promised) > 1 or [len(files)] != list(promised.values())):
        raise ConfigError(
            f"dataset {dataset.name}: the names of the {split} split's files in {shown(folder)} promise"
            f" {' and '.join(map(str, promised.values()))} files, there are {len(files)} ({shown(files[0])}, …).\n"
            "  Fetch the missing ones, or remove those of another download."
        )


def _footer(dataset: Dataset, path: str, info: dict) -> pq.FileMetaData:
    pointers.refuse_small(path, info)
    try:
        with opened(path) as file:
            return pq.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(
            f"dataset {dataset.name}: {shown(path)} is not a complete parquet file: {error}"
        ) from error


def with_targets(chunk: Chunk, footer: pq.FileMetaData) -> Chunk:
    """A chunk whose state has that of the files that its rows name by path."""
    column = columns.paths_to_follow(footer, chunk.start, chunk.options["image"])
    if column is None:
        return chunk
    table = _read(chunk, [column], False)
    values = table[chunk.options["image"]].combine_chunks()
    if pa.types.is_struct(values.type):
        values = values.field("path")
    paths = [_place(chunk, value) for value in values.to_pylist() if value]
    near = [path for path in paths if not path.startswith(("http://", "https://"))]
    options = chunk.options | {"paths": True}
    return chunk._replace(state=f"{chunk.state} {state(targets(near))}", options=options)


def _read(chunk: Chunk, names: list[str], read_images: bool) -> pa.Table:
    """Some columns of a row group, and that of images where it is asked for, or else where it holds paths alone."""
    image = chunk.options["image"]
    with _reader(chunk, opened if read_images else skimmed) as reader:
        if read_images or columns.is_text(reader.schema_arrow.field(image).type):
            names = list(dict.fromkeys([*names, image]))
        return reader.read_row_group(chunk.start, columns=names)


@contextmanager
def _reader(chunk: Chunk, opening: Callable, **how: Any) -> Iterator[pq.ParquetFile]:
    """Open the file of a chunk; its footer is read for one chunk of it, and remembered for the others."""
    key = chunk.uri, chunk.state.partition(" ")[0]
    known = _footers.get(key)
    with opening(chunk.uri) as file, pq.ParquetFile(file, metadata=known, **how) as reader:
        if known is None:
            _footers.clear()
            _footers[key] = reader.metadata
        yield reader


def _is_of_storage(error: Exception) -> bool:
    """Whether it is not the file that is at fault."""
    return isinstance(error, OSError) and error.errno is not None


def _label(chunk: Chunk, value: Any) -> tuple[int | None, str | None]:
    """A cell as a label, or why it is none."""
    if value is None:
        return None, "no label"
    labels = chunk.options["labels"]
    if isinstance(value, str):
        known = value in labels
        return (
            (labels.index(value), None)
            if known
            else (None, f"label {value!r} is not in options.labels")
        )
    return (value, None) if value <= LARGEST else (None, f"label {value} is no class number")


def _place(chunk: Chunk, path: str) -> str:
    """Where a file that a cell names lies: below the dataset's folder, unless the path says where."""
    return resolve(path, chunk.options["folder"])


def _refused(value: Any) -> Exception | None:
    """Why a cell with bytes or a path is no image to be read, where that can be seen without its bytes."""
    if value is None:
        return ValueError("no image bytes")
    web = isinstance(value, str) and value.startswith(("http://", "https://"))
    return ValueError(f"{shown(value)}: {NO_WEB}") if web else None


def _bytes(chunk: Chunk, value: Any) -> bytes | Exception:
    """The image's bytes from a cell: bytes, a path, or a struct of both."""
    if isinstance(value, dict):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if (refused := _refused(value)) is not None:
        return refused
    if not isinstance(value, str):
        return value
    place = _place(chunk, value)
    found = next(read_files([place]))
    if not isinstance(found, Exception):
        return found
    looked = "" if place == value else f" (looked for {shown(place)})"
    return ValueError(f"cannot be read: {shown(value)}{looked}")
