"""Shards are read, decoded and cropped: every image once, whatever the number of backbones."""

import pickle
from collections.abc import Iterator

import pyarrow as pa

from clipray import images
from clipray.artefacts import bundles
from clipray.artefacts.found import Finder
from clipray.artefacts.index import content_sum
from clipray.encoding import cropped
from clipray.steps.crops import packed
from clipray.steps.spent import DECODING, metered, timed
from clipray.steps.survivors import survivors
from clipray.store import Store


def tasks_of(bundle: dict) -> Iterator[dict]:
    """Yield what is to be done of each shard of a bundle."""
    for name, *piece, todo in bundle["shards"]:
        yield {
            "dataset": bundle["dataset"],
            "split": bundle["split"],
            "shard": name,
            "todo": todo,
            "broken": {},  # by backbone, why it left no file
            "errors": {},  # by backbone that left one, its images' errors
            "places": {one: f"{bundle['addresses'][one]}/{name}" for one in todo},
            "index": bundle["index"],
            "piece": tuple(piece),
        }


def decode(
    table: pa.Table, store: Store, groups: dict[str, images.Preprocess], max_pixels: int
) -> Iterator[pa.Table]:
    """Read the shards of a bundle: look up their rows, decode, and crop for every preprocess group that is wanted.

    Args:
        table: one row with the pickled bundle as `task`.
        store: where the index lies.
        groups: backbone name → preprocess group.
        max_pixels: larger images are refused before they are decoded.

    Yields:
        For each shard one row: its task with its images and their errors, and per group the uint8 crops of the
        readable images as bytes.
    """
    bundle = pickle.loads(table["task"][0].as_py())
    tasks = list(tasks_of(bundle))
    shards = bundles.read(store, bundle["index"], [task["piece"] for task in tasks])
    for task, (finder, data) in zip(tasks, shards, strict=True):
        yield _decoded(task, finder, data, groups, max_pixels)


def _decoded(
    task: dict,
    finder: Finder,
    data: Iterator,
    groups: dict[str, images.Preprocess],
    max_pixels: int,
) -> pa.Table:
    wanted = sorted({groups[name] for name in task["todo"]})
    with timed(task, DECODING):
        data = finder.passing(metered(data, task))
        data, known = survivors(data, finder.rows["error"].to_pylist(), max_pixels)
        crops, errors = cropped(data, known, wanted, max_pixels)
        columns = packed(crops | {group: [] for group in set(groups.values()) - set(wanted)})
        rows = finder.found()
    told = rows.select(["image_id", "label"])
    task["rows"] = told.append_column("error", pa.array(errors, pa.string()))
    task["content"] = content_sum(rows["image_id"], rows["label"])
    return pa.table({"task": pa.array([pickle.dumps(task)], pa.large_binary()), **columns})
