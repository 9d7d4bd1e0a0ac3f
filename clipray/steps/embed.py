"""Images → embeddings: every image decoded once, cropped once per preprocess group, run through a pool per backbone.

One row of the Ray dataset is one shard of images, so an image's batch never depends on the cluster, a shard's files
are written whole, and nothing has to be regrouped. The pools are chained (Ray Data has no tee); each writes its
shard's file itself and the crops are dropped after the last pool that wants them. Killing the job at any moment
therefore loses at most the shards in flight.
"""

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from clipray import backbones, images, schema, sources
from clipray.config import Backbone, Campaign, Pool
from clipray.errors import ConfigError, ErrorBudget
from clipray.steps.index import Index
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


def what(spec: Backbone, campaign: Campaign, index: Index) -> dict:
    """The WHAT of a split's embeddings: the model, the way to its pixels, and the images themselves."""
    return {
        "backbone": backbones.origin(spec),
        "precision": campaign.precision,
        "decoder": images.DECODER,
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
    """One actor of a backbone's pool."""

    def __init__(
        self, store: Store, spec: Backbone, precision: str, device: str, batch_size: int, last: bool
    ):
        self.store, self.spec, self.precision, self.batch_size, self.last = (
            store,
            spec,
            precision,
            batch_size,
            last,
        )
        self.encoder = backbones.load(spec, precision, device)
        self.column = _column(self.encoder.preprocess)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Embed one shard, write its file, pass the shard on."""
        task = pickle.loads(table["task"][0].as_py())
        if self.spec.name in task["todo"]:
            size = (*self.encoder.preprocess.size, 3)
            crops_NHWC = np.frombuffer(table[self.column][0].as_buffer(), np.uint8).reshape(
                -1, *size
            )
            embeddings_ND = self.encoder.images(crops_NHWC, self.batch_size)
            part = embedded(task["rows"], embeddings_ND, self.encoder.dim, self.precision)
            self.store.write_table(task["places"][self.spec.name], part)
        return table.drop_columns([self.column]) if self.last else table


def embedded(rows: pa.Table, embeddings_ND: np.ndarray, dim: int, precision: str) -> pa.Table:
    """A shard's file (`schema.embeddings`): nulls in place of an embedding where the image has an error.

    Args:
        rows: image_id, label, error of all images of the shard.
        embeddings_ND: embeddings of the images without error, in order.
    """
    layout = schema.embeddings(dim, precision)
    finite = np.isfinite(embeddings_ND).all(axis=1)
    good = rows["error"].is_null().to_numpy(zero_copy_only=False)
    values = np.zeros((len(rows), dim), np.float32 if precision == "fp32" else np.float16)
    values[good] = embeddings_ND
    errors = np.array(rows["error"].to_pylist(), object)
    errors[np.flatnonzero(good)[~finite]] = "the embedding is not finite"
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
    """Embed what is missing; yields {dataset, split, shard, images, errors} as shards are done.

    Args:
        works: the splits' plans.
        cards: each backbone's card. pools: sizes and resources of the backbones with work to do.
        device: "cpu" or "cuda".

    Raises:
        ErrorBudget: too many of a split's images cannot be read.
    """
    import ray

    rows = [item for work in works for item in items(work)]
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
    budget = Budget(works, compute.error_budget)
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        for cell in batch["task"]:
            task = pickle.loads(cell.as_py())
            failed = len(task["rows"]) - task["rows"]["error"].null_count
            budget.spend(task["dataset"], task["split"], failed)
            yield {
                **{key: task[key] for key in ("dataset", "split", "shard")},
                "images": len(task["rows"]),
            }


def _group(card: dict) -> images.Preprocess:
    size, *rest = card["preprocess"]
    return images.Preprocess(tuple(size), *rest)


class Budget:
    """Counts failed images per split."""

    def __init__(self, works: list[Work], allowed: float):
        self.allowed = {
            (work.index.dataset, work.index.split): allowed * len(work.index)
            if allowed < 1
            else allowed
            for work in works
        }
        self.failed = dict.fromkeys(self.allowed, 0)

    def spend(self, dataset: str, split: str, failed: int) -> None:
        """Add failures; `ErrorBudget` where they exceed the split's allowance."""
        self.failed[dataset, split] += failed
        if self.failed[dataset, split] > self.allowed[dataset, split]:
            raise ErrorBudget(
                f"{dataset}/{split}: {self.failed[dataset, split]} images cannot be read, more than the error budget "
                f"allows ({self.allowed[dataset, split]:g}); look at them with `python -m jobs.validate CONFIG`, mend "
                "the data or raise compute.error_budget (a fraction below 1, or a count)"
            )


def finish(store: Store, work: Work) -> list[dict]:
    """Write the manifests of a split whose shards are all there; returns its failures (`schema.FAILURES` rows)."""
    names = [shard for shard, _ in work.shards()]
    for backbone, place in work.addresses.items():
        if store.manifest(place) is not None:
            continue
        lacking = set(names) - store.names(place)
        if lacking:
            raise ConfigError(
                f"{store.place(place)} lacks {len(lacking)} shards, {min(lacking)} among them"
            )
        table = pa.concat_tables(
            store.read_table(f"{place}/{n}", ["image_id", "label", "error"]) for n in names
        )
        if sorted(table["image_id"].to_pylist()) != sorted(
            work.index.table["image_id"].to_pylist()
        ):
            raise ConfigError(
                f"{store.place(place)} holds other images than its index: remove it and run again"
            )
        failed = table.filter(table["error"].is_valid())
        errors = dict(zip(failed["image_id"].to_pylist(), failed["error"].to_pylist(), strict=True))
        store.finish(place, work.whats[backbone], images=len(table), shards=names, errors=errors)
    return failures(store, work)


def failures(store: Store, work: Work) -> list[dict]:
    """The images of a complete split that have no embedding, and why."""
    errors = {}
    for place in work.addresses.values():
        errors |= store.manifest(place)["errors"]
    keys = work.index.table.filter(
        pa.compute.is_in(work.index.table["image_id"], pa.array(list(errors), pa.string()))
    )
    return [
        {
            "dataset": work.index.dataset,
            "split": work.index.split,
            "image_id": row["image_id"],
            "key": row["key"],
            "error": errors[row["image_id"]],
        }
        for row in keys.select(["image_id", "key"]).to_pylist()
    ]


def read(store: Store, place: str) -> pa.Table:
    """A complete artefact's embeddings (`schema.embeddings`), sorted by `image_id`."""
    return store.tables(place, store.manifest(place)["shards"])
