"""Decodes each shard of a bundle once and gives its crops under one perturbation after the other."""

import pickle
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
from PIL import Image

from clipray import images
from clipray.artefacts import bundles, index
from clipray.perturbations import CLEAN, PERTURBATIONS, bounded, disturbed
from clipray.steps.crops import packed
from clipray.steps.embed.decode import tasks_of
from clipray.steps.survivors import survivors
from clipray.store import Store


def decode_variants(
    table: pa.Table, store: Store, groups: dict[str, images.Preprocess], max_pixels: int
) -> Iterator[pa.Table]:
    """Decode every image of a shard once; then, for each variant, perturb and crop it; then the bundle's next shard.

    Args:
        table: one row with the pickled bundles of all variants, which are of the same shards.
        store: where the index lies.
        groups: backbone name → preprocess group. max_pixels: larger images are refused before they are decoded.

    Yields:
        for each shard, for each variant that it lacks, one row, as `decode` of clean images gives.
    """
    tasks = list(zip(*map(_tasks_of, pickle.loads(table["task"][0].as_py())), strict=True))
    pieces = [own[0]["piece"] for own in tasks]
    shards = bundles.read(store, tasks[0][0]["index"], pieces)
    for own, (finder, data) in zip(tasks, shards, strict=True):
        lacking = [task for task in own if task["todo"]]
        yield from _disturbed(lacking, finder.rows, data, groups, max_pixels)


def _tasks_of(bundle: dict) -> Iterator[dict]:
    """Yield what is to be done of each shard of one variant's bundle."""
    for task in tasks_of(bundle):
        yield task | {"variant": bundle["variant"], "part": bundle["part"]}


def _disturbed(
    tasks: Sequence[dict],
    rows: pa.Table,
    data: Iterable[bytes | Exception | None],
    groups: dict[str, images.Preprocess],
    max_pixels: int,
) -> Iterator[pa.Table]:
    """Yield the row of each variant of a shard.

    Args:
        tasks: of the variants. rows, data: of the shard, see `bundles.read`.
    """
    data, known = survivors(data, rows["error"].to_pylist(), max_pixels)
    whole = any(task["variant"][0] == CLEAN for task in tasks)
    every = zip(data, known, strict=True)
    decoded = [_decoded(one, error, max_pixels, whole) for one, error in every]
    ids = rows["image_id"].to_pylist()
    for task in tasks:
        wanted = sorted({groups[name] for name in task["todo"]})
        crops: dict[images.Preprocess, list[bytes]] = {group: [] for group in wanted}
        errors = []
        for image_id, image in zip(ids, decoded, strict=True):
            copy = perturbed(image, image_id, *task["variant"])
            errors.append(copy if isinstance(copy, str) else None)
            for group in wanted if errors[-1] is None else ():
                crops[group].append(images.crop(copy, group).tobytes())
        yield _row(task, rows, errors, crops, set(groups.values()))


def perturbed(
    image: Image.Image | str, image_id: str, name: str, severity: int
) -> Image.Image | str:
    """Perturb a decoded image; an error, or what goes wrong here, is passed on as its reason."""
    if isinstance(image, str) or name == CLEAN:
        return image
    try:
        pixels = np.asarray(bounded(image))
        return Image.fromarray(disturbed(PERTURBATIONS[name], pixels, image_id, name, severity))
    except Exception as error:  # one image that a library refuses must not cost the others
        return f"{name} fails on it: {type(error).__name__}: {error}"[:300]


def _decoded(
    data: bytes | Exception | None, known: str | None, max_pixels: int, whole: bool
) -> Image.Image | str:
    """Decode an image, or return why there is none.

    Args:
        whole: whether large ones are kept as they are; perturbations look at no more than `AREA` pixels.
    """
    if known or isinstance(data, Exception):
        return known or str(data)
    try:
        image = images.decode(data, max_pixels)
        return image if whole else bounded(image)
    except images.ImageError as error:
        return str(error)


def _row(
    task: dict,
    rows: pa.Table,
    errors: list[str | None],
    crops: dict[images.Preprocess, list[bytes]],
    groups: set[images.Preprocess],
) -> pa.Table:
    told = rows.select(["image_id", "label"])
    task = task | {"rows": told.append_column("error", pa.array(errors, pa.string()))}
    task["content"] = index.content_sum(rows["image_id"], rows["label"])
    columns = packed({group: crops.pop(group, []) for group in groups})
    return pa.table({"task": pa.array([pickle.dumps(task)], pa.large_binary()), **columns})
