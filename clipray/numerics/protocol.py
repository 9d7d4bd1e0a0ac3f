"""Which labelled images a fuser may see: k per class, nested over k, one draw per seed."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Draw(NamedTuple):
    """One support set.

    Attributes:
        rows_K: positions in the given arrays, in order of image id.
        short: class -> images it has, for every class with fewer than `shots` of them.
    """

    shots: int
    seed: int
    rows_K: np.ndarray
    short: dict[int, int]


def draws(
    image_ids: Sequence[str],
    labels_N: np.ndarray,
    classes: int,
    shots: Sequence[int],
    seeds: Sequence[int],
) -> list[Draw]:
    """Support sets for every seed and number of shots.

    Within its class an image's place is the hash of (seed, image id), so a draw depends neither on the order of the
    rows nor on a random generator's version, and the draw of k lies within that of any larger k. A class with fewer
    than k images gives what it has. Rows with a label outside 0..C−1 are never drawn.

    Args:
        image_ids: unique names of the images.
        labels_N: integer classes.
        classes: C.
        shots: the values of k.
        seeds: numbers of the draws.

    Returns:
        for each seed, for each k, a `Draw`.

    >>> [d.rows_K.tolist() for d in draws(["a", "b", "c", "d"], np.array([0, 0, 1, 1]), 2, [1, 2], [0])]
    [[0, 3], [0, 1, 2, 3]]
    """
    ids = np.asarray(image_ids, dtype=str)
    labels = np.asarray(labels_N)
    if len(np.unique(ids)) != len(ids):
        raise ValueError("image ids must be unique")
    counts = np.bincount(
        labels[(labels >= 0) & (labels < classes)].astype(np.int64), minlength=classes
    )
    by_id = np.argsort(ids, kind="stable")
    by_id = by_id[(labels[by_id] >= 0) & (labels[by_id] < classes)]
    found = []
    for seed in seeds:
        places = np.array([_place(seed, ids[row]) for row in by_id], dtype=np.uint64)
        order = np.lexsort((places, labels[by_id]))
        rank = np.empty(len(order), dtype=np.int64)
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        rank[order] = np.arange(len(order)) - starts[labels[by_id][order].astype(np.int64)]
        for k in shots:
            short = {int(c): int(counts[c]) for c in np.flatnonzero(counts < k)}
            found.append(Draw(int(k), int(seed), by_id[rank < k], short))
    return found


def _place(seed: int, image_id: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(f"{seed}/{image_id}".encode(), digest_size=8).digest(), "big"
    )
