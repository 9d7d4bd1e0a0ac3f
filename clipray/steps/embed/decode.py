"""Shards are read, decoded and cropped: every image once, whatever the number of backbones."""

import pickle

import pyarrow as pa

from clipray import images, sources
from clipray.artefacts import index
from clipray.artefacts.found import Finder
from clipray.encoding import column, cropped
from clipray.steps.spent import DECODING, metered, timed
from clipray.steps.survivors import survivors
from clipray.store import Store


def decode(
    table: pa.Table, store: Store, groups: dict[str, images.Preprocess], max_pixels: int
) -> pa.Table:
    """Read one shard: look up its rows, decode, and crop for every preprocess group that its backbones want.

    Args:
        table: one row with the pickled `task`.
        store: where the index lies.
        groups: backbone name → preprocess group.
        max_pixels: larger images are refused before they are decoded.

    Returns:
        One row: the task with its images and their errors, and per group the uint8 crops of the readable images as
        bytes.
    """
    task = pickle.loads(table["task"][0].as_py())
    wanted = sorted({groups[name] for name in task["todo"]})
    with timed(task, DECODING):
        rows, chunks = index.read(store, task["index"], *task["piece"])
        finder = Finder(store, task["index"], task["piece"], rows)
        data = finder.passing(metered(sources.contents(chunks, finder.rows), task))
        data, known = survivors(data, finder.rows["error"].to_pylist(), max_pixels)
        crops, errors = cropped(data, known, wanted, max_pixels)
        rows = finder.found()
    told = rows.select(["image_id", "label"])
    task["rows"] = told.append_column("error", pa.array(errors, pa.string()))
    task["content"] = index.content_sum(rows["image_id"], rows["label"])
    columns = {
        column(group): pa.array([b"".join(parts)], pa.large_binary())
        for group, parts in crops.items()
    }
    for group in set(groups.values()) - set(wanted):
        columns[column(group)] = pa.array([b""], pa.large_binary())
    return pa.table({"task": pa.array([pickle.dumps(task)], pa.large_binary()), **columns})
