"""scikit-learn's bundled digits: 8×8 grey scans of handwriting, as PNG.

The 1,797 digits lie in the order of their writers; the first 600 are the train split and the last 600 the test split,
so that no writer is in both.
"""

import io
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import distribution

import numpy as np
import pyarrow as pa

from clipray.config import Dataset
from clipray.errors import ConfigError
from clipray.sources.chunks import Chunk, Sample

KNOWN_OPTIONS = ()
SPLITS = {"train": (0, 600), "test": (1197, 600)}


def classes(dataset: Dataset, uri: str) -> list[str]:
    """The ten digits."""
    return list("0123456789")


def listing(dataset: Dataset, split: str, uri: str) -> list[Chunk]:
    """One chunk."""
    if dataset.uri != "digits":
        raise ConfigError(
            f"dataset {dataset.name}: uri {dataset.uri!r} is unknown to format sklearn; known: digits"
        )
    if dataset.splits[split] not in SPLITS:
        raise ConfigError(
            f"dataset {dataset.name}: split {dataset.splits[split]!r} is unknown; known: train, test"
        )
    start, count = SPLITS[dataset.splits[split]]
    return [Chunk("sklearn", "digits", start, count, (), {}, "scikit-learn")]


def scan(chunk: Chunk, left: Counter) -> Iterator[Sample]:
    """Every digit of a split in order."""
    images, labels = _digits()
    for row in range(chunk.count):
        number = chunk.start + row
        yield Sample(row, _key(number), _png(images[number]), int(labels[number]))


def survey(chunk: Chunk, left: Counter) -> Iterator[Sample]:
    """Every digit of a split in order, without its pixels."""
    _, labels = _digits()
    for row in range(chunk.count):
        number = chunk.start + row
        yield Sample(row, _key(number), None, int(labels[number]))


def fetch(chunk: Chunk, rows: pa.Table) -> Iterator[bytes | Exception]:
    """The bytes of just those rows, in order."""
    images, _ = _digits()
    for row in rows["row"].to_pylist():
        yield _png(images[chunk.start + row])


def _key(number: int) -> str:
    return f"digits/{number}"


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Read scikit-learn's file of ink and digits without importing scikit-learn, which takes a second."""
    file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    rows = np.loadtxt(str(file), delimiter=",", dtype=np.uint8)
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1]


def _png(ink: np.ndarray) -> bytes:
    """An 8×8 image of ink 0..16 as white on black, as MNIST has it."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray((ink * (255 / 16)).round().astype(np.uint8)).save(file, "PNG")
    return file.getvalue()
