"""Which labelled images a fuser may see: k per class, nested over k, one draw per seed."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from clipray.shots import ALL


class Draw(NamedTuple):
    """One support set.

    Attributes:
        rows_K: positions in the given arrays, in order of name.
        short: class -> images it has, for every class with fewer than `shots` of them.
    """

    shots: int
    seed: int
    rows_K: np.ndarray
    short: dict[int, int]


def draws(
    names: Sequence[str],
    labels_N: np.ndarray,
    classes: int,
    shots: Sequence[int],
    seeds: Sequence[int],
    free_N: np.ndarray | None = None,
) -> list[Draw]:
    """Draw support sets for every seed and number of shots.

    Within its class an image's place is the hash of (seed, name), so a draw depends neither on the order of the rows
    nor on a random generator's version, and the draw of k lies within that of any larger k. A name is known before the
    image is read: where it lies. A class with fewer than k images gives what it has. Rows with a label outside 0..C−1,
    and those that are not free, are never drawn. Where the draws of k are the same for all seeds, as where there is
    nothing to choose, there is one, of the first seed: counting it again would feign a spread of zero.

    Args:
        names: of the images; equal ones are taken in the order of the rows.
        labels_N: integer classes.
        classes: C.
        shots: the values of k; `shots.ALL` is short of nothing.
        seeds: numbers of the draws.
        free_N: which images may be drawn, as `apart` tells it; None: all.

    Returns:
        for each seed, for each k, a `Draw`.

    >>> every = draws(["a", "b", "c", "d"], np.array([0, 0, 1, 1]), 2, [1, 2], [0, 1])
    >>> [(d.shots, d.seed, d.rows_K.tolist()) for d in every]
    [(1, 0, [0, 3]), (2, 0, [0, 1, 2, 3]), (1, 1, [0, 2])]
    """
    labels = np.asarray(labels_N)
    if free_N is not None:
        labels = np.where(free_N, labels, -1)
    counts = np.bincount(
        labels[(labels >= 0) & (labels < classes)].astype(np.int64), minlength=classes
    )
    # as objects: an array of text would hold every name at the length of the longest
    by_name = np.argsort(np.array(names, dtype=object), kind="stable")
    by_name = by_name[(labels[by_name] >= 0) & (labels[by_name] < classes)]
    found = []
    for seed in seeds:
        places = np.array([place(seed, names[row]) for row in by_name], dtype=np.uint64)
        rank = ranks(labels[by_name], places)
        for k in shots:
            short = {int(c): int(counts[c]) for c in np.flatnonzero(counts < k) if k != ALL}
            found.append(Draw(int(k), int(seed), by_name[rank < k], short))
    return _distinct(found)


def short_classes(counts_C: np.ndarray, shots: Sequence[int]) -> dict[int, int]:
    """Count the classes with fewer images than k, for each k at which there are some.

    Args:
        counts_C: images of each class.

    >>> short_classes(np.array([2, 1, 0]), [1, 2])
    {1: 1, 2: 2}
    """
    return {k: int((counts_C < k).sum()) for k in shots if k != ALL and (counts_C < k).any()}


def apart(image_ids: Sequence[str], test_ids: Sequence[str]) -> np.ndarray:
    """Tell which images are not in the test split too, bool_N; repeats of an image (".1", ".2", …) are that image.

    >>> apart(["a", "b", "b.1", "c"], ["b.2", "d"])
    array([ True, False, False,  True])
    """
    tested = {_content(image_id) for image_id in test_ids}
    return np.array([_content(image_id) not in tested for image_id in image_ids], dtype=bool)


def held_out(labels_K: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which support images are kept from heads for fusers, bool_K: a share of each class, drawn by the seed.

    It is at least one image of a class, and never its last one: a class with one image gives none.

    Args:
        labels_K: classes of the support images. share: from 0 to 1.

    >>> held_out(np.array([0, 0, 0, 0, 1, 1, 2]), 0.5, seed=0).tolist()
    [True, True, False, False, True, False, False]
    """
    labels_K = np.asarray(labels_K)
    held_K = np.zeros(len(labels_K), dtype=bool)
    for label in np.unique(labels_K):
        own = sorted(np.flatnonzero(labels_K == label), key=lambda row: place(seed, f"held {row}"))
        count = min(max(1, round(share * len(own))), len(own) - 1)
        held_K[own[:count]] = True
    return held_K


def ranks(labels_N: np.ndarray, places_N: np.ndarray) -> np.ndarray:
    """Return each row's number among those of its label, in the order of their places, from 0; equal ones as they come.

    >>> ranks(np.array([0, 0, 1, 0]), np.array([7, 5, 9, 5])).tolist()
    [2, 0, 0, 1]
    """
    order = np.lexsort((places_N, labels_N))
    own = labels_N[order]
    starts = np.flatnonzero(np.append(True, own[1:] != own[:-1]))
    sizes = np.diff(np.append(starts, len(own)))
    found = np.empty(len(own), np.int64)
    found[order] = np.arange(len(own)) - np.repeat(starts, sizes)
    return found


def evenly(labels_N: np.ndarray, places_N: np.ndarray, most: int) -> np.ndarray:
    """Return at most that many rows, as even over labels as they come, and of each label those of the first places.

    Args:
        labels_N, places_N: of the rows, both numbers.

    Returns:
        int64 rows, sorted.

    >>> evenly(np.array([0, 0, 0, 0, 1, 1]), np.array([3, 1, 0, 2, 5, 4]), 4).tolist()
    [1, 2, 4, 5]
    """
    chosen = np.lexsort((places_N, ranks(labels_N, places_N)))[:most]
    return np.sort(chosen)


def _content(image_id: str) -> str:
    return image_id.partition(".")[0]


def _distinct(found: Sequence[Draw]) -> list[Draw]:
    """Keep one draw of each number of shots at which all seeds have the same rows, and all others."""
    first: dict[int, Draw] = {}
    differ: set[int] = set()
    for draw in found:
        own = first.setdefault(draw.shots, draw)
        if not np.array_equal(draw.rows_K, own.rows_K):
            differ.add(draw.shots)
    return [draw for draw in found if draw.shots in differ or draw is first[draw.shots]]


def place(seed: int | str, name: str) -> int:
    """Return the place of a name in the order of a seed, from 0 to 2^64 − 1."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "big")
