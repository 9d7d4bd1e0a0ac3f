"""What of a collection is still to be labelled by a fused model: the driver's part, in counts and shard names.

A shard of images is one file of predictions with a name of its own, written whole; a job that is stopped goes on with
the shards that lack one.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pyarrow as pa

from clipray import catalog, fingerprint, sources
from clipray.artefacts import predictions
from clipray.artefacts.bundles import bundles
from clipray.artefacts.given import Given
from clipray.artefacts.index import Index, Shard, rows_of, shard_rows
from clipray.config import Compute, Dataset, names
from clipray.config.predict import Predict
from clipray.errors import ConfigError, ErrorBudget
from clipray.sources import storage
from clipray.steps import identify
from clipray.steps.indices import listed, source
from clipray.steps.mappers import reader
from clipray.steps.predict import collection
from clipray.store import Store

LISTS = (".txt", ".lst", ".list", ".parquet")
REFUSED = (".csv", ".tsv", ".json", ".jsonl")


@dataclass(frozen=True)
class Work:
    """A collection, a model, and the shards that lack predictions."""

    store: Store
    dataset: Dataset
    index: Index
    address: str
    what: dict
    todo: tuple[str, ...]
    targets: bool  # whether labels are known, and are of the model's classes
    learns: bool  # whether the collection teaches the model first
    remarks: tuple[str, ...] = ()
    given: Given | None = None  # where it is vectors, and no images

    def shards(self) -> Iterator[Shard]:
        """Every shard, in order."""
        return self.index.shards(shard_rows(self.index))

    @property
    def images(self) -> int:
        """Images in shards with something to do."""
        wanted = set(self.todo)
        return sum(shard.rows for shard in self.shards() if shard.name in wanted)


def plan(wanted: Predict, about: dict[str, Any], digest: str, look: Callable[..., Given]) -> Work:
    """Index the collection, and find out which shards lack predictions.

    Args:
        about: the model's `fused_model.json`. digest: of the whole model.
        look: checks given vectors, as `embed.given.plan` does.

    Raises:
        ConfigError: there are no images, or their class names are the model's in another order.
    """
    store = Store(wanted.workspace)
    dataset, split = images_of(wanted)
    targets, remarks = _targets(wanted, dataset, about["classnames"])
    given = None
    if dataset.given:
        given = _vectors(store, wanted, dataset, about, look)
        found = given.works[split].index
    else:
        _refuse_images(about)
        mapper = reader(wanted.compute)
        files = source(store, dataset, split, wanted.data_root, labelled=False)
        found = listed(files, mapper, wanted.limit)
    if not len(found):
        raise ConfigError(f"images: {wanted.images} holds no image")
    if targets and (odd := outside(_labels(store, found, given), len(about["classnames"]))):
        targets, remarks = False, [odd]
    what = predictions.what(digest, found, targets)
    learns = wanted.learn and about["cascade"] is None and collection.learns(about)
    if given:
        what["vectors"] = given.works[split].addresses
    if learns:
        what["taught"] = fingerprint.code(collection.LEARN, collection.keep)
    address = predictions.address(store, about["name"], dataset.name, what)
    there = set() if store.manifest(address) else store.names(address)
    todo = ()
    if store.manifest(address) is None:
        names_of = (shard.name for shard in found.shards(shard_rows(found)))
        todo = tuple(name for name in names_of if name not in there)
    return Work(store, dataset, found, address, what, todo, targets, learns, tuple(remarks), given)


def _labels(store: Store, found: Index, given: Given | None) -> list[int]:
    """The labels that stand in a collection, from the counts of its index."""
    place = found.address if given is None else found.chunks_at
    counts = store.manifest(place)["counts"]
    own = counts if given is None else counts[found.split]
    return sorted(int(label) for label in own["labels"])


def _vectors(
    store: Store,
    wanted: Predict,
    dataset: Dataset,
    about: dict[str, Any],
    look: Callable[..., Given],
) -> Given:
    """Given vectors of the model's backbones, checked.

    Raises:
        ConfigError: the model runs backbones itself, or one of its backbones has no vectors there.
    """
    names_of = [one["entry"]["name"] for one in about["backbones"]]
    if not _knows_vectors_only(about):
        raise ConfigError(
            f"images: {dataset.name} has vectors, and the model {about['name']} makes its own: give it images"
        )
    if lacking := [name for name in names_of if name not in dataset.backbones]:
        raise ConfigError(f"images: {dataset.name} has no vectors of the backbone {lacking[0]}")
    like = SimpleNamespace(
        data_root=wanted.data_root, limit=wanted.limit, precision=about["precision"]
    )
    # the model has class vectors of its own; those of the collection are not looked at
    towers = catalog.text_towers(dataset, names_of)
    towers = {name: towers.get(name) for name in names_of}
    prompts = {"classnames": _names(dataset, wanted.data_root), "templates": []}
    return look(store, dataset, towers, like, prompts)


def _refuse_images(about: dict[str, Any]) -> None:
    if _knows_vectors_only(about):
        raise ConfigError(
            f"images: the model {about['name']} was fitted on given vectors and knows no backbone that sees images: "
            "give it a data set of given vectors"
        )


def _knows_vectors_only(about: dict[str, Any]) -> bool:
    return any(set(one["entry"]) == {"name"} for one in about["backbones"])


def only(work: Work, names: Collection[str]) -> Work:
    """Return the same with only these shards to do."""
    return replace(work, todo=tuple(sorted(names)))


def images_of(wanted: Predict) -> tuple[Dataset, str]:
    """What `images` means: a data set and its split, or images without labels.

    Raises:
        ConfigError: there is nothing of that name.
    """
    text = wanted.images
    lower = text.lower()
    name = names.plain(text.rstrip("/").rpartition("/")[2].rpartition(".")[0] or text, "images")
    if lower.endswith(LISTS):
        return _unlabelled(name, "listed", text), "test"
    if lower.endswith(REFUSED):
        raise ConfigError(
            f"images: {text}: lists are text with one path or URI a line (.txt), or Parquet with a column of them"
        )
    folder = storage.resolve(text, wanted.data_root)
    there = storage.entries(folder)
    known = catalog.detect(text, wanted.data_root) if there else None
    if there and known is None:
        name = names.plain(text.rstrip("/").rpartition("/")[2], "images")
        parquet = any(each.lower().endswith(".parquet") for each in there)
        return _unlabelled(name, "listed" if parquet else "flat", text), "test"
    if not there and "/" in text and not lower.endswith(catalog.YAML):
        raise ConfigError(
            f"images: {storage.shown(folder)} is no folder, or an empty one. Give a folder of images, a data set, a "
            "text file of paths, or Parquet"
        )
    (dataset,) = [known] if known else catalog.datasets([text], wanted.data_root)[:1]
    if wanted.split not in dataset.splits:
        raise ConfigError(
            f"split: {dataset.name} has no {wanted.split} split; it has: {', '.join(dataset.splits)}"
        )
    if dataset.format == "parquet" and "labels" not in dataset.options:
        options = {key: value for key, value in dataset.options.items() if key == "image"}
        dataset = dataset.model_copy(update={"format": "listed", "options": options})
    return dataset, wanted.split


def _unlabelled(name: str, layout: str, uri: str) -> Dataset:
    return Dataset(name=name, format=layout, uri=uri, splits={"test": "."}, classnames=())


def _targets(wanted: Predict, dataset: Dataset, classnames: list[str]) -> tuple[bool, list[str]]:
    """Tell whether the images' labels are the numbers of the model's classes, and what to say where they are not.

    Raises:
        ConfigError: they are its classes in another order, so that each accuracy would be of swapped names.
    """
    if wanted.labels == "ignore" or not dataset.classnames:
        return False, []
    try:
        given = _names(dataset, wanted.data_root)
    except ConfigError:
        return False, ["the images have no class names, so their labels are not compared"]
    if given == classnames:
        return True, []
    if sorted(given) == sorted(classnames):
        raise ConfigError(
            f"images: {dataset.name} has the model's classes in another order ({', '.join(given[:4])}, … and "
            f"{', '.join(classnames[:4])}, …): put its class names in the model's order, or write `labels: ignore`"
        )
    return False, [
        f"{dataset.name} has other class names than the model, so its labels are not compared"
    ]


def outside(labels: Sequence[int], classes: int) -> str:
    """Say which labels are not the number of a class, because then the others may be off by one; "" where all are.

    >>> outside([1, 2], 2)
    "the images' labels are 1 to 2, the model's classes 0 to 1, so they are not compared"
    >>> outside([0, 1], 2)
    ''
    """
    if not labels or (labels[0] >= 0 and labels[-1] < classes):
        return ""
    low, high = labels[0], labels[-1]
    return f"the images' labels are {low} to {high}, the model's classes 0 to {classes - 1}, so they are not compared"


def _names(dataset: Dataset, data_root: str) -> list[str]:
    if dataset.format == "listed":
        dataset = dataset.model_copy(update={"format": "parquet"})
    return sources.classnames(dataset, data_root)


def finish(work: Work, budget: float, **facts: Any) -> dict[str, Any]:
    """Declare the predictions complete, and count them; all shards count, whichever run wrote them.

    Args:
        budget: `compute.error_budget`: a fraction of the images below 1, else a count.
        facts: what else the manifest tells.

    Returns:
        `images`, `labelled`, `failed`, and `scored`, `accuracy` where labels are known.

    Raises:
        ErrorBudget: too many images have no label; the shards are kept.
    """
    done = work.store.manifest(work.address)
    if done is not None:
        return done["counts"]
    counts = {"images": 0, "labelled": 0, "failed": 0, "scored": 0, "right": 0, "gflops": 0.0}
    columns = ["image_id", "class", "target", "gflops", "error"]
    for shard in work.shards():
        table = work.store.read_table(f"{work.address}/{shard.name}", columns)
        rows = rows_of(work.store, work.index.place, shard.part, shard.start, shard.rows)
        if table["image_id"].to_pylist() != rows["image_id"].to_pylist():
            raise ConfigError(
                f"{work.store.place(work.address)}/{shard.name} holds other images than its index: remove that folder "
                "and run again"
            )
        _count(counts, table)
    told = _told(counts)
    allowed = budget * counts["images"] if budget < 1 else budget
    if counts["failed"] > allowed:
        raise ErrorBudget(
            f"{counts['failed']} of {counts['images']} images have no label, more than the error budget allows "
            f"({allowed:g}); their reasons are in {work.store.place(work.address)}. Mend the images, or raise "
            "compute.error_budget (a fraction below 1, or a count)"
        )
    shards = [shard.name for shard in work.shards()]
    work.store.finish(work.address, work.what, counts=told, shards=shards, **facts)
    return told


def _count(counts: dict[str, Any], table: pa.Table) -> None:
    """Add a shard to the counts."""
    good = table.filter(table["error"].is_null())
    known = good.filter(good["target"].is_valid())
    counts["images"] += len(table)
    counts["labelled"] += len(good)
    counts["failed"] += len(table) - len(good)
    counts["scored"] += len(known)
    right = pa.compute.equal(known["class"], known["target"].cast(pa.int32()))
    counts["right"] += pa.compute.sum(right).as_py() or 0
    counts["gflops"] += pa.compute.sum(good["gflops"]).as_py() or 0.0


def _told(counts: dict[str, Any]) -> dict[str, Any]:
    told = {key: counts[key] for key in ("images", "labelled", "failed")}
    if counts["gflops"]:
        told["gflops_per_image"] = counts["gflops"] / counts["labelled"]
    if counts["scored"]:
        told |= {"scored": counts["scored"], "accuracy": counts["right"] / counts["scored"]}
    return told


def identified(work: Work, compute: Compute) -> Work:
    """Return the same with the ids of its images, once these have been read."""
    if not work.index.listed:
        return work
    found, _ = identify.embedded(work.store, work.index, reader(compute), others=[work.address])
    return replace(work, index=found)


def items(work: Work) -> Iterator[dict[str, Any]]:
    """Yield the shards that lack predictions, or several of the same row groups; a worker looks up their images."""
    wanted = set(work.todo)
    lacking = (shard for shard in work.shards() if shard.name in wanted)
    for shards in bundles(work.index, lacking):
        yield {"index": work.index.place, "shards": [tuple(shard) for shard in shards]}
