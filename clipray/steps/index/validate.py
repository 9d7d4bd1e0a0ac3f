"""Whether a campaign's datasets can be used, seen from a sample of their images before anything is computed."""

import itertools
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from clipray import catalog, images, sources
from clipray.artefacts.usable import label_remedy
from clipray.config import Campaign, Dataset
from clipray.errors import ConfigError
from clipray.shots import ALL
from clipray.steps import fits
from clipray.steps.identify import counted
from clipray.steps.index.drawable import few_images

SPREAD = 16  # files that a sample is spread over at least, if there are as many
LISTED = 5  # corrupt files and repeats named in a report; all are counted


def validate(
    campaign: Campaign, datasets: Sequence[Dataset], sample: int
) -> Iterator[dict[str, Any]]:
    """Yield one report per dataset, in order.

    Args:
        campaign: for `data_root`, `shots` and the error budget.
        datasets: the catalogue's entries.
        sample: images to read per split, spread over its files; 0 for all.

    Yields:
        `dataset`, `format`, `classes`, `templates`, `splits` (see `_split`), `repeats` (images that stand in train and
        test: `count` among those read, and some `keys`), `errors` (why it cannot be used) and `warnings`.
    """
    for dataset in datasets:
        yield _dataset(campaign, dataset, sample)


def _dataset(campaign: Campaign, dataset: Dataset, sample: int) -> dict[str, Any]:
    report: dict[str, Any] = {
        "dataset": dataset.name,
        "format": dataset.format,
        "splits": {},
        "repeats": None,
    }
    report |= {"classes": None, "templates": None, "errors": [], "warnings": []}
    if dataset.given:
        return _given(campaign, dataset, report)
    try:
        # a set that is not there at all is told before its missing class names
        for split in dataset.splits:
            sources.listing(dataset, split, campaign.data_root)
        names = sources.classnames(dataset, campaign.data_root)
        report |= {
            "classes": len(names),
            "templates": len(sources.templates(dataset, campaign.data_root)),
        }
        report["warnings"] += [
            f"class name {name!r} stands twice" for name, n in Counter(names).items() if n > 1
        ]
        report["warnings"] += sources.remarks(dataset, campaign.data_root)
        hashes, labels = {}, {}
        for split in sorted(dataset.splits):
            report["splits"][split], hashes[split], labels[split] = _split(
                campaign, dataset, split, len(names), sample
            )
            _judge(campaign, report, split)
    except (ConfigError, OSError) as error:
        report["errors"].append(str(error).removeprefix(f"dataset {dataset.name}: "))
        return report
    if "train" in hashes:
        both = sorted(set(hashes["train"]) & set(hashes["test"]))
        keys = [f"{hashes['train'][image]} = {hashes['test'][image]}" for image in both[:LISTED]]
        report["repeats"] = {"count": len(both), "keys": keys}
        if both:
            report["warnings"].append(f"{len(both)} images stand in train and in test ({keys[0]})")
        own = [label for image, label in labels["train"] if image not in hashes["test"]]
        _judge_shots(campaign, report, own)
    elif campaign.shots:
        report["warnings"].append("no train split: label-free methods only")
    return report


def _given(campaign: Campaign, dataset: Dataset, report: dict[str, Any]) -> dict[str, Any]:
    """Report on given vectors; all rows are looked at, because that takes seconds."""
    try:
        names = sources.classnames(dataset, campaign.data_root)
        uri = sources.location(dataset, campaign.data_root)
        report |= {"classes": len(names), "templates": 0}
        tables = fits.splits(dataset, uri, names)
        for split, table in tables.items():
            report["splits"][split] = _given_split(table, len(names))
            _judge(campaign, report, split)
        if not report["errors"]:
            own = catalog.own_backbones(dataset, campaign.backbones)
            if catalog.text_towers(dataset, own):
                report["templates"] = len(sources.templates(dataset, campaign.data_root))
            for backbone in own:
                fits.facts(dataset, uri, backbone, names)
    except (ConfigError, OSError) as error:
        report["errors"].append(str(error).removeprefix(f"dataset {dataset.name}: "))
        return report
    if "train" in tables:
        ids = [set(table["image_id"].to_pylist()) for table in tables.values()]
        report["repeats"] = {"count": len(ids[0] & ids[1]), "keys": []}
        _judge_shots(campaign, report, tables["train"]["label"].drop_null().to_pylist())
    return report


def _given_split(table: pa.Table, n_classes: int) -> dict[str, Any]:
    """Return what `_split` tells, of the rows of given vectors."""
    bad = table.filter(table["error"].is_valid())["key"].to_pylist()
    labels = Counter(table["label"].drop_null().to_pylist())
    inside = [count for label, count in labels.items() if 0 <= label < n_classes]
    return {
        "files": 0,
        "images": len(table),
        "read": len(table),
        "corrupt": len(bad),
        "corrupt_keys": [f"{key}: {fits.NO_LABEL}" for key in bad[:LISTED]],
        "label_range": [min(labels), max(labels)] if labels else None,
        "labels_out_of_range": labels.total() - sum(inside),
        "per_class": [min(inside), max(inside)] if inside else None,
        "classes_seen": len(inside),
        "repeats": 0,
        "sizes": None,
        "left_out": {},
        "whole": True,
    }


def _split(
    campaign: Campaign, dataset: Dataset, split: str, n_classes: int, sample: int
) -> tuple[dict[str, Any], dict[str, str], list[tuple[str, int]]]:
    """Return what a split holds, its images' hashes with a key each, and the hash and label of every image.

    Returns:
        `files` (chunks), `images` (None where only reading all would tell), `read`, `corrupt` (count), `corrupt_keys`,
        `label_range`, `labels_out_of_range`, `per_class` (least and most images read of a class), `classes_seen`,
        `repeats` (equal images within the split), `sizes` (least and most pixels of a short side), `left_out` (what
        lies there and is no sample: counts by kind, in what was read).
    """
    chunks = sources.listing(dataset, split, campaign.data_root)
    counts = [chunk.count for chunk in chunks]
    total = None if None in counts else sum(counts)
    labels: Counter[int] = Counter()
    pairs: list[tuple[str, int]] = []
    hashes: dict[str, str] = {}
    corrupt, left = [], []
    left_out: Counter[str] = Counter()
    sides: list[int] = []
    read = repeats = 0
    for image_id, taken in _sample(chunks, sample, left, left_out):
        read += 1
        try:
            if taken.error:
                raise images.ImageError(taken.error)
            sides.append(min(images.decode(taken.data).size))
        except images.ImageError as error:
            corrupt.append(f"{taken.key}: {error}")
            continue
        labels[taken.label] += 1
        pairs.append((image_id, taken.label))
        repeats += image_id in hashes
        hashes.setdefault(image_id, taken.key)
    report = {
        "files": len(chunks),
        "images": read if total is None and not left else total,
        "read": read,
        "corrupt": len(corrupt),
        "corrupt_keys": corrupt[:LISTED],
        "label_range": [min(labels), max(labels)] if labels else None,
        "labels_out_of_range": sum(n for label, n in labels.items() if not 0 <= label < n_classes),
        "per_class": [min(labels[c] for c in range(n_classes)), max(labels.values())]
        if labels
        else None,
        "classes_seen": sum(0 <= label < n_classes for label in labels),
        "repeats": repeats,
        "sizes": [min(sides), max(sides)] if sides else None,
        "whole": not left,
        "left_out": dict(sorted(left_out.items())),
    }
    return report, hashes, pairs


def _sample(
    chunks: Sequence[sources.Chunk], sample: int, left: list[str], left_out: Counter
) -> Iterator[tuple[str, sources.Sample]]:
    """(hash, sample) of about `sample` images drawn from evenly spread chunks, or of all for 0; `left` gets the chunks
    that were not read whole, `left_out` the counts of what is no sample."""
    chosen = chunks[:: max(1, len(chunks) // SPREAD)] if sample else chunks
    left += [chunk.uri for chunk in chunks[len(chosen) :]]
    for position, chunk in enumerate(chosen):
        share = -(-sample // (len(chosen) - position))
        taken = 0
        for each in (
            _part(chunk, share, left, left_out) if sample else sources.scan(chunk, left_out)
        ):
            yield sources.image_id(each.data or b""), each
            taken += 1
        sample -= min(taken, sample)


def _part(
    chunk: sources.Chunk, share: int, left: list[str], left_out: Counter
) -> Iterator[sources.Sample]:
    """Draw samples of a chunk by a fixed seed; of a tar, whose length is not known beforehand, take the first ones."""
    if chunk.count is None:
        found = sources.scan(chunk, left_out)
        yield from itertools.islice(found, share)
        left += [chunk.uri for _ in itertools.islice(found, 1)]
        return
    rows = set(random.Random(0).sample(range(chunk.count), min(share, chunk.count)))
    left += [chunk.uri] if len(rows) < chunk.count else []
    if chunk.files:  # read those files only
        yield from sources.scan(
            chunk._replace(files=[chunk.files[row] for row in sorted(rows)], count=len(rows)),
            left_out,
        )
    else:
        yield from (each for each in sources.scan(chunk, left_out) if each.row in rows)


def _judge(campaign: Campaign, report: dict[str, Any], split: str) -> None:
    """Add what is wrong with a split to the report's errors and warnings."""
    found, name = report["splits"][split], f"{split} split"
    budget = campaign.compute.error_budget
    allowed = budget * found["read"] if budget < 1 else budget
    if not found["read"]:
        report["errors"].append(f"{name}: it holds no image")
        return
    if not found["label_range"]:
        report["errors"].append(
            f"{name}: no image of {found['read']} can be used: {found['corrupt_keys'][0]}"
        )
        return
    if found["corrupt"] > allowed:
        report["errors"].append(
            f"{name}: {found['corrupt']} of {found['read']} images cannot be read"
        )
    elif found["corrupt"]:
        report["warnings"].append(
            f"{name}: {found['corrupt']} of {found['read']} images cannot be read"
        )
    if found["corrupt"]:
        report["warnings"] += [f"{name}: {text}" for text in found["corrupt_keys"]]
    if found["labels_out_of_range"]:
        low, high = found["label_range"]
        report["errors"].append(
            f"{name}: labels from {low} to {high}, but {report['classes']} class names (0 to {report['classes'] - 1})."
            f" {label_remedy(low, high, report['classes'])}"
        )
    if found["left_out"]:
        report["warnings"].append(f"{name}: left out as no image: {counted(found['left_out'])}")
    missing = report["classes"] - found["classes_seen"]
    if found["whole"] and missing > 0:
        report["warnings"].append(f"{name}: {missing} of {report['classes']} classes have no image")
    if found["repeats"]:
        report["warnings"].append(f"{name}: {found['repeats']} images repeat others of the split")


def _judge_shots(campaign: Campaign, report: dict[str, Any], labels: list[int]) -> None:
    """Say which numbers of shots some classes of the train split cannot give.

    Args:
        labels: of the images that can be drawn.
    """
    if report["splits"]["train"]["whole"]:
        report["warnings"] += few_images(Counter(labels), report["classes"], campaign.shots)
    elif numbers := [number for number in campaign.shots if number != ALL]:
        report["warnings"].append(
            f"train split: a sample does not tell whether each class has {max(numbers)} images for as many "
            "shots; --sample 0 reads all, and the plan of jobs.run says it"
        )


def rows(report: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """A report as table rows, one per split: dataset, split, images, read, corrupt, classes seen, images of a class,
    label range, pixels of the short side, images in both splits."""

    def span(pair: Sequence[int] | None) -> str:
        return (
            "-" if pair is None else f"{pair[0]}-{pair[1]}" if pair[0] != pair[1] else str(pair[0])
        )

    both = "-" if report["repeats"] is None else str(report["repeats"]["count"])
    for split, found in report["splits"].items():
        counted = "?" if found["images"] is None else str(found["images"])
        classes = f"{found['classes_seen']}/{report['classes']}"
        spans = (span(found["per_class"]), span(found["label_range"]), span(found["sizes"]))
        yield (
            report["dataset"],
            split,
            counted,
            str(found["read"]),
            str(found["corrupt"]),
            classes,
            *spans,
            both,
        )
    if not report["splits"]:
        yield (report["dataset"], *["-"] * 9)
