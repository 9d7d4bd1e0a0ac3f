"""Image folders: `<uri>/<split>/<class folder>/…/<file>`, the layout of torchvision's ImageFolder.

Labels number the class folders in sorted order, over all splits together, so that a class that one split lacks does
not shift the others; folders that are all numbers are sorted by number. Hidden entries, what systems leave behind and
files that tell of images are counted and left out (`sources.junk`). Every other file is a sample: one that is no image
becomes an error row when it is decoded, where ImageFolder would drop it in silence.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator

import pyarrow as pa

from clipray.config import Dataset
from clipray.errors import ConfigError
from clipray.sources import junk, names
from clipray.sources.chunks import Chunk, Sample, folder_named, nothing_for
from clipray.sources.storage import (
    below,
    entries,
    everything,
    identities,
    is_folder,
    is_remote,
    join,
    read_files,
    shown,
    state,
    why,
)

CHUNK = 1024
KNOWN_OPTIONS = ()


def classes(dataset: Dataset, uri: str) -> list[str]:
    """The class folders' names in label order, in Unicode's composed form.

    Raises:
        ConfigError: a name is not UTF-8.
    """
    found: set[str] = set()
    for split in dataset.splits:
        found |= set(_class_folders(entries(_place(dataset, split, uri))))
    for name in sorted(found):
        if not _is_text(name):
            raise ConfigError(
                f"dataset {dataset.name}: the class folder {shown(name)} in {shown(uri)} has a name that is not"
                " UTF-8.\n  Rename it, for example by `convmv -f latin1 -t utf8 -r --notest`."
            )
    return names.order(sorted(found))


def listing(dataset: Dataset, split: str, uri: str) -> list[Chunk]:
    """Chunks of up to 1024 consecutive files, ordered by class and path."""
    folder = _place(dataset, split, uri)
    present = everything(folder)
    left: Counter[str] = Counter()
    for name, info in present.items():
        if (kind := junk.kind(name)) or not is_folder(info):
            left[kind or junk.beside(name) or "files outside class folders"] += 1
    folders = _class_folders({n: i for n, i in present.items() if not junk.kind(n)})
    found = []
    for label, name in enumerate(classes(dataset, uri)):
        for real in folders.get(name, ()):
            inner = files_below(join(folder, real), present[real], left)
            found += [(f"{real}/{path}", label, info) for path, info in inner]
    if not found:
        wanted = f"{dataset.splits[split]}/<class folder>/<image>"
        hint = (
            f"Its images lie right in {shown(folder)}: move each into a folder of its class, or use a Parquet file"
            " with a column of paths and one of labels.\n  "
            if any(info["type"] == "file" for info in entries(folder).values())
            else ""
        )
        raise nothing_for(dataset, split, folder if present else uri, wanted, hint)
    chunks = []
    for start in range(0, len(found), CHUNK):
        part = found[start : start + CHUNK]
        files = tuple((path, label) for path, label, _ in part)
        version = state(info for *_, info in part)
        counted = () if start else tuple(sorted(left.items()))
        chunks.append(Chunk("folder", folder, start, len(part), files, {}, version, counted))
    return chunks


def scan(chunk: Chunk, left: Counter) -> Iterator[Sample]:
    """Every file of a chunk in order."""
    left.update(dict(chunk.left_out))
    found = read_files([join(chunk.uri, path) for path, _ in chunk.files])
    for row, ((path, label), data) in enumerate(zip(chunk.files, found, strict=True)):
        if isinstance(data, bytes):
            yield Sample(row, shown(path), data, label)
        else:
            yield Sample(row, shown(path), None, label, error=why(data))


def survey(chunk: Chunk, left: Counter) -> Iterator[Sample]:
    """Every file of a chunk in order, from the listing alone: no file is opened."""
    left.update(dict(chunk.left_out))
    for row, (path, label) in enumerate(chunk.files):
        yield Sample(row, shown(path), None, label)


def fetch(chunk: Chunk, rows: pa.Table) -> Iterator[bytes | Exception]:
    """The bytes of just those rows, in order."""
    return read_files([join(chunk.uri, chunk.files[row][0]) for row in rows["row"].to_pylist()])


def _place(dataset: Dataset, split: str, uri: str) -> str:
    """The split's folder; its name may differ in case from the config's."""
    wanted = dataset.splits[split]
    parent, _, last = wanted.strip("/").rpartition("/")
    there = folder_named(entries(join(uri, parent)), last)
    return join(uri, parent, there or last)


def _class_folders(present: dict[str, dict]) -> dict[str, list[str]]:
    """Folders by their name in Unicode's composed form: a Mac writes é as two signs, others as one."""
    found: dict[str, list[str]] = {}
    for name, info in present.items():
        if is_folder(info):
            found.setdefault(unicodedata.normalize("NFC", name), []).append(name)
    return found


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def files_below(uri: str, info: dict, left: Counter) -> list[tuple[str, dict]]:
    """(path below `uri`, info) of every sample, however deep, sorted; counts what is left out."""
    if is_remote(uri):
        return _remote_files(uri, left)
    return _local_files(uri, info.get("link", ""), identities(uri), left)


def _local_files(uri: str, links: str, above: tuple, left: Counter) -> list[tuple[str, dict]]:
    """Links are followed, save for one that leads to a folder above it.

    Args:
        links: where the folders' links above lead, which is part of the files' state.
        above: the identities of the folders above.
    """
    found = []
    for name, info in everything(uri).items():
        folder = is_folder(info)
        kind = junk.kind(name) or ("" if folder else junk.beside(name))
        if folder and info["ino"] in above:
            kind = "links to a folder above them"
        if kind:
            left[kind] += 1
            continue
        trail = links + info.get("link", "")
        if folder:
            inner = _local_files(join(uri, name), trail, (*above, info["ino"]), left)
            found += [(f"{name}/{path}", deep) for path, deep in inner]
        else:
            found.append((name, info | {"link": trail}))
    return found


def _remote_files(uri: str, left: Counter) -> list[tuple[str, dict]]:
    found = []
    for path, info in below(uri).items():
        kinds = [junk.kind(part) for part in path.split("/")]
        kind = next((kind for kind in kinds if kind), junk.beside(os.path.basename(path)))
        if kind:
            left[kind] += 1
        else:
            found.append((path, info))
    return sorted(found, key=lambda item: item[0].split("/"))
