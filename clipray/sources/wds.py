"""WebDataset tars in CLIP_benchmark's layout: `<uri>/<split>/<k>.tar` of `<key>.<image suffix>` + `<key>.cls`.

Neighbouring members with one key form a sample, as webdataset groups them: a key ends at the first dot of a member's
base name, and what follows is the suffix, whose last part says what it holds. What cannot be a labelled image becomes a
row with an error instead of a crash: no image, two of them, no or a bad `.cls`. A tar that breaks off gives one more
error row for all that is missing. Members of other kinds are counted.
"""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from clipray.config import Dataset
from clipray.errors import ConfigError
from clipray.sources import pointers, tars
from clipray.sources.chunks import LENIENT, Chunk, Sample, folder_named, nothing_for
from clipray.sources.storage import (
    entries,
    is_remote,
    join,
    opened,
    read_ranges,
    shown,
    skimmed,
    state,
)
from clipray.sources.tars import Member
from clipray.sources.texts import lines

KNOWN_OPTIONS = ()
IMAGE_SUFFIXES = frozenset(
    [
        *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "bmp", "dib", "tif"),
        *("tiff", "ppm", "pgm", "pbm", "pnm", "pfm", "jp2", "j2k", "avif", "ico", "tga", "img"),
        *("image", "heic", "heif", "jxl", "pcx", "sgi", "qoi", "dds", "icns"),
    ]
)
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")


def classes(dataset: Dataset, uri: str) -> None:
    """Tars carry no class names."""


def listing(dataset: Dataset, split: str, uri: str) -> list[Chunk]:
    """One chunk per tar, in the order of their numbers; `nshards.txt`, where there is one, must agree."""
    name = folder_named(entries(uri), dataset.splits[split]) or dataset.splits[split]
    folder = join(uri, name)
    present = entries(folder)
    found = sorted((each for each in present if each.lower().endswith(".tar")), key=_natural)
    packed = [each for each in present if each.lower().endswith(PACKED)]
    if packed:
        raise ConfigError(
            f"dataset {dataset.name}: {shown(folder)} holds {len(packed)} compressed tars ({shown(packed[0])}, …), of"
            " which no part can be read on its own.\n  Unpack each to a plain .tar, for example by `gunzip`."
        )
    if not found:
        raise nothing_for(dataset, split, folder if present else uri, f"{name}/<k>.tar")
    promised = lines(join(folder, "nshards.txt")) if "nshards.txt" in present else None
    if promised and promised[0] != str(len(found)):
        raise ConfigError(
            f"dataset {dataset.name}: {shown(folder)}/nshards.txt promises {promised[0]} tars, there are {len(found)}"
            f" ({shown(found[0])} … {shown(found[-1])}).\n  Fetch the missing ones, or correct nshards.txt."
        )
    for each in found:
        if present[each].get("size"):  # an empty one is a row: the others can be read
            pointers.refuse_small(join(folder, each), present[each])
    return [
        Chunk("wds", join(folder, each), 0, None, (), {}, state([present[each]])) for each in found
    ]


def scan(chunk: Chunk, left: Counter) -> Iterator[Sample]:
    """Every sample of a tar in order."""
    with opened(chunk.uri) as file:
        yield from _walk(chunk, file, left, tars.everything)


def survey(chunk: Chunk, left: Counter) -> Iterator[Sample]:
    """Every sample of a tar in order, from the members' headers and the `.cls` members alone.

    Images are skipped, where each costs a seek: of a local tar 2 to 3 kB a sample are read. Of an object store a tar
    is read by one request of 16 KiB a sample, each after the one before, for only a header says where the next one
    lies. This is the least that can be read, and not the fastest for one tar of small images: the tars of a part are
    therefore read at the same time.
    """
    with skimmed(chunk.uri) as file:
        yield from _walk(chunk, file, left, lambda suffix: _kind(suffix) == "cls")


def skimmable(chunk: Chunk) -> bool:
    """Tell whether headers alone are read faster than all of a tar: of an object store each one is a request."""
    return not is_remote(chunk.uri)


def _walk(
    chunk: Chunk, file: Any, left: Counter, wanted: Callable[[str], bool]
) -> Iterator[Sample]:
    """Every sample of an open tar in order, with the bytes of members that are wanted by their suffix."""
    tar_name = shown(chunk.uri.rpartition("/")[2])
    row = 0
    broken: list[str] = []
    members = tars.members(file, broken, left, wanted)
    for key, group in itertools.groupby(members, key=lambda member: member.key):
        for stem, parts in _samples(list(group), left):
            name = f"{tar_name}/{shown(key)}{'.' if stem else ''}{shown(stem)}"
            yield _sample(row, name, parts, chunk.options.get(LENIENT, False))
            row += 1
    for reason in broken:
        yield Sample(row, f"{tar_name}/(the rest)", None, None, error=reason)
        row += 1


def fetch(chunk: Chunk, rows: pa.Table) -> Iterator[bytes | Exception]:
    """The bytes of just those rows, in order, by offset and size."""
    return read_ranges(chunk.uri, rows["offset"].to_pylist(), rows["size"].to_pylist())


def _natural(name: str) -> list:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _kind(suffix: str) -> str:
    """What a member of some suffix is: "image", "cls", or "" for any other."""
    last = suffix.rpartition(".")[2]
    return "image" if last in IMAGE_SUFFIXES else "cls" if last == "cls" else ""


def _samples(members: Sequence[Member], left: Counter) -> list[tuple[str, list[Member]]]:
    """The samples under one key, each with what tells it from the others; counts what belongs to none.

    One image and one label are a sample, whatever stands between the first and the last dot. Of several, those without
    anything between are the sample; or else those that have the same between form one each.
    """
    wanted = [member for member in members if _kind(member.suffix)]
    left.update(f"*.{member.suffix}" for member in members if not _kind(member.suffix))
    kinds = Counter(_kind(member.suffix) for member in wanted)
    if max(kinds.values(), default=0) <= 1:
        return [("", wanted)] if wanted else []
    plain = [member for member in wanted if "." not in member.suffix]
    if Counter(_kind(member.suffix) for member in plain) == {"image": 1, "cls": 1}:
        left.update(f"*.{member.suffix}" for member in wanted if "." in member.suffix)
        return [("", plain)]
    stems: dict[str, list[Member]] = {}
    for member in wanted:
        stems.setdefault(member.suffix.rpartition(".")[0], []).append(member)
    return list(stems.items())


def _sample(row: int, key: str, members: Sequence[Member], lenient: bool) -> Sample:
    images = [member for member in members if _kind(member.suffix) == "image"]
    labels = [member for member in members if _kind(member.suffix) == "cls"]
    label, error = None, None
    if lenient and len(images) == 1 and not labels and not images[0].error:
        return Sample(row, key, images[0].data, None, images[0].offset, size=images[0].size)
    if len(images) != 1 or len(labels) != 1:
        error = (
            f"{len(images)} images and {len(labels)} .cls under one key; one of each is needed, side by side in the tar"
            " (`tar --sort=name`)"
        )
    elif images[0].error or labels[0].error:
        error = images[0].error or labels[0].error
    else:
        text = labels[0].data.decode("utf-8-sig", "replace").strip()
        label = int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else None
        error = None if label is not None else f".cls holds {text[:20]!r}, not a number"
    if error:
        return Sample(row, key, None, None, error=error)
    return Sample(row, key, images[0].data, label, images[0].offset, size=images[0].size)
