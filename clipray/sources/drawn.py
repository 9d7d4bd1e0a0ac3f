"""Sets that the project draws itself, so that a demo needs no download: glyphs of real fonts, signs, shapes, textures.

Image `number` of a split depends on the set, the split, the number and `options: {seed: …}` alone, so any range of them
can be drawn anywhere. Its class is `number` modulo the number of classes.
"""

import io
import zlib
from collections import Counter
from collections.abc import Iterator

import numpy as np
import PIL
import pyarrow as pa

from clipray.config import Dataset
from clipray.errors import ConfigError
from clipray.sources import drawings
from clipray.sources.chunks import Chunk, Sample

CHUNK = 1024
COUNTS = {"train": 500, "test": 500}  # images; `options: {train: …, test: …}` overrides
STATE = f"drawing {drawings.VERSION}, pillow {PIL.__version__}, numpy {np.__version__}"  # what a pixel depends on
KNOWN_OPTIONS = ("seed", *COUNTS)


def classes(dataset: Dataset, uri: str) -> list[str]:
    """The class names of a drawn set."""
    return list(_drawing(dataset.uri, dataset.name).classes)


def listing(dataset: Dataset, split: str, uri: str) -> list[Chunk]:
    """Chunks of up to 1024 consecutive numbers."""
    _drawing(dataset.uri, dataset.name)
    for key, value in dataset.options.items():
        if type(value) is not int or value < 0:
            raise ConfigError(
                f"dataset {dataset.name}: options.{key} is {value!r}, not a whole number from 0 up"
            )
    if dataset.splits[split] not in COUNTS:
        raise ConfigError(
            f"dataset {dataset.name}: split {dataset.splits[split]!r} is unknown; known: train, test"
        )
    part = dataset.splits[split]
    total = dataset.options.get(part, COUNTS[part])
    options = {"split": part, "seed": dataset.options.get("seed", 0)}
    return [
        Chunk("drawn", dataset.uri, start, min(CHUNK, total - start), (), options, STATE)
        for start in range(0, total, CHUNK)
    ]


def scan(chunk: Chunk, left: Counter) -> Iterator[Sample]:
    """Every image of a chunk in order."""
    for sample in survey(chunk, left):
        yield sample._replace(data=_draw(chunk, chunk.start + sample.row))


def survey(chunk: Chunk, left: Counter) -> Iterator[Sample]:
    """Every image of a chunk in order; none is drawn."""
    n_classes = len(_drawing(chunk.uri, chunk.uri).classes)
    for row in range(chunk.count):
        number = chunk.start + row
        key = f"{chunk.uri}/{chunk.options['split']}/{number}"
        yield Sample(row, key, None, number % n_classes)


def fetch(chunk: Chunk, rows: pa.Table) -> Iterator[bytes | Exception]:
    """The bytes of just those rows, in order."""
    for row in rows["row"].to_pylist():
        yield _draw(chunk, chunk.start + row)


def _drawing(uri: str, name: str) -> drawings.Drawing:
    if uri not in drawings.DRAWINGS:
        known = ", ".join(drawings.DRAWINGS)
        raise ConfigError(
            f"dataset {name}: uri {uri!r} is no set that the project draws; known: {known}"
        )
    return drawings.DRAWINGS[uri]


def _draw(chunk: Chunk, number: int) -> bytes:
    drawing = drawings.DRAWINGS[chunk.uri]
    seed = [
        chunk.options["seed"],
        zlib.crc32(f"{chunk.uri}/{chunk.options['split']}".encode()),
        number,
    ]
    image = drawing.paint(
        drawing.classes[number % len(drawing.classes)], np.random.default_rng(seed)
    )
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
