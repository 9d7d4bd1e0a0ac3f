"""WebDataset tars in CLIP_benchmark's layout: `<uri>/<split>/<k>.tar` of `<key>.<image suffix>` + `<key>.cls`.

Neighbouring members with one key form a sample, as webdataset groups them. What cannot be a labelled image becomes a
row with an error instead of a crash: no image, two of them, no or a bad `.cls`. A tar that breaks off gives one more
error row for all that is missing.
"""

import itertools
import re
import tarfile
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pyarrow as pa

from clipray.config import Dataset
from clipray.errors import ConfigError
from clipray.sources.chunks import (
    Chunk,
    Sample,
    entries,
    join,
    lines,
    nothing_for,
    open_fs,
    read_ranges,
    state,
)

IMAGE_SUFFIXES = frozenset(
    [
        *(
            "jpg",
            "jpeg",
            "jpe",
            "jfif",
            "png",
            "apng",
            "webp",
            "gif",
            "bmp",
            "dib",
            "tif",
            "tiff",
            "ppm",
            "pgm",
            "pbm",
        ),
        *("pnm", "pfm", "jp2", "j2k", "avif", "ico", "tga", "img", "image"),
    ]
)
BLOCK = 2**23  # bytes fetched at once while scanning an object store


class Member(NamedTuple):
    """A file in the tar; `data` is None where it breaks off."""

    key: str
    suffix: str
    offset: int
    data: bytes | None


def classes(dataset: Dataset, uri: str) -> None:
    """Tars carry no class names."""


def listing(dataset: Dataset, split: str, uri: str) -> list[Chunk]:
    """One chunk per tar, in the order of their numbers; `nshards.txt`, where there is one, must agree."""
    folder = join(uri, dataset.splits[split])
    present = entries(folder)
    tars = sorted((name for name in present if name.endswith(".tar")), key=_natural)
    if not tars:
        raise nothing_for(
            dataset, split, folder if present else uri, f"{dataset.splits[split]}/<k>.tar"
        )
    promised = lines(join(folder, "nshards.txt")) if "nshards.txt" in present else None
    if promised and promised[0] != str(len(tars)):
        raise ConfigError(
            f"dataset {dataset.name}: {folder}/nshards.txt promises {promised[0]} tars, there are {len(tars)}"
            f" ({tars[0]} … {tars[-1]}).\n  Fetch the missing ones, or correct nshards.txt."
        )
    return [
        Chunk("wds", join(folder, name), 0, None, (), {}, state([present[name]])) for name in tars
    ]


def scan(chunk: Chunk) -> Iterator[Sample]:
    """Every sample of a tar in order."""
    fs, path = open_fs(chunk.uri)
    tar_name = path.rpartition("/")[2]
    row = 0
    with fs.open(path, "rb", block_size=BLOCK) as file:
        broken: list[str] = []
        for key, members in itertools.groupby(
            _members(file, broken), key=lambda member: member.key
        ):
            sample = _sample(row, f"{tar_name}/{key}", list(members))
            if sample is not None:
                yield sample
                row += 1
    for reason in broken:
        yield Sample(row, f"{tar_name}/(the rest)", None, None, error=reason)


def fetch(chunk: Chunk, rows: pa.Table) -> Iterator[bytes | Exception]:
    """The bytes of just those rows, in order, by offset and size."""
    return read_ranges(chunk.uri, rows["offset"].to_pylist(), rows["size"].to_pylist())


def _natural(name: str) -> list:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _members(file: object, broken: list[str]) -> Iterator[Member]:
    """Regular members in order; appends to `broken` when the archive ends before its end mark."""
    try:
        tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - closes with the file
    except tarfile.TarError as error:
        broken.append(f"not a readable tar: {error}")
        return
    while True:
        try:
            info = tar.next()
        except (tarfile.TarError, EOFError) as error:
            broken.append(f"the tar breaks off at byte {tar.offset}: {error}")
            return
        if info is None:
            break
        name = info.name.rpartition("/")[2]
        if not info.isfile() or name.startswith("."):
            continue
        file.seek(info.offset_data)
        data = file.read(info.size)
        stem, _, suffix = name.partition(".")
        key = info.name.removesuffix(name) + stem
        yield Member(
            key, suffix.lower(), info.offset_data, data if len(data) == info.size else None
        )
        if len(data) != info.size:
            broken.append(f"the tar breaks off at byte {info.offset_data + len(data)}")
            return
    file.seek(tar.offset)  # tarfile takes a cut or garbled header for the end: look for the mark
    tail = file.read(tarfile.BLOCKSIZE)
    if tail.count(b"\0") != tarfile.BLOCKSIZE:
        broken.append(f"the tar breaks off at byte {tar.offset}: no end mark")


def _sample(row: int, key: str, members: Iterable[Member]) -> Sample | None:
    """The sample of one key; None where its members are neither image nor label."""
    images = [member for member in members if member.suffix in IMAGE_SUFFIXES]
    labels = [member for member in members if member.suffix == "cls"]
    if not images and not labels:
        return None
    label, error = None, None
    if len(images) != 1 or len(labels) != 1:
        error = f"{len(images)} images and {len(labels)} .cls under one key; one of each is needed"
    elif images[0].data is None or labels[0].data is None:
        error = "the tar breaks off in this sample"
    else:
        text = labels[0].data.decode("utf-8", "replace").strip()
        label = int(text) if re.fullmatch(r"-?\d{1,18}", text) else None
        error = None if label is not None else f".cls holds {text[:20]!r}, not a number"
    if error:
        return Sample(row, key, None, None, error=error)
    return Sample(row, key, images[0].data, label, images[0].offset)
