"""What can be drawn of a train split: labels with too few images, and images that stand in the test split too."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from clipray.artefacts import index as parts
from clipray.artefacts.index import Index
from clipray.fingerprint import code
from clipray.numerics import draws
from clipray.steps.mappers import Mapper
from clipray.store import Store


def few_images(labels: Mapping[int, int], n_classes: int, shots: Sequence[int]) -> Iterator[str]:
    """Yield what to say of a train split with fewer images than shots in some classes: these give what they have.

    Args:
        labels: by label, how many images can be drawn.
    """
    counts_C = np.array([labels.get(label, 0) for label in range(n_classes)])
    short = draws.short_classes(counts_C, sorted(shots))
    if short:
        told = [f"{number} at {k} shot{'s' if k > 1 else ''}" for k, number in short.items()]
        yield (
            f"train split: of {n_classes} classes some have fewer images than shots, and give what they have: "
            f"{', '.join(told)}"
        )


def drawable(store: Store, train: Index, test: Index, mapper: Mapper) -> dict[int, int]:
    """Count, by label, the images of a train split that can be used and are not in the test split too.

    It is kept in the store, so that a later run reads it and neither split.
    """
    made_of = {"train": train.address, "test": test.address, "code": code(draws.apart)}
    address = store.address("index", train.dataset, "drawable", what=made_of)
    manifest = store.manifest(address)
    if manifest is None:
        (labels,) = mapper(count_drawable, [(store, train, test)])
        store.finish(address, made_of, labels=labels)
        manifest = {"labels": labels}
    return {int(label): number for label, number in manifest["labels"].items()}


def count_drawable(store: Store, train: Index, test: Index) -> dict[int, int]:
    """Read both splits, and count the train split's images that can be drawn by label."""
    table = train.table(store, ["image_id", "label", "error"])
    tested = test.table(store, ["image_id"])["image_id"].to_pylist()
    table = table.filter(pa.array(draws.apart(table["image_id"].to_pylist(), tested)))
    return parts.labels(table)
