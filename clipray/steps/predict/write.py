"""Images → labels of a fused model: decoded once, through a pool of each backbone that has a say, fused, written.

One row of the Ray dataset is one shard of images. The pools are chained as in embedding, a shard's embeddings ride
along, and the last stage fuses them and writes the shard's file. Nothing in memory grows with the number of images.
"""

import pickle
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from clipray import backbones, encoding, images, schema
from clipray.artefacts import bundles, fused_model
from clipray.artefacts.embeddings import embedded
from clipray.config import Compute, Pool
from clipray.encoding import column
from clipray.errors import ClipRayError
from clipray.fusion import Fusion
from clipray.steps.crews import Manned, Member, chained, decoding, manned, streamed
from clipray.steps.crops import packed
from clipray.steps.memory import WORKER
from clipray.steps.survivors import survivors
from clipray.store import Store

RUNNING = ("image_id", "key", "label")  # what of an index's row a prediction needs


def decode(
    table: pa.Table, store: Store, groups: list[images.Preprocess], max_pixels: int
) -> Iterator[pa.Table]:
    """Read the shards of a bundle, decode them, and crop them for every preprocess group.

    Args:
        table: one row with the pickled bundle as `task`.
        store: where the index lies.
        groups: those of the backbones that run. max_pixels: larger images are refused before they are decoded.

    Yields:
        For each shard one row: the task with each image's error, and per group the uint8 crops of the readable images
        as bytes.
    """
    bundle = pickle.loads(table["task"][0].as_py())
    names = [name for name, *_ in bundle["shards"]]
    shards = bundles.read(store, bundle["index"], [piece for _, *piece in bundle["shards"]])
    for name, (finder, data) in zip(names, shards, strict=True):
        known = finder.rows["error"].to_pylist()
        data, known = survivors(finder.passing(data), known, max_pixels)
        crops, errors = encoding.cropped(data, known, groups, max_pixels)
        task = {"shard": name, "rows": finder.found().select(RUNNING), "errors": errors}
        task["embeddings"] = {}
        task["cropped"] = [row for row, error in enumerate(errors) if error is None]
        # of a cascade, the stage at which an image has left
        task["stages"] = [None] * len(task["cropped"])
        columns = packed(crops)
        yield pa.table({"task": pa.array([pickle.dumps(task)], pa.large_binary()), **columns})


def _with_task(table: pa.Table, task: dict) -> pa.Table:
    told = pa.array([pickle.dumps(task)], pa.large_binary())
    return table.set_column(table.column_names.index("task"), "task", told)


class Encode:
    """One backbone in an actor of its pool. One thread computes at a time; meanwhile another one may write.

    Args:
        model: the fused model's URI. number: the backbone's.
        keep: where the embeddings are written, beside being handed on; None: nowhere.
    """

    def __init__(
        self,
        model: str,
        number: int,
        device: str,
        batch_size: int,
        compiled: bool,
        keep: tuple[Store, str] | None,
    ):
        fusion = Fusion(fused_model.read(fused_model.fetched(model)))
        self.fusion = fusion
        self.number, self.batch_size, self.keep = number, batch_size, keep
        self.group, self.dim = fusion.group(number), fusion.cards[number]["dim"]
        self.precision, self.broken = fusion.about["precision"], None
        self.computing = threading.Lock()
        try:
            spec, size = fusion.specs[number], batch_size if compiled else 0
            self.encoder = backbones.load(spec, self.precision, device, size)
        except (
            Exception
        ) as error:  # told by the first shard, for an actor that dies is started again and again
            self.broken = f"{fusion.backbones[number]} cannot be loaded: {encoding.words(error)}"

    def __call__(self, table: pa.Table) -> pa.Table:
        """Embed one shard and hand it on."""
        if self.broken:
            raise ClipRayError(self.broken)
        task = pickle.loads(table["task"][0].as_py())
        size = (*self.group.size, 3)
        crops_NHWC = np.frombuffer(table[column(self.group)][0].as_buffer(), np.uint8)
        open_N = np.array([stage is None for stage in task["stages"]], bool)
        crops_NHWC = crops_NHWC.reshape(-1, *size)[open_N]
        with self.computing:
            values_ND, own = encoding.encode(self.encoder, crops_NHWC, self.batch_size)
        if self.keep:
            self.write(task, values_ND, own)
        kept_ND, beyond = encoding.stored(values_ND, self.precision)
        running = [row for row, there in zip(task["cropped"], open_N, strict=True) if there]
        for row, fails, large in zip(running, own, beyond, strict=True):
            task["errors"][row] = task["errors"][row] or fails or large
        filled_ND = np.zeros((len(open_N), kept_ND.shape[1]), kept_ND.dtype)
        filled_ND[open_N] = kept_ND
        task["embeddings"][self.number] = filled_ND
        if self.fusion.cascade:
            self.leave(task, open_N)
        return _with_task(table, task)

    def leave(self, task: dict, open_N: np.ndarray) -> None:
        """Let the images go that are sure after this backbone: the pools behind it see only what is left."""
        stage = self.fusion.cascade.order.index(self.number)
        good = [task["errors"][row] is None for row in task["cropped"]]
        places = np.flatnonzero(open_N & np.array(good, bool))
        if not len(places):
            return
        count = len(self.fusion.backbones)
        there = [
            task["embeddings"][m][places] if m in task["embeddings"] else None for m in range(count)
        ]
        for place in places[self.fusion.leaves(stage, there)]:
            task["stages"][place] = stage

    def write(self, task: dict, values_ND: np.ndarray, own: list[str | None]) -> None:
        """Write the shard's embeddings as the step `embed` does, with this backbone's errors only."""
        store, place = self.keep
        read = iter(own)
        cropped = set(task["cropped"])
        errors = [
            next(read) if row in cropped else error for row, error in enumerate(task["errors"])
        ]
        rows = task["rows"].select(["image_id", "label"])
        rows = rows.append_column("error", pa.array(errors, pa.string()))
        good = [error is None for error in own]
        part = embedded(rows, values_ND[good], self.dim, self.precision)
        store.write_table(f"{place}/{task['shard']}", part)


class Label:
    """One actor that fuses shards and writes their predictions.

    Args:
        model: the fused model's URI. store, place: where the files go.
        targets: whether the index's labels are the numbers of the model's classes.
    """

    def __init__(self, model: str, store: Store, place: str, targets: bool):
        self.fusion = Fusion(fused_model.read(fused_model.fetched(model)))
        self.store, self.place, self.targets = store, place, targets

    def __call__(self, table: pa.Table) -> pa.Table:
        """Write one shard, and hand on its name and counts."""
        task = pickle.loads(table["task"][0].as_py())
        part = self.label(task)
        self.store.write_table(f"{self.place}/{task['shard']}", part)
        failed = len(part) - part["error"].null_count
        return pa.table({"shard": [task["shard"]], "images": [len(part)], "failed": [failed]})

    def label(self, task: dict) -> pa.Table:
        """Make the predictions of a shard (`schema.PREDICTIONS`)."""
        errors = task["errors"]
        places = [p for p, row in enumerate(task["cropped"]) if errors[row] is None]
        embeddings = [
            task["embeddings"][m][places] if m in task["embeddings"] else None
            for m in range(len(self.fusion.backbones))
        ]
        stage_N = np.array([task["stages"][place] for place in places])
        staged = stage_N if self.fusion.cascade else None
        answers = iter(self.fusion.answers(embeddings, staged) if places else ())
        classes = len(self.fusion.classnames)
        rows = []
        for one, error in zip(task["rows"].to_pylist(), errors, strict=True):
            label = one["label"]
            known = self.targets and label is not None and 0 <= label < classes
            row = {
                "image_id": one["image_id"],
                "path": one["key"],
                "target": label if known else None,
                "error": error,
            }
            rows.append(row | (next(answers) if error is None else {}))
        return pa.Table.from_pylist(rows, schema=schema.PREDICTIONS)


def run(
    items: Iterator[dict[str, Any]],
    model: str,
    fusion: Fusion,
    store: Store,
    place: str,
    targets: bool,
    keep: dict[int, str],
    compute: Compute,
    pools: dict[str, Pool],
    device: str,
) -> Iterator[dict[str, Any]]:
    """Label what is missing; yield {shard, images, failed} as shards are done.

    Args:
        items: the shards, as `plan.items` gives them.
        model: the fused model's URI, which every worker can read. fusion: it, read.
        place: where the predictions go. targets: see `Label`.
        keep: by the number of a backbone, where its embeddings are kept.
        pools: sizes and resources by backbone. device: "cpu" or "cuda".
    """
    rows = [{"task": pickle.dumps(item)} for item in items]
    if not rows:
        return
    numbers = list(fusion.stages[-1].backbones)
    if not fusion.cascade:  # whose order is that of its stages
        numbers = encoding.largest_first({m: fusion.group(m) for m in numbers})
    groups = sorted({fusion.group(m) for m in numbers})
    how = decoding(compute, groups)
    dataset = streamed(rows).map_batches(
        partial(decode, store=store, groups=groups, max_pixels=fusion.about["max_pixels"]), **how
    )
    members = {}
    for m in numbers:
        own = (store, keep[m]) if m in keep else None
        make = partial(Encode, model, m, device, compute.batch_size, compute.compile, own)
        members[fusion.backbones[m]] = Member(make, column(fusion.group(m)))
    cards = dict(zip(fusion.backbones, fusion.cards, strict=True))
    crews = manned(members, pools, cards, compute.batch_size)
    fuse = Member(partial(Label, model, store, place, targets))
    if len(crews[-1].members) > 1:  # there are few cores: no process of its own
        crews[-1].members.append(fuse)
    else:
        size = max(1, sum(pool.size for pool in pools.values()) // 8)
        crews.append(Manned([fuse], Pool(size=size, num_cpus=0), WORKER))
    dataset = chained(dataset, crews, compute, how["memory"])
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from batch.to_pylist()
