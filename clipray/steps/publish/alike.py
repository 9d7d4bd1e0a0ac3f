"""Test images that every backbone holds for nearly the same: one picture twice, which bytes do not show."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipray.artefacts import embeddings
from clipray.store import Store

ALIKE = 0.97  # least cosine, to every backbone
MOST = 10_000  # images that are compared; of more, those with the first ids, which are random
BLOCK = 1024  # rows of the matrix of cosines at a time
FEW = 6  # pairs that are shown


class Pair(NamedTuple):
    """Two images, as numbers of rows, and the least of their cosines."""

    first: int
    second: int
    cosine: float


def of_dataset(
    store: Store, addresses: Mapping[str, str], names: Sequence[str], image_ids: Sequence[str]
) -> list[Pair]:
    """Find the most alike images of a dataset; images whose bytes are equal are counted elsewhere, and left out.

    Args:
        addresses: of each backbone's embeddings of the test images.
        names: of the backbones, the one first whose nearest neighbours are looked at.
        image_ids: of the images, sorted; the pairs hold their numbers.
    """
    ids = [one for one in image_ids[:MOST] if "." not in one]
    number = {image_id: row for row, image_id in enumerate(image_ids)}
    found = pairs([_vectors(store, addresses[name], ids) for name in names])
    return [
        pair._replace(first=number[ids[pair.first]], second=number[ids[pair.second]])
        for pair in found
    ]


def pairs(views: Sequence[np.ndarray]) -> list[Pair]:
    """List the most alike pairs of rows, each row in one pair at most, from the most alike down.

    Args:
        views: of each backbone N×D, rows of length 1. Of the first one each row's nearest neighbour is looked at.

    >>> a, b, c = [1.0, 0.0], [0.999, 0.045], [0.0, 1.0]
    >>> [(one.first, one.second) for one in pairs([np.array([a, c, b])])]
    [(0, 2)]
    """
    first_N, second_N = _nearest(views[0])
    cosine_N = np.min([(view_ND[first_N] * view_ND[second_N]).sum(1) for view_ND in views], axis=0)
    found: list[Pair] = []
    taken: set[int] = set()
    for place in np.argsort(-cosine_N, kind="stable"):
        pair = Pair(int(first_N[place]), int(second_N[place]), float(cosine_N[place]))
        if pair.cosine < ALIKE or len(found) == FEW:
            break
        if not taken & {pair.first, pair.second}:
            found.append(pair)
            taken |= {pair.first, pair.second}
    return found


def _nearest(view_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find for each row but the last the nearest one of those behind it."""
    first_N = np.arange(max(0, len(view_ND) - 1))
    second_N = np.zeros_like(first_N)
    for start in range(0, len(first_N), BLOCK):
        rows = first_N[start : start + BLOCK]
        cosine_BN = view_ND[rows] @ view_ND[start:].T
        behind_BN = np.arange(start, len(view_ND)) > rows[:, None]
        second_N[rows] = start + np.where(behind_BN, cosine_BN, -np.inf).argmax(1)
    return first_N, second_N


def _vectors(store: Store, address: str, ids: Sequence[str]) -> np.ndarray:
    """Read the embeddings of some images, float32 N×D of length 1, in the order of the ids."""
    table = embeddings.read(store, address)
    rows = pc.index_in(pa.array(ids, pa.string()), value_set=table["image_id"].combine_chunks())
    column = table["embedding"].combine_chunks().take(rows)
    view_ND = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    view_ND = view_ND.reshape(len(ids), -1)
    return view_ND / np.linalg.norm(view_ND, axis=1, keepdims=True)
