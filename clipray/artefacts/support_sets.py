"""The labelled images that fusers may learn from: drawn by one function for every step, and recorded image by image.

Equal images, names, labels, shots and seeds have one address, whichever backbones and whichever step asked for them.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from clipray import fingerprint, schema
from clipray.numerics import draws
from clipray.numerics.draws import Draw
from clipray.store import Store

FOLDER, FILE = "support_sets", "support_sets.parquet"


class SupportSets(NamedTuple):
    """A dataset's support sets, and the address that they are recorded at."""

    draws: list[Draw]
    address: str


def draw(
    store: Store,
    dataset: str,
    image_ids: Sequence[str],
    names: Sequence[str],
    labels_N: np.ndarray,
    test: str,
    classes: int,
    shots: Sequence[int],
    seeds: int,
) -> SupportSets:
    """Draw a dataset's support sets, and record them unless they are recorded already.

    Args:
        image_ids: of the train split's images that can be used. names: that they are drawn by. labels_N: theirs.
        test: the address of the test split's embeddings, by any backbone: no image of it is drawn.
        classes: C. shots: images a class. seeds: number of draws.
    """
    test_ids = tested(store, test)
    free_N = draws.apart(image_ids, test_ids)
    found = draws.draws(names, labels_N, classes, shots, range(seeds), free_N)
    told = what(image_ids, names, labels_N, test_ids, classes, shots, seeds)
    place = address(store, dataset, told)
    if store.manifest(place) is None:
        store.write_table(f"{place}/{FILE}", table(dataset, image_ids, labels_N, found))
        store.finish(place, told, **facts(found))
    return SupportSets(found, place)


def facts(draws: Sequence[Draw]) -> dict[str, dict[int, int]]:
    """Count, by number of shots, the different support sets, and the classes that have fewer images."""
    numbers = Counter(one.shots for one in draws)
    short = {one.shots: len(one.short) for one in draws}
    return {"distinct_support_sets": dict(numbers), "classes_with_fewer_images_than_shots": short}


def tested(store: Store, test: str) -> list[str]:
    """Read the ids of all images of a split from its embeddings at an address, failed ones too."""
    shards = (store.manifest(test) or {}).get("shards", [])
    return store.tables(test, shards, ["image_id"])["image_id"].to_pylist()


def what(
    image_ids: Sequence[str],
    names: Sequence[str],
    labels_N: np.ndarray,
    test_ids: Sequence[str],
    classes: int,
    shots: Sequence[int],
    seeds: int,
) -> dict[str, Any]:
    """Return the WHAT: images that can be drawn, with names and labels, those that cannot, and how many are drawn."""
    labelled = sorted(zip(image_ids, np.asarray(labels_N).tolist(), names, strict=True))
    return {
        "train": _digest(f"{image_id} {label} {name}" for image_id, label, name in labelled),
        "test": _digest(sorted(test_ids)),
        "classes": classes,
        "shots": list(shots),
        "seeds": seeds,
        "code": fingerprint.code(draws.draws, draws.apart),
    }


def address(store: Store, dataset: str, told: dict[str, Any]) -> str:
    """Return the address of a dataset's support sets; `told` is their `what`."""
    return store.address(FOLDER, dataset, what=told)


def table(
    dataset: str, image_ids: Sequence[str], labels_N: np.ndarray, draws: Sequence[Draw]
) -> pa.Table:
    """Make the table (`schema.SUPPORT_SETS`) of some draws."""
    ids, labels = np.asarray(image_ids, dtype=str), np.asarray(labels_N)
    parts = [
        pa.table(
            [
                pa.repeat(dataset, len(one.rows_K)),
                pa.repeat(pa.scalar(one.shots, pa.int32()), len(one.rows_K)),
                pa.repeat(pa.scalar(one.seed, pa.int32()), len(one.rows_K)),
                pa.array(ids[one.rows_K].tolist(), pa.string()),
                pa.array(labels[one.rows_K], pa.int64()),
            ],
            schema=schema.SUPPORT_SETS,
        )
        for one in draws
    ]
    return pa.concat_tables([schema.SUPPORT_SETS.empty_table(), *parts])


def read(store: Store, place: str) -> pa.Table:
    """Read the recorded support sets at an address (`schema.SUPPORT_SETS`)."""
    return store.read_table(f"{place}/{FILE}")


def _digest(lines: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for line in lines:
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()
