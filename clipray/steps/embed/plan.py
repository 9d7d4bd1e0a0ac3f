"""Images → embeddings: every image decoded once, cropped once per preprocess group, run through a pool per backbone.

One row of the Ray dataset is one shard of images, so an image's batch never depends on the cluster, a shard's files
are written whole, and nothing has to be regrouped. The pools are chained (Ray Data has no tee); each writes its
shard's file itself and the crops are dropped after the last pool that wants them. Killing the job at any moment
therefore loses at most the shards in flight.
"""

import pickle
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa

from clipray import backbones, fingerprint, images, schema, sources
from clipray.config import Backbone, Campaign, Pool
from clipray.steps.failures import FAILS, NOT_FINITE, TOO_LARGE
from clipray.steps.index.build import Index
from clipray.store import Store

SHARD_ROWS = (
    256  # images a shard: never changes with the cluster, so that file names and batches do not
)


@dataclass(frozen=True)
class Work:
    """What one split lacks: for each shard, the backbones whose file is not there."""

    index: Index
    addresses: dict[str, str]  # by backbone
    whats: dict[str, dict]  # by backbone
    todo: dict[str, list[str]]  # by shard name

    def shards(self) -> Iterator[tuple[str, pa.Table]]:
        """File name and index rows of every shard."""
        return self.index.shards(SHARD_ROWS)

    @property
    def images(self) -> int:
        """Images in shards with something to do."""
        return sum(len(rows) for name, rows in self.shards() if self.todo[name])

    def without(self, names: Collection[str]) -> "Work":
        """The same with nothing to do for some backbones."""
        todo = {
            shard: [name for name in wanted if name not in names]
            for shard, wanted in self.todo.items()
        }
        return replace(self, todo=todo)


def what(spec: Backbone, campaign: Campaign, index: Index) -> dict:
    """The WHAT of a split's embeddings: the model, the way to its pixels, and the images themselves."""
    return {
        "backbone": backbones.origin(spec),
        "precision": campaign.precision,
        "code": fingerprint.code(f"{__name__}:decode", f"{__name__}:Embedder"),
        "max_pixels": campaign.max_pixels,
        "images": index.content,
    }


def plan(store: Store, specs: list[Backbone], campaign: Campaign, index: Index) -> Work:
    """What is left to do for a split; complete artefacts are not looked into."""
    whats = {spec.name: what(spec, campaign, index) for spec in specs}
    addresses = {
        name: store.address("embeddings", index.dataset, index.split, name, what=whats[name])
        for name in whats
    }
    open_ones = [name for name in addresses if store.manifest(addresses[name]) is None]
    there = {name: store.names(addresses[name]) for name in open_ones}
    todo = {
        shard: [name for name in open_ones if shard not in there[name]]
        for shard, _ in index.shards(SHARD_ROWS)
    }
    return Work(index, addresses, whats, todo)


def items(work: Work) -> Iterator[dict]:
    """The rows of the Ray dataset: a shard that lacks something, with all that a worker needs to read it."""
    for shard, rows in work.shards():
        if work.todo[shard]:
            numbers = sorted(set(rows["chunk"].to_pylist()))
            task = {
                "dataset": work.index.dataset,
                "split": work.index.split,
                "shard": shard,
                "todo": work.todo[shard],
                "broken": {},  # by backbone, why it left no file
                "places": {name: f"{work.addresses[name]}/{shard}" for name in work.todo[shard]},
                "chunks": {number: work.index.chunks[number] for number in numbers},
                "rows": rows,
            }
            yield {"task": pickle.dumps(task)}


def decode(table: pa.Table, groups: dict[str, images.Preprocess], max_pixels: int) -> pa.Table:
    """One shard: read, decode, and crop for every preprocess group that its backbones want.

    Args:
        table: one row with the pickled `task`.
        groups: backbone name → preprocess group.
        max_pixels: larger images are refused before they are decoded.

    Returns:
        One row: the task with each image's error, and per group the uint8 crops of the readable images as bytes.
    """
    task = pickle.loads(table["task"][0].as_py())
    wanted = sorted({groups[name] for name in task["todo"]})
    crops: dict[images.Preprocess, list[bytes]] = {group: [] for group in wanted}
    errors = []
    for data, known in zip(_bytes(task), task["rows"]["error"].to_pylist(), strict=True):
        try:
            if known or isinstance(data, Exception):
                raise images.ImageError(known or str(data))
            image = images.decode(data, max_pixels)
            shard = [images.crop(image, group) for group in wanted]
        except images.ImageError as error:
            errors.append(str(error))
            continue
        errors.append(None)
        for group, crop in zip(wanted, shard, strict=True):
            crops[group].append(crop.tobytes())
    task["rows"] = (
        task["rows"]
        .select(["image_id", "label"])
        .append_column("error", pa.array(errors, pa.string()))
    )
    del task["chunks"]
    columns = {
        _column(group): pa.array([b"".join(parts)], pa.large_binary())
        for group, parts in crops.items()
    }
    for group in set(groups.values()) - set(wanted):
        columns[_column(group)] = pa.array([b""], pa.large_binary())
    return pa.table({"task": pa.array([pickle.dumps(task)], pa.large_binary()), **columns})


def _column(group: images.Preprocess) -> str:
    return "crops " + " ".join(str(part) for part in group)


def _bytes(task: dict) -> Iterator[bytes | Exception | None]:
    """The images' bytes in order; None for rows that the index could not read."""
    rows = task["rows"]
    for number, chunk in task["chunks"].items():
        part = rows.filter(pa.compute.equal(rows["chunk"], number))
        good = part.filter(pa.compute.is_null(part["error"]))
        found = iter(sources.fetch(chunk, good))
        yield from (None if error else next(found) for error in part["error"].to_pylist())


class Embedder:
    """One actor of a backbone's pool.

    A backbone that cannot be loaded, or that raises on every image of a shard, leaves no file and says why in the
    task; the shard goes on to the other backbones.
    """

    def __init__(
        self,
        store: Store,
        spec: Backbone,
        precision: str,
        device: str,
        batch_size: int,
        column: str,
        last: bool,
    ):
        self.store, self.spec, self.precision = store, spec, precision
        self.batch_size, self.column, self.last = batch_size, column, last
        self.encoder, self.broken = None, None
        try:
            self.encoder = self.load(device)
        except Exception as error:
            self.broken = f"it cannot be loaded: {_words(error)}"

    def load(self, device: str) -> backbones.Encoder:
        """The model."""
        return backbones.load(self.spec, self.precision, device)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Embed one shard, write its file, pass the shard on."""
        task = pickle.loads(table["task"][0].as_py())
        if self.spec.name in task["todo"]:
            reason = self.broken or self.embed(task, table)
            if reason:
                task["broken"][self.spec.name] = reason
                told = pa.array([pickle.dumps(task)], pa.large_binary())
                table = table.set_column(table.column_names.index("task"), "task", told)
        return table.drop_columns([self.column]) if self.last else table

    def embed(self, task: dict, table: pa.Table) -> str | None:
        """Write one shard's file; why there is none, or None."""
        size = (*self.encoder.preprocess.size, 3)
        crops_NHWC = np.frombuffer(table[self.column][0].as_buffer(), np.uint8).reshape(-1, *size)
        embeddings_ND, errors = encode(self.encoder, crops_NHWC, self.batch_size)
        if errors and all(errors):
            return f"it fails on images: {errors[0]}"
        rows = _with_errors(task["rows"], errors)
        kept = [error is None for error in errors]
        part = embedded(rows, embeddings_ND[kept], self.encoder.dim, self.precision)
        self.store.write_table(task["places"][self.spec.name], part)
        return None


def encode(
    encoder: "backbones.Encoder", crops_NHWC: np.ndarray, batch_size: int
) -> tuple[np.ndarray, list[str | None]]:
    """Embeddings of a shard, and each image's error; image by image where the shard as a whole raises.

    Returns:
        N×D embeddings (rows with an error hold zeros), and N errors or Nones.
    """
    try:
        return encoder.images(crops_NHWC, batch_size), [None] * len(crops_NHWC)
    except Exception:  # whatever a model raises on one image must not cost the others
        embeddings_ND = np.zeros((len(crops_NHWC), encoder.dim), np.float32)
        errors: list[str | None] = []
        for row, crop_HWC in enumerate(crops_NHWC):
            try:
                embeddings_ND[row] = encoder.images(crop_HWC[None], 1)[0]
                errors.append(None)
            except Exception as error:
                errors.append(f"{FAILS}{_words(error)}")
        return embeddings_ND, errors


def _words(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _with_errors(rows: pa.Table, errors: list[str | None]) -> pa.Table:
    """Rows of a shard with one backbone's errors in place where the image itself has none."""
    own = iter(errors)
    every = [known or next(own) for known in rows["error"].to_pylist()]
    place = rows.column_names.index("error")
    return rows.set_column(place, "error", pa.array(every, pa.string()))


def embedded(rows: pa.Table, embeddings_ND: np.ndarray, dim: int, precision: str) -> pa.Table:
    """A shard's file (`schema.embeddings`): nulls in place of an embedding where the image has an error.

    An embedding counts as finite if it is so as it is stored: 70000 is not, in float16.

    Args:
        rows: image_id, label, error of all images of the shard.
        embeddings_ND: embeddings of the images without error, in order.
    """
    layout = schema.embeddings(dim, precision)
    good = rows["error"].is_null().to_numpy(zero_copy_only=False)
    values = np.zeros((len(rows), dim), np.float32 if precision == "fp32" else np.float16)
    with np.errstate(over="ignore"):
        values[good] = embeddings_ND
    stored = np.isfinite(values[good]).all(axis=1)
    given = np.isfinite(embeddings_ND).all(axis=1)
    errors = np.array(rows["error"].to_pylist(), object)
    errors[np.flatnonzero(good)[~stored]] = TOO_LARGE
    errors[np.flatnonzero(good)[~given]] = NOT_FINITE
    values[good] = np.where(stored[:, None], values[good], 0)
    null_ND = np.repeat(np.array([error is not None for error in errors]), dim)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), mask=null_ND), dim)
    return pa.table(
        [rows["image_id"], rows["label"], column, pa.array(errors, pa.string())], schema=layout
    )


def run(
    store: Store,
    works: list[Work],
    specs: list[Backbone],
    campaign: Campaign,
    cards: dict[str, dict],
    pools: dict[str, Pool],
    device: str,
) -> Iterator[dict]:
    """Embed what is missing; yields {dataset, split, shard, images, broken} as shards are done.

    `broken` says, by backbone, why it left no file. Whether a split keeps to the error budget is for `finish` to say,
    which sees the shards of earlier runs too: what was embedded serves a later run with a larger budget.

    Args:
        works: the splits' plans.
        cards: each backbone's card. pools: sizes and resources of the backbones with work to do; others have none.
        device: "cpu" or "cuda".
    """
    import ray

    others = {spec.name for spec in specs} - set(pools)
    rows = [item for work in works for item in items(work.without(others))]
    if not rows:
        return
    compute, entries = campaign.compute, {spec.name: spec for spec in specs}
    groups = {name: _group(cards[name]) for name in pools}
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        partial(decode, groups=groups, max_pixels=campaign.max_pixels),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=compute.decode_cpus,
        memory=compute.decode_memory,
        max_retries=compute.max_retries,
    )
    order = sorted(pools, key=lambda name: (groups[name], name))
    for name, following in zip(order, [*order[1:], None], strict=True):
        last = following is None or groups[following] != groups[name]
        dataset = dataset.map_batches(
            Embedder,
            fn_constructor_args=(
                store,
                entries[name],
                campaign.precision,
                device,
                compute.batch_size,
                _column(groups[name]),
                last,
            ),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=pools[name].size),
            num_cpus=pools[name].num_cpus,
            num_gpus=pools[name].num_gpus,
            max_restarts=compute.max_retries,
            max_task_retries=compute.max_retries,
        )
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        for cell in batch["task"]:
            task = pickle.loads(cell.as_py())
            told = {key: task[key] for key in ("dataset", "split", "shard", "broken")}
            yield {**told, "images": len(task["rows"])}


def _group(card: dict) -> images.Preprocess:
    size, *rest = card["preprocess"]
    return images.Preprocess(tuple(size), *rest)


def read(store: Store, place: str) -> pa.Table:
    """A complete artefact's embeddings (`schema.embeddings`), sorted by `image_id`."""
    return store.tables(place, store.manifest(place)["shards"])
