"""Image folders: `<uri>/<split>/<class folder>/…/<file>`, the layout of torchvision's ImageFolder.

Labels number the class folders in sorted order, over all splits together, so that a class that one split lacks does not
shift the others. Every file that is not hidden is a sample: one that is no image becomes an error row when it is
decoded, where ImageFolder would drop it in silence.
"""

from collections.abc import Iterator

import pyarrow as pa

from clipray.config import Dataset
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

CHUNK = 1024


def classes(dataset: Dataset, uri: str) -> list[str]:
    """The class folders' names in label order."""
    found = set()
    for folder in set(dataset.splits.values()):
        found |= {name for name, info in entries(join(uri, folder)).items() if is_folder(info)}
    return sorted(found)


def listing(dataset: Dataset, split: str, uri: str) -> list[Chunk]:
    """Chunks of up to 1024 consecutive files, ordered by class and path."""
    folder = join(uri, dataset.splits[split])
    present = entries(folder)
    found = []
    for label, name in enumerate(classes(dataset, uri)):
        if name in present:
            found += [(f"{name}/{path}", label, info) for path, info in _files(join(folder, name))]
    if not found:
        raise nothing_for(
            dataset,
            split,
            folder if present else uri,
            f"{dataset.splits[split]}/<class folder>/<image>",
        )
    return [
        Chunk(
            format="folder",
            uri=folder,
            start=start,
            count=len(part),
            files=tuple((path, label) for path, label, _ in part),
            options={},
            state=state(info for *_, info in part),
        )
        for start in range(0, len(found), CHUNK)
        for part in [found[start : start + CHUNK]]
    ]


def scan(chunk: Chunk) -> Iterator[Sample]:
    """Every file of a chunk in order."""
    found = read_files([join(chunk.uri, path) for path, _ in chunk.files])
    for row, ((path, label), data) in enumerate(zip(chunk.files, found, strict=True)):
        if isinstance(data, bytes):
            yield Sample(row, path, data, label)
        else:
            yield Sample(row, path, None, label, error=f"cannot be read: {type(data).__name__}")


def fetch(chunk: Chunk, rows: pa.Table) -> Iterator[bytes | Exception]:
    """The bytes of just those rows, in order."""
    return read_files([join(chunk.uri, key) for key in rows["key"].to_pylist()])


def _files(uri: str) -> list[tuple[str, dict]]:
    """(path below `uri`, info) of every file that is not hidden, however deep, sorted; links are followed."""
    fs, root = open_fs(uri)
    if fs.protocol in (
        "file",
        ("file", "local"),
    ):  # fsspec's local find does not follow a link to a folder
        found = []
        for name, info in entries(uri).items():
            below = _files(join(uri, name)) if is_folder(info) else None
            found += (
                [(name, info)]
                if below is None
                else [(f"{name}/{path}", deep) for path, deep in below]
            )
        return found
    root = root.rstrip("/") + "/"
    named = [
        (info["name"].removeprefix(root), info) for info in fs.find(root, detail=True).values()
    ]
    return sorted(
        (
            (path, info)
            for path, info in named
            if path and not any(part.startswith(".") for part in path.split("/"))
        ),
        key=lambda item: item[0].split("/"),
    )
