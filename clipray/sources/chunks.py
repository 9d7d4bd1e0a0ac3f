"""What the layouts share: a chunk, a sample, and how a split is found among what lies there."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from clipray.config import Dataset
from clipray.errors import ConfigError
from clipray.sources.storage import entries, shown

VALIDATION = ("validation", "valid", "val", "dev", "eval")
SPLITS = {"train": ("train", "training"), "test": ("test", "testing", *VALIDATION)}

LENIENT = "lenient"  # an option of chunks: a sample without a label is none the worse


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
        left_out: (kind, count) of what lies among its files and is no sample.
    """

    format: str
    uri: str
    start: int
    count: int | None
    files: Sequence[Sequence[Any]]
    options: dict[str, Any]
    state: str
    left_out: Sequence[Sequence[Any]] = ()


class Sample(NamedTuple):
    """One image as it lies in its source, or the reason why it cannot be read.

    Attributes:
        row: position in the chunk.
        key: where a person finds it.
        data: the image file's bytes; None with an error, and where only labels were looked for.
        label: position of its class in `classnames`; None where the source gives none.
        offset: where the bytes start in the tar; None elsewhere.
        error: None, or why there are no bytes or no label.
        size: of the bytes in the tar, where they have not been read; None elsewhere.
    """

    row: int
    key: str
    data: bytes | None
    label: int | None
    offset: int | None = None
    error: str | None = None
    size: int | None = None


def folder_named(present: Mapping[str, dict], name: str) -> str | None:
    """Find the entry of that name, or the only one that differs from it in case; None where there is none.

    >>> folder_named({"Test": {}, "train": {}}, "test"), folder_named({"Test": {}, "TEST": {}}, "test")
    ('Test', None)
    """
    if name in present:
        return name
    close = [other for other in present if other.casefold() == name.casefold()]
    return close[0] if len(close) == 1 else None


def nothing_for(dataset: Dataset, split: str, uri: str, wanted: str, hint: str = "") -> ConfigError:
    """Make the error of a split that is not there: what was looked for, what is there, what to write."""
    there = [shown(name) for name in entries(uri)]
    found = (
        f"there is: {', '.join(there[:12])}{', …' if len(there) > 12 else ''}"
        if there
        else "there is no such folder"
    )
    remedy = "`splits: [test]` if the set has no train split, " if split == "train" else ""
    return ConfigError(
        f"dataset {dataset.name}: looked in {shown(uri)} for its {split} split as {wanted}; {found}.\n"
        f"  {hint}In the dataset's YAML write {remedy}`splits: {{{split}: <its name there>, …}}` if it has"
        " another name,\n  or correct `uri` (relative ones lie below the campaign's `data_root`) or `format`."
    )
