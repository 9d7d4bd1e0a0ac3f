"""What workers do with a collection whose embeddings are stored: sums that teach a fuser, and labels.

A task takes a range of shards and reads them, a block of images at a time, so that its memory does not grow with the
collection. Sums of ranges add up to those of the collection, wherever the ranges begin.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from clipray.artefacts import fused_model
from clipray.artefacts.index import Index, Shard, rows_of, shard_rows
from clipray.errors import StoreError
from clipray.fusion import Fusion
from clipray.numerics.fusers.transductive import Block, added
from clipray.steps.predict.write import RUNNING, Label
from clipray.store import Store

SHARDS = 16  # of a block: 4,096 images


class Collection(NamedTuple):
    """Images whose embeddings are stored.

    Attributes:
        places: by backbone of the model, the address of its embeddings.
    """

    store: Store
    index: Index
    places: tuple[str, ...]

    def shards(self, start: int, stop: int) -> list[Shard]:
        """The shards of these numbers."""
        return list(self.index.shards(shard_rows(self.index)))[start:stop]


class Stored(NamedTuple):
    """A shard as all backbones see it.

    Attributes:
        rows: of the index. errors: of each row, why some backbone has no embedding of it, or None.
        embeddings: M arrays of the rows without error.
    """

    rows: pa.Table
    errors: list[str | None]
    embeddings: list[np.ndarray]


def read(images: Collection, shard: Shard) -> Stored:
    """Read a shard of all backbones.

    Raises:
        StoreError: a file holds other images than the index.
    """
    store, index = images.store, images.index
    rows = rows_of(store, index.place, shard.part, shard.start, shard.rows)
    tables = [store.read_table(f"{place}/{shard.name}") for place in images.places]
    errors = rows["error"].to_pylist()
    for place, table in zip(images.places, tables, strict=True):
        if not table["image_id"].equals(rows["image_id"]):
            raise StoreError(
                f"{store.place(place)}/{shard.name} holds other images than its index: remove that folder and run again"
            )
        errors = [a or b for a, b in zip(errors, table["error"].to_pylist(), strict=True)]
    good = pa.array([error is None for error in errors], pa.bool_())
    return Stored(rows.select(RUNNING), errors, [_matrix(table, good) for table in tables])


def _matrix(table: pa.Table, good: pa.Array) -> np.ndarray:
    column = table["embedding"].filter(good).combine_chunks()
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), column.type.list_size)


@functools.lru_cache(maxsize=1)
def fusion_of(model: str) -> Fusion:
    """A model, which a worker reads once."""
    return Fusion(fused_model.read(fused_model.fetched(model)))


def blocks(fusion: Fusion, images: Collection, start: int, stop: int) -> Iterator[Block]:
    """The readable images of some shards, by and by; a block may be empty."""
    shards = images.shards(start, stop)
    for at in range(0, len(shards), SHARDS):
        parts = [read(images, shard).embeddings for shard in shards[at : at + SHARDS]]
        joined = [np.concatenate(one).astype(np.float32) for one in zip(*parts, strict=True)]
        logits_BMC = fusion.logits(joined)
        embeddings = tuple(torch.from_numpy(e_BD) for e_BD in joined)
        start_BC = fusion.fuser.by_sums.start(fusion.state, logits_BMC, embeddings)
        yield Block(start_BC, logits_BMC, embeddings)


def sums(
    model: str,
    images: Collection,
    start: int,
    stop: int,
    of: Callable[[Block], tuple[Tensor, ...]],
) -> tuple[Tensor, ...]:
    """Add up, over some shards, what a function gives of a block of images."""
    return added(of(block) for block in blocks(fusion_of(model), images, start, stop))


def label(
    model: str,
    images: Collection,
    start: int,
    stop: int,
    place: str,
    wanted: Sequence[str],
    targets: bool,
) -> int:
    """Write the predictions of the shards that are wanted among some; the number of their images."""
    writer, done = Label(model, images.store, place, targets), 0
    for shard in images.shards(start, stop):
        if shard.name not in wanted:
            continue
        stored = read(images, shard)
        cropped = [row for row, error in enumerate(stored.errors) if error is None]
        task = {
            "rows": stored.rows,
            "errors": stored.errors,
            "cropped": cropped,
            "stages": [None] * len(cropped),
            "embeddings": dict(enumerate(stored.embeddings)),
        }
        images.store.write_table(f"{place}/{shard.name}", writer.label(task))
        done += len(stored.rows)
    return done
