"""What the layouts share: a chunk, a sample, and the few ways in which they touch storage.

All of it goes through fsspec, so a folder and an s3:// prefix behave alike (endpoint and credentials of the latter come
from the usual environment variables).
"""

import hashlib
import os.path
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import fsspec

from clipray.config import Dataset
from clipray.errors import ConfigError

READ_AT_ONCE = (
    32  # files or ranges asked for together; fsspec reads them concurrently from an object store
)
GONE = (
    FileNotFoundError,
    IsADirectoryError,
    PermissionError,
)  # one row's fault; a network error is nobody's and raises


class Chunk(NamedTuple):
    """A deterministic group of samples that is read as one: JSON can hold it and a worker can unpickle it.

    Attributes:
        format: the key of `FORMATS` that reads it.
        uri: where it is: the split's folder, one file, or the name of a drawn set.
        start: first sample (folder, drawn) or the row group (parquet); 0 for a tar.
        count: number of samples; None for a tar, which only reading tells.
        files: (path below `uri`, label) of a folder's files; empty elsewhere.
        options: what else the reader needs (columns, split, …).
        state: changes when the files behind it do (size and time or etag), or when a drawing's code does.
    """

    format: str
    uri: str
    start: int
    count: int | None
    files: Sequence[Sequence[Any]]
    options: dict[str, Any]
    state: str


class Sample(NamedTuple):
    """One image as it lies in its source, or the reason why it cannot be read.

    Attributes:
        row: position in the chunk.
        key: where a person finds it.
        data: the image file's bytes; None with an error.
        label: position of its class in `classnames`; None where the source gives none.
        offset: where the bytes start in the tar; None elsewhere.
        error: None, or why there are no bytes or no label.
    """

    row: int
    key: str
    data: bytes | None
    label: int | None
    offset: int | None = None
    error: str | None = None


def resolve(uri: str, data_root: str) -> str:
    """A dataset's URI as it is used: a relative one lies below the data root.

    >>> resolve("wds/cars", "s3://bucket/data/"), resolve("/mnt/cars", "s3://bucket")
    ('s3://bucket/data/wds/cars', '/mnt/cars')
    """
    uri = os.path.expanduser(uri)
    if not data_root or "://" in uri or uri.startswith("/"):
        return uri
    return join(os.path.expanduser(data_root), uri)


def join(*parts: str) -> str:
    """A path or URI below another; empty parts and "." leave it as it is."""
    first, *rest = parts
    below = [part.strip("/") for part in rest if part not in ("", ".")]
    return "/".join([first.rstrip("/"), *below]) if below else first.rstrip("/") or "/"


def open_fs(uri: str) -> tuple[Any, str]:
    """The file system of a URI and the path in it."""
    return fsspec.core.url_to_fs(uri)


def entries(uri: str) -> dict[str, dict]:
    """The entries of a folder by name, hidden ones left out; empty where there is no such folder."""
    fs, path = open_fs(uri)
    fs.invalidate_cache(path)
    try:
        found = fs.ls(path, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    named = {
        os.path.basename(info["name"].rstrip("/")): info
        for info in found
        if info["name"].rstrip("/") != path
    }
    return {name: named[name] for name in sorted(named) if name and not name.startswith(".")}


def is_folder(info: dict) -> bool:
    """Whether an entry is a folder or a link to one."""
    return info["type"] == "directory" or (
        info.get("islink", False) and os.path.isdir(info["name"])
    )


def state(infos: Iterable[dict]) -> str:
    """A digest of files' names, sizes and times (or etags): equal means unchanged."""
    digest = hashlib.blake2b(digest_size=8)
    for info in infos:
        version = next(
            (
                info[key]
                for key in ("ETag", "etag", "mtime", "LastModified", "created")
                if key in info
            ),
            "",
        )
        digest.update(f"{os.path.basename(info['name'])}\0{info['size']}\0{version}\0".encode())
    return digest.hexdigest()


def lines(uri: str) -> list[str] | None:
    """The lines of a text file without the empty ones; None where there is no such file."""
    fs, path = open_fs(uri)
    try:
        text = fs.cat_file(path).decode("utf-8-sig")
    except GONE:
        return None
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_files(uris: Sequence[str]) -> Iterator[bytes | Exception]:
    """The bytes of each file in order; where one is gone or forbidden, that error instead."""
    yield from _read(uris, None, None)


def read_ranges(
    uri: str, offsets: Sequence[int], sizes: Sequence[int]
) -> Iterator[bytes | Exception]:
    """The bytes at each (offset, size) of one file in order; an `EOFError` where the file ends before them."""
    ends = [offset + size for offset, size in zip(offsets, sizes, strict=True)]
    for found, size in zip(_read([uri] * len(ends), offsets, ends), sizes, strict=True):
        short = isinstance(found, bytes) and len(found) != size
        yield (
            EOFError(f"the file ends before this image does ({len(found)} of {size} bytes)")
            if short
            else found
        )


def _read(
    uris: Sequence[str], starts: Sequence[int] | None, ends: Sequence[int] | None
) -> Iterator[bytes | Exception]:
    for first in range(0, len(uris), READ_AT_ONCE):
        part = slice(first, first + READ_AT_ONCE)
        fs, _ = open_fs(uris[first])
        paths = [open_fs(uri)[1] for uri in uris[part]]
        begin = None if starts is None else list(starts[part])
        end = None if ends is None else list(ends[part])
        for found in fs.cat_ranges(paths, begin, end, on_error="return"):
            if isinstance(found, Exception) and not isinstance(found, GONE):
                raise found
            yield found if isinstance(found, Exception) else bytes(found)


def nothing_for(dataset: Dataset, split: str, uri: str, wanted: str) -> ConfigError:
    """The error of a split that is not there: what was looked for, what is there, what to write."""
    there = list(entries(uri))
    found = (
        f"there is: {', '.join(there[:12])}{', …' if len(there) > 12 else ''}"
        if there
        else "there is no such folder"
    )
    others = [other for other in dataset.splits if other != split]
    remedy = f"`splits: [{', '.join(others)}]` if the set has no {split} split, " if others else ""
    return ConfigError(
        f"dataset {dataset.name}: looked in {uri} for its {split} split as {wanted}; {found}.\n"
        f"  In the dataset's YAML write {remedy}`splits: {{{split}: <its name there>, …}}` if it has another name,\n"
        f"  or correct `uri` (relative ones lie below the campaign's `data_root`) or `format`."
    )
