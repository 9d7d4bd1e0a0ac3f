"""Embeddings, logits, labels and ids that a person brings: files of many kinds as matrices and columns.

A file is named `<path>` or `<path>#<key>`: the key of an .npz, safetensors or torch file, or the column of a Parquet
file. `{split}` in a path stands for the split's name, and `*` for the parts of one matrix in the order of their
numbers, as clip-retrieval writes them. Local .npy and safetensors files are mapped, so that no matrix need fit into
memory.
"""

import fnmatch
import hashlib
import io
import json
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipray.config import Dataset
from clipray.errors import ConfigError
from clipray.sources import storage
from clipray.sources.chunks import Chunk, Sample
from clipray.sources.storage import is_remote, join, local, shown

KNOWN_OPTIONS = ()
BLOCK = 8192  # rows that are looked at together
TYPES = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"},
    **{"I64": "<i8", "I32": "<i4", "I16": "<i2", "U8": "u1", "I8": "i1", "U16": "<u2"},
}


class Part(NamedTuple):
    """Rows of one file; `bfloat` says that the uint16 in it are bfloat16."""

    values: np.ndarray
    bfloat: bool = False


class Matrix:
    """N rows of equal width that lie in one or several files.

    Args:
        where: the file as the config names it, for messages. parts: in order.
    """

    def __init__(self, where: str, parts: Sequence[Part]):
        self.where, self.parts = where, list(parts)
        for part in self.parts:
            if part.values.ndim != 2 or not part.values.shape[1]:
                shape = "×".join(map(str, part.values.shape))
                raise ConfigError(
                    f"{where} is an array of {shape or 'no dimension'}, not of rows × numbers: name another key."
                )
            if part.values.dtype.kind not in "fiu":
                raise ConfigError(f"{where} holds {part.values.dtype}, not numbers: name another.")
        widths = {part.values.shape[1] for part in self.parts}
        if len(widths) > 1:
            raise ConfigError(f"{where}: its parts have rows of {sorted(widths)} numbers, not one.")
        self.width = widths.pop()
        self.starts = np.cumsum([0, *(len(part.values) for part in self.parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def half(self) -> bool:
        """Whether float16 holds it exactly."""
        return all(part.values.dtype == np.float16 for part in self.parts)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Some rows in the order asked for, float32."""
        found = np.empty((len(rows), self.width), np.float32)
        for part, start in zip(self.parts, self.starts, strict=False):
            own = np.flatnonzero((rows >= start) & (rows < start + len(part.values)))
            values = part.values[rows[own] - start]
            if part.bfloat:
                values = (values.astype(np.uint32) << 16).view(np.float32)
            with np.errstate(over="ignore"):
                found[own] = values
        return found

    def blocks(self) -> Iterator[np.ndarray]:
        """All rows in blocks, float32."""
        for start in range(0, len(self), BLOCK):
            yield self.take(np.arange(start, min(start + BLOCK, len(self))))

    def digest(self) -> str:
        """32 hex digits of the numbers, whatever the kind of file."""
        found = hashlib.blake2b(f"{self.width}".encode(), digest_size=16)
        for block in self.blocks():
            found.update(np.ascontiguousarray(block).tobytes())
        return found.hexdigest()


def classes(dataset: Dataset, uri: str) -> None:
    """None: given vectors do not name their classes."""


def listing(dataset: Dataset, split: str, uri: str) -> list[Chunk]:
    """None: there are no images."""
    return []


def scan(chunk: Chunk, left: Counter) -> Iterator[Sample]:
    """None: there are no images."""
    return iter(())


survey = scan


def fetch(chunk: Chunk, rows: pa.Table) -> Iterator[bytes]:
    """None: there are no images."""
    return iter(())


def files(name: str, uri: str, split: str) -> list[str]:
    """The files that a name of a config stands for, in order.

    Raises:
        ConfigError: there are none.
    """
    path = name.partition("#")[0].replace("{split}", split)
    place = storage.resolve(path, uri)
    if "*" not in place:
        return [place]
    folder, _, pattern = place.rpartition("/")
    names = [each for each in storage.entries(folder) if fnmatch.fnmatchcase(each, pattern)]
    if not names:
        raise ConfigError(f"{shown(place)}: no file fits this pattern; correct it.")
    return [join(folder, each) for each in sorted(names, key=_number)]


def state(places: Sequence[str]) -> str:
    """A digest of the names, sizes and times of files.

    Raises:
        ConfigError: one is not there.
    """
    infos = storage.targets(list(places))
    for place, info in zip(places, infos, strict=True):
        if info["size"] is None or info.get("type") == "directory":
            raise ConfigError(f"{shown(place)} is no file: correct its name, or `uri`.")
    return storage.state(infos)


def matrix(name: str, uri: str, split: str) -> Matrix:
    """The rows of vectors that a config names."""
    return Matrix(shown(name), [_array(place, _key(name)) for place in files(name, uri, split)])


def column(name: str, uri: str, split: str) -> list[Any]:
    """The labels or ids that a config names: numbers or texts, None for a null."""
    found: list[Any] = []
    for place in files(name, uri, split):
        values = _values(place, _key(name))
        if values.ndim == 2 and 1 in values.shape:
            values = values.reshape(-1)
        if values.ndim != 1:
            raise ConfigError(f"{shown(name)} has {values.ndim} dimensions, not one row an image.")
        found += values.tolist()
    return [value.decode() if isinstance(value, bytes) else value for value in found]


def labels(name: str, uri: str, split: str, classnames: Sequence[str]) -> list[int | None]:
    """The labels that a config names, as numbers of classes.

    Raises:
        ConfigError: a text that is no class name, or a number that is not whole.
    """
    found = column(name, uri, split)
    numbers = {each: number for number, each in enumerate(classnames)}
    whole: list[int | None] = []
    for row, value in enumerate(found):
        if isinstance(value, str):
            if value not in numbers:
                raise ConfigError(
                    f"{shown(name)}: row {row} has the label {value!r}, which is no class name; correct one of them."
                )
            value = numbers[value]
        if value is None or value != value:
            whole.append(None)
            continue
        if value != int(value):
            raise ConfigError(f"{shown(name)}: row {row} has the label {value}, no whole number.")
        whole.append(int(value))
    return whole


def _key(name: str) -> str:
    return name.partition("#")[2]


def _number(name: str) -> list[Any]:
    """Sorts img_emb_2 before img_emb_10."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if part.isdigit() else part for part in parts]


def _values(place: str, key: str) -> np.ndarray:
    """One file's column, texts as objects."""
    if place.endswith(".txt"):
        lines = _told(place, lambda: storage.content(place).decode("utf-8-sig").splitlines())
        return np.array(lines, object)
    if place.endswith(".parquet"):
        found = _told(place, lambda: _parquet(place, key))
        return np.array(found.to_pylist(), object)
    return _array(place, key).values


def _array(place: str, key: str) -> Part:
    """One file's array."""
    readers = {
        ".npy": _npy,
        ".npz": _npz,
        ".safetensors": _safetensors,
        ".pt": _torch,
        ".pth": _torch,
        ".parquet": _lists,
    }
    ending = place[place.rfind(".") :].lower()
    if ending not in readers:
        raise ConfigError(
            f"{shown(place)}: its kind is unknown; known are {', '.join(readers)} (and .txt for labels and ids)."
        )
    return _told(place, lambda: readers[ending](place, key))


def _told(place: str, read: Any) -> Any:
    """What reading gives; what libraries raise on damaged files is told in one sentence."""
    try:
        return read()
    except ConfigError:
        raise
    except FileNotFoundError as error:
        raise ConfigError(f"{shown(place)} is not there: correct its name, or `uri`.") from error
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{shown(place)} holds more than tensors, and unpickling could run anything: save tensors alone."
        ) from error
    except Exception as error:  # numpy, zipfile, pyarrow and torch have errors of their own
        words = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{shown(place)} cannot be read ({words}): see that it is whole and of the kind that its name says."
        ) from error


def _source(place: str) -> Any:
    """A path, or a remote file's bytes."""
    return io.BytesIO(storage.content(place)) if is_remote(place) else local(place)


def _npy(place: str, key: str) -> Part:
    source = _source(place)
    mode = "r" if isinstance(source, str) else None
    try:
        return Part(np.load(source, mmap_mode=mode, allow_pickle=False))
    except ValueError as error:
        if "allow_pickle" not in str(error) and "Python objects" not in str(error):
            raise
        raise ConfigError(
            f"{shown(place)} holds Python objects, and unpickling could run anything: save numbers or fixed texts."
        ) from error


def _npz(place: str, key: str) -> Part:
    if not is_remote(place) and not zipfile.is_zipfile(local(place)):
        raise ConfigError(f"{shown(place)} is no .npz file, or not whole: save it again.")
    with np.load(_source(place), allow_pickle=False) as found:
        return Part(found[_chosen(place, key, found.files)])


def _chosen(place: str, key: str, known: Sequence[str]) -> str:
    """The key that a config names, or the only one."""
    if not key and len(known) == 1:
        return known[0]
    if key not in known:
        what = f"there is no {key!r}" if key else "it holds several arrays"
        raise ConfigError(
            f"{shown(place)}: {what}; write {shown(place.rpartition('/')[2])}#<key> with one of {', '.join(known)}."
        )
    return key


def _safetensors(place: str, key: str) -> Part:
    """Eight bytes of length, a header as JSON, and the numbers, which are mapped where the file is local."""
    data = (
        np.frombuffer(storage.content(place), np.uint8)
        if is_remote(place)
        else np.memmap(local(place), np.uint8, "r")
    )
    length = int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8 : 8 + length].tobytes())
    header.pop("__metadata__", None)
    entry = header[_chosen(place, key, list(header))]
    start, end = (8 + length + offset for offset in entry["data_offsets"])
    if entry["dtype"] not in TYPES:
        raise ConfigError(f"{shown(place)}: {entry['dtype']} is not read; save it as F32 or F16.")
    values = np.frombuffer(data[start:end], TYPES[entry["dtype"]]).reshape(entry["shape"])
    return Part(values, entry["dtype"] == "BF16")


def _torch(place: str, key: str) -> Part:
    import torch

    found = torch.load(_source(place), map_location="cpu", weights_only=True)
    if isinstance(found, dict):
        known = [name for name, value in found.items() if isinstance(value, torch.Tensor)]
        found = found[_chosen(place, key, known)]
    if not isinstance(found, torch.Tensor):
        raise ConfigError(f"{shown(place)} holds no tensor: save one, or a mapping of tensors.")
    bfloat = found.dtype == torch.bfloat16
    return Part((found.float() if bfloat else found).detach().numpy())


def _parquet(place: str, key: str) -> pa.ChunkedArray:
    file = pq.ParquetFile(_source(place))
    known = file.schema_arrow.names
    return file.read([_chosen(place, key, known)]).column(0)


def _lists(place: str, key: str) -> Part:
    """A column of lists, or of numbers (labels)."""
    found = _parquet(place, key).combine_chunks()
    if isinstance(found, pa.ChunkedArray):
        found = pa.concat_arrays(found.chunks)
    if not (pa.types.is_list(found.type) or pa.types.is_fixed_size_list(found.type)):
        return Part(found.to_numpy(zero_copy_only=False))
    widths = set(pa.compute.list_value_length(found).to_pylist())
    if len(widths) > 1:
        raise ConfigError(
            f"{shown(place)}: the rows of {key!r} have lengths {sorted(w or 0 for w in widths)}, not one."
        )
    flat = found.flatten().to_numpy(zero_copy_only=False)
    return Part(flat.reshape(len(found), -1))
