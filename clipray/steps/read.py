"""Stored embeddings and classifiers → images that every backbone sees, and support sets drawn from them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from clipray.artefacts import classifiers, embeddings, lookup, support_sets
from clipray.artefacts.evaluations import Task
from clipray.numerics import draws
from clipray.numerics.blocks import wide
from clipray.numerics.heads.cross_fit import View
from clipray.store import Store


class Split(NamedTuple):
    """A split's images that every backbone has embedded and that have a label; sorted by image id.

    Attributes:
        labels_N: int64. embeddings: M tensors N×D_m, float32 or, as they may be stored, float16.
        names: that images are drawn by: their ids, unless the split is read by `read_train` or `read_apart`.
    """

    image_ids: list[str]
    labels_N: Tensor
    embeddings: tuple[Tensor, ...]
    names: Sequence[str]


def read_split(store: Store, places: tuple[str, ...], classes: int) -> Split:
    """Read all backbones' embeddings of a split and join them by image id.

    Raises:
        ValueError: the backbones have seen different images or labels.
    """
    tables = [embeddings.read(store, place) for place in places]
    ids, labels = tables[0]["image_id"], tables[0]["label"]
    for place, table in zip(places, tables, strict=True):
        if not (table["image_id"].equals(ids) and table["label"].equals(labels)):
            raise ValueError(f"{place} holds other images or labels than {places[0]}")
    kept = pa.compute.and_(
        pa.compute.greater_equal(labels, 0), pa.compute.less(labels, classes)
    ).fill_null(False)
    for table in tables:
        kept = pa.compute.and_(kept, table["error"].is_null())
    matrices = []
    while tables:  # each is let go as soon as it has been copied
        column = tables.pop(0)["embedding"].filter(kept).combine_chunks()
        flat = np.array(column.flatten().to_numpy(zero_copy_only=False))
        matrices.append(torch.from_numpy(flat.reshape(len(column), column.type.list_size)))
    labels_N = torch.from_numpy(labels.filter(kept).to_numpy().astype(np.int64))
    image_ids = ids.filter(kept).to_pylist()
    return Split(image_ids, labels_N, tuple(matrices), image_ids)


def read_train(store: Store, task: Task, classes: int) -> Split:
    """Read the train split without the images that stand in the test split too: nothing may learn from them."""
    test_ids = support_sets.tested(store, task.embeddings["test"][0])
    return read_apart(store, task.embeddings["train"], task.names, test_ids, classes)


def read_apart(
    store: Store, places: tuple[str, ...], names: str, test_ids: Sequence[str], classes: int
) -> Split:
    """Read a train split as `read_train` does; embeddings are float32 afterwards.

    Args:
        places: of its embeddings. names: the address of the index that says by which names images are drawn; empty:
            by their ids.
    """
    train = read_split(store, places, classes)
    rows = np.flatnonzero(draws.apart(train.image_ids, test_ids))
    rows_N = torch.from_numpy(rows)
    image_ids = [train.image_ids[row] for row in rows]
    return Split(
        image_ids,
        train.labels_N[rows_N],
        wide([e_ND[rows_N] for e_ND in train.embeddings]),
        lookup.names(store, names, image_ids) if names else image_ids,
    )


def read_classifiers(store: Store, task: Task) -> tuple[Tensor, ...]:
    """Read the M class-vector tensors C×D_m of a task."""
    return tuple(torch.from_numpy(classifiers.read(store, place)) for place in task.classifiers)


def views_of(task: Task, weights: Sequence[Tensor], split: Split) -> tuple[View, ...]:
    """Put together what is known of each backbone on a split's images.

    Args:
        weights: as `read_classifiers` gives them.
    """
    costs = task.costs or ({},) * len(task.backbones)
    every = zip(task.backbones, weights, task.scales, split.embeddings, costs, strict=True)
    return tuple(
        View(name, classifier_CD, *scale, embeddings_ND, cost)
        for name, classifier_CD, scale, embeddings_ND, cost in every
    )


def draw(
    store: Store, task: Task, train: Split, classes: int, shots: Sequence[int], seeds: int
) -> support_sets.SupportSets:
    """Draw and record the support sets of a dataset's train split; every step draws by this."""
    labels_N, test = train.labels_N.numpy(), task.embeddings["test"][0]
    return support_sets.draw(
        store, task.dataset, train.image_ids, train.names, labels_N, test, classes, shots, seeds
    )
