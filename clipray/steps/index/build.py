"""Which images a split holds: every image hashed and numbered once, by workers, before any model is loaded."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from clipray import sources
from clipray.artefacts import index as parts
from clipray.artefacts.index import Counts, Index
from clipray.config import Compute, Dataset
from clipray.errors import ConfigError
from clipray.fingerprint import code, plain
from clipray.numerics import draws
from clipray.store import Store

Mapper = Callable[[Callable, list[tuple]], Iterable[Any]]
IN_PROCESS = 8  # parts that are not worth starting Ray for
TEXTS = ("classnames", "templates")  # of a dataset: no image or label depends on them


def index(
    store: Store,
    dataset: Dataset,
    split: str,
    data_root: str,
    mapper: Mapper,
    limit: int = 0,
    names: Sequence[str] | None = None,
    labelled: bool = True,
) -> Index:
    """The index of a split, looked up in the store if its source has not changed, else made and kept there.

    Args:
        store: where it is kept.
        dataset: the catalogue's entry.
        split: "train" or "test".
        data_root: what relative URIs lie below.
        mapper: how the parts are made: `in_threads`, or Ray tasks.
        limit: images to take of it, evenly over classes; 0 for all.
        names: the class names, where they are known already.
        labelled: whether images without a label are of no use; else labels are taken as they are.

    Raises:
        ConfigError: no image can be read, or a label is of no class.
    """
    if labelled and names is None:
        names = sources.classnames(dataset, data_root)
    chunks = sources.listing(dataset, split, data_root)
    made_of = what(dataset, split, chunks)
    if not labelled:
        chunks = sources.lenient(chunks)
        made_of |= {"labels": "not needed"}
    address = store.address("index", dataset.name, split, what=made_of)
    location = parts.location_name(sources.location(dataset, data_root))
    manifest = store.manifest(address)
    if manifest is None:
        manifest = _make(store, address, made_of, location, chunks, mapper)
    elif location not in manifest["locations"]:
        manifest = _also_at(store, address, made_of, location, chunks, manifest)
    counts = Counts(**manifest["counts"])
    remarks: tuple[str, ...] = ()
    if labelled:
        check(dataset.name, split, counts, len(names))
        remarks = tuple(_remarks(split, counts, len(names)))
    found = Index(
        dataset=dataset.name,
        split=split,
        address=address,
        chunks_at=address,
        location=location,
        parts=tuple(manifest["parts"]),
        chunk_parts=tuple(range(len(manifest["parts"]))),
        content=manifest["content"],
        remarks=remarks,
    )
    return limited(store, found, limit, mapper) if 0 < limit < len(found) else found


def _make(
    store: Store,
    address: str,
    made_of: dict,
    location: str,
    chunks: list[sources.Chunk],
    mapper: Mapper,
) -> dict:
    """Make all parts of an index, number the repeats over them, and declare it complete; its manifest."""
    items = [
        (store, address, part, location, group) for part, group in enumerate(parts.groups(chunks))
    ]
    counts = [Counts(*one) for one in mapper(parts.write_part, items)]
    for _ in mapper(parts.number_repeats, [(store, address, len(counts))]):
        pass
    facts = _facts(counts) | {"locations": [location], "chunks": len(chunks)}
    store.finish(address, made_of, **facts)
    return store.manifest(address)


def _facts(counts: Sequence[Counts]) -> dict[str, Any]:
    """What the manifest of an index tells: the rows of each part, and what they hold together."""
    whole = parts.merged(counts)
    return {
        "images": whole.rows,
        "parts": [one.rows for one in counts],
        "content": f"{whole.content:032x}",
        "counts": whole._asdict(),
        "left_out": whole.left_out,
        "unreadable": whole.reasons,
    }


def _also_at(
    store: Store,
    address: str,
    made_of: dict,
    location: str,
    chunks: list[sources.Chunk],
    manifest: dict,
) -> dict:
    """The manifest of an index whose files are seen at another place than before: the chunks are written for it."""
    for part, group in enumerate(parts.groups(chunks)):
        parts.write_chunks(store, address, part, location, group)
    known = ("images", "parts", "content", "counts", "left_out", "unreadable", "chunks")
    facts = {key: manifest[key] for key in known}
    store.finish(address, made_of, **facts, locations=[*manifest["locations"], location])
    return store.manifest(address)


def limited(store: Store, whole: Index, limit: int, mapper: Mapper) -> Index:
    """An index of some images of another, evenly over classes; it is an artefact of its own."""
    made_of = {"of": whole.address, "limit": limit, "code": code(evenly)}
    address = store.address("index", whole.dataset, whole.split, what=made_of)
    manifest = store.manifest(address)
    if manifest is None:
        (counts,) = mapper(write_limited, [(store, whole, address, limit)])
        store.finish(address, made_of, **_facts([Counts(*one) for one in counts]))
        manifest = store.manifest(address)
    return replace(
        whole, address=address, parts=tuple(manifest["parts"]), content=manifest["content"]
    )


def write_limited(store: Store, whole: Index, address: str, limit: int) -> list[Counts]:
    """Write the chosen rows of each part; a part that none is chosen of stays, empty."""
    chosen = evenly(whole.table(store, ["image_id", "label"]), limit)["image_id"]
    return parts.write_chosen(store, whole, address, chosen)


def check(dataset: str, split: str, counts: Counts, n_classes: int) -> None:
    """Raise `ConfigError` unless some image can be read and each label is the number of a class.

    Args:
        counts: of the split's index.
        n_classes: C; labels are 0 to C - 1.
    """
    where = f"dataset {dataset}: its {split} split"
    if not counts.rows:
        raise ConfigError(f"{where} holds no image.\n  Correct `uri` or `splits`.")
    good = counts.rows - counts.bad
    if not good:
        raise ConfigError(
            f"{where} holds no image that can be used: {counts.first_bad}.\n"
            "  Correct the files, or what names them."
        )
    labels = _labels(counts)
    low, high = min(labels), max(labels)
    if low >= 0 and high < n_classes:
        return
    outside = sum(number for label, number in labels.items() if not 0 <= label < n_classes)
    raise ConfigError(
        f"{where} has labels from {low} to {high}, but there are {n_classes} class names (labels 0 to {n_classes - 1});"
        f" {outside} of {good} images have no class.\n  {label_remedy(low, high, n_classes)}"
    )


def _labels(counts: Counts) -> dict[int, int]:
    """Images that can be used, by label; JSON has made the labels text."""
    return {int(label): number for label, number in counts.labels.items()}


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
        "code": code(layout.scan, sources.tabulate, sources.numbered, parts.content_sum),
    }


def evenly(table: pa.Table, limit: int) -> pa.Table:
    """At most `limit` rows, evenly over labels and chosen by image id, in the table's own order."""
    frame = table.select(["image_id", "label"]).to_pandas()
    frame = frame.sort_values("image_id", kind="stable")
    frame["rank"] = frame.groupby("label", dropna=False).cumcount()
    chosen = frame.sort_values(["rank", "image_id"], kind="stable").index[:limit]
    return table.take(sorted(chosen))


def reader(compute: Compute) -> Mapper:
    """Threads for a few parts, Ray tasks over the cluster for many; once Ray has started, it does all."""
    starting, started = threading.Lock(), threading.Event()

    def read(function: Callable, items: list[tuple]) -> Iterator[Any]:
        if len(items) <= IN_PROCESS and not started.is_set():
            return in_threads(function, items)
        from clipray.steps.cluster import connect, tasks

        with starting:
            connect(compute, verbose=False)
            started.set()
        done = dict(tasks(function, items, compute.decode_cpus, 0, compute.max_retries))
        return (done[position] for position in range(len(items)))

    return read


def in_threads(function: Callable, items: list[tuple]) -> Iterator[Any]:
    """Results in order, computed by threads of this process: for work that mostly waits."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        yield from pool.map(lambda item: function(*item), items)


def _remarks(split: str, counts: Counts, n_classes: int) -> Iterator[str]:
    """What a person should know of a split that can be used."""
    if counts.left_out:
        yield f"{split} split: left out as no image: {counted(counts.left_out)}"
    if counts.bad:
        yield f"{split} split: {counts.bad} of {counts.rows} rows cannot be used, such as {counts.first_bad}"
    missing = n_classes - len(counts.labels)
    if missing:
        yield f"{split} split: {missing} of {n_classes} classes have no image"


def few_images(labels: Mapping[int, int], n_classes: int, shots: Sequence[int]) -> Iterator[str]:
    """What to say of classes of a train split with fewer images than shots: they give what they have.

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
    """By label, how many of a train split's images can be used and do not stand in the test split too.

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


def counted(kinds: dict[str, int]) -> str:
    """Kinds with their counts, in words."""
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())
