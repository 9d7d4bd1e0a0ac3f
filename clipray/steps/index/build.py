"""Which images a split holds: every image hashed and numbered once, before any model is loaded."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipray import sources
from clipray.config import Compute, Dataset
from clipray.errors import ConfigError
from clipray.fingerprint import code, plain
from clipray.numerics.draws import apart, short_classes
from clipray.store import Store

Mapper = Callable[[Callable, list[tuple]], Iterable[Any]]
PART = "index.parquet"
IN_PROCESS = 64  # chunks that are not worth starting Ray for
TEXTS = ("classnames", "templates")  # of a dataset: no image or label depends on them
REASONS = 5  # reasons of error rows that a manifest lists; all rows are counted


@dataclass(frozen=True)
class Index:
    """A split's images: where each lies (`schema.INDEX`), in the order of the source."""

    dataset: str
    split: str
    chunks: list[sources.Chunk]
    table: pa.Table
    remarks: tuple[str, ...] = ()  # what a person should know of the split: left out, not readable

    @property
    def content(self) -> str:
        """A digest of all image ids and labels, whatever their order: equal for equal collections anywhere."""
        ids, labels = self.table["image_id"].to_pylist(), self.table["label"].to_pylist()
        lines = sorted(f"{image_id} {label}" for image_id, label in zip(ids, labels, strict=True))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]

    def __len__(self) -> int:
        return len(self.table)

    def shards(self, rows: int) -> Iterator[tuple[str, pa.Table]]:
        """Deterministic parts of at most `rows` images, with their file names."""
        for start in range(0, len(self.table), rows):
            yield f"{start:09d}.parquet", self.table.slice(start, rows)


def index(
    store: Store,
    dataset: Dataset,
    split: str,
    data_root: str,
    mapper: Mapper,
    limit: int = 0,
    names: Sequence[str] | None = None,
) -> Index:
    """The index of a split, read from the store if its source has not changed, else made and kept there.

    Args:
        store: where it is kept.
        dataset: the catalogue's entry.
        split: "train" or "test".
        data_root: what relative URIs lie below.
        mapper: how the chunks are read: `in_threads`, or Ray tasks.
        limit: images to take of it, evenly over classes; 0 for all.
        names: the class names, where they are known already.

    Raises:
        ConfigError: no image can be read, or a label is of no class.
    """
    names = sources.classnames(dataset, data_root) if names is None else names
    chunks = sources.listing(dataset, split, data_root)
    made_of = what(dataset, split, chunks)
    address = store.address("index", dataset.name, split, what=made_of)
    if store.manifest(address) is None:
        parts = list(mapper(sources.index, list(enumerate(chunks))))
        table = sources.number_repeats(parts)
        store.write_table(f"{address}/{PART}", table)
        facts = {"left_out": sources.left_out(parts), "unreadable": _reasons(table)}
        store.finish(address, made_of, chunks=len(chunks), images=len(table), **facts)
    table = store.read_table(f"{address}/{PART}")
    check(dataset.name, split, table, len(names))
    remarks = _remarks(split, table, store.manifest(address).get("left_out", {}), len(names))
    chosen = evenly(table, limit) if limit else table
    return Index(dataset.name, split, chunks, chosen, tuple(remarks))


def check(dataset: str, split: str, table: pa.Table, n_classes: int) -> None:
    """Raise `ConfigError` unless some image can be read and each label is the number of a class.

    Args:
        table: a split's index; rows with an error may lack a label.
        n_classes: C; labels are 0 to C - 1.
    """
    where = f"dataset {dataset}: its {split} split"
    if not len(table):
        raise ConfigError(f"{where} holds no image.\n  Correct `uri` or `splits`.")
    good = table.filter(pc.is_null(table["error"]))
    if not len(good):
        raise ConfigError(
            f"{where} holds no image that can be used: {_first_reason(table)}.\n"
            "  Correct the files, or what names them."
        )
    bounds = pc.min_max(good["label"])
    low, high = bounds["min"].as_py(), bounds["max"].as_py()
    if low >= 0 and high < n_classes:
        return
    outside = pc.or_(pc.less(good["label"], 0), pc.greater_equal(good["label"], n_classes))
    raise ConfigError(
        f"{where} has labels from {low} to {high}, but there are {n_classes} class names (labels 0 to {n_classes - 1});"
        f" {pc.sum(outside).as_py()} of {len(good)} images have no class.\n  {label_remedy(low, high, n_classes)}"
    )


def label_remedy(low: int, high: int, n_classes: int) -> str:
    """What to do about labels that are no class's number."""
    if low < 0 and high < 0:
        return (
            f"Labels of {low} mean that they are withheld: name a split that has some, such as"
            " `splits: {train: train, test: validation}`."
        )
    if low < 0:
        return f"Leave images without a label out, or write null in place of {low}: they are counted as such."
    if low == 1 and high == n_classes:
        return "They start at 1: subtract 1 from each, so that they start at 0."
    return "Correct the labels, or complete `classnames`."


def what(dataset: Dataset, split: str, chunks: list[sources.Chunk]) -> dict:
    """The WHAT of an index: the dataset's entry, the state of its files, and the code that reads and numbers them.

    Prompts are left out: they are in the classifiers' addresses, and no image need be read again for them.
    """
    entry = {key: value for key, value in plain(dataset).items() if key not in TEXTS}
    layout = sources.FORMATS[dataset.format]
    return {
        "dataset": entry,
        "split": split,
        "listing": sources.digest(chunks),
        "code": code(layout.scan, sources.tabulate, sources.number_repeats),
    }


def evenly(table: pa.Table, limit: int) -> pa.Table:
    """At most `limit` rows, evenly over labels and chosen by image id, in the table's own order."""
    frame = table.select(["image_id", "label"]).to_pandas()
    frame = frame.sort_values("image_id", kind="stable")
    frame["rank"] = frame.groupby("label", dropna=False).cumcount()
    chosen = frame.sort_values(["rank", "image_id"], kind="stable").index[:limit]
    return table.take(sorted(chosen))


def reader(compute: Compute) -> Mapper:
    """Threads for a few chunks, Ray tasks over the cluster for many."""

    def read(function: Callable, items: list[tuple]) -> Iterator[Any]:
        if len(items) <= IN_PROCESS:
            return in_threads(function, items)
        from clipray.steps.cluster import connect, tasks

        connect(compute, verbose=False)
        done = dict(tasks(function, items, compute.decode_cpus, 0, compute.max_retries))
        return (done[position] for position in range(len(items)))

    return read


def in_threads(function: Callable, items: list[tuple]) -> Iterator[Any]:
    """Results in order, computed by threads of this process: for work that mostly waits."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        yield from pool.map(lambda item: function(*item), items)


def _remarks(
    split: str, table: pa.Table, left_out: dict[str, int], n_classes: int
) -> Iterator[str]:
    """What a person should know of a split that can be used."""
    if left_out:
        yield f"{split} split: left out as no image: {counted(left_out)}"
    bad = table["error"].length() - table["error"].null_count
    if bad:
        yield f"{split} split: {bad} of {len(table)} rows cannot be used, such as {_first_reason(table)}"
    good = table.filter(pc.is_null(table["error"]))
    missing = n_classes - pc.count_distinct(good["label"]).as_py()
    if missing:
        yield f"{split} split: {missing} of {n_classes} classes have no image"


def few_images(labels: Sequence[int], n_classes: int, shots: Sequence[int]) -> Iterator[str]:
    """What to say of classes of a train split with fewer images than shots: they give what they have.

    Args:
        labels: of the images that can be drawn.
    """
    short = short_classes(np.array(labels, dtype=np.int64), n_classes, sorted(shots))
    if short:
        parts = [f"{number} at {k} shot{'s' if k > 1 else ''}" for k, number in short.items()]
        yield (
            f"train split: of {n_classes} classes some have fewer images than shots, and give what they have: "
            f"{', '.join(parts)}"
        )


def drawable(train: Index, test: Index) -> list[int]:
    """The labels of a train split's images that can be used and do not stand in the test split too."""
    table = train.table.filter(apart(_ids(train), _ids(test)))
    good = table.filter(pc.and_(pc.is_null(table["error"]), pc.is_valid(table["label"])))
    return good["label"].to_pylist()


def _ids(index: Index) -> list[str]:
    return index.table["image_id"].to_pylist()


def counted(kinds: dict[str, int]) -> str:
    """Kinds with their counts, in words."""
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def _reasons(table: pa.Table) -> dict[str, int]:
    """How often the most frequent reasons of error rows stand in an index."""
    errors = (error for error in table["error"].to_pylist() if error)
    return dict(Counter(errors).most_common(REASONS))


def _first_reason(table: pa.Table) -> str:
    bad = table.filter(pc.is_valid(table["error"])).slice(0, 1).to_pylist()[0]
    return f"{bad['key']}: {bad['error']}"
