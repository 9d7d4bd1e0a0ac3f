"""Given embeddings and logits → the artefacts that embedding images would have made, so that all later steps are alike.

All is checked before anything is written: what does not fit is a `ConfigError`, and single rows that cannot be used are
rows with an error. Logits become vectors on a sphere whose cosines with the unit vectors of the classes, times the
sphere's radius, are those logits: so they need no step of their own, and methods that look at embeddings are left out.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa

from clipray import fingerprint, sources
from clipray.artefacts import classifiers, embeddings, usable
from clipray.artefacts import index as parts
from clipray.artefacts.embeddings import Work, embedded
from clipray.artefacts.given import Given
from clipray.artefacts.index import Index
from clipray.config import Backbone, Campaign, Dataset, Fuser, Head
from clipray.encoding import ALL_ZERO
from clipray.errors import ConfigError
from clipray.numerics import declared
from clipray.sources import given as files
from clipray.steps import checks, fits
from clipray.store import Store

FOLDER = "given"
PART_ROWS = 65536  # rows of an index that lie in one file


def plan(
    store: Store,
    dataset: Dataset,
    towers: dict[str, Backbone | None],
    campaign: Campaign,
    prompts: dict[str, list[str]],
) -> Given:
    """Check a data set's files unless they have been checked before, and find out what is to be written.

    Args:
        towers: the backbones of it that are wanted, each with the model that makes its class vectors, if one does.
        prompts: class names and templates.

    Raises:
        ConfigError: files that do not fit each other.
    """
    uri = sources.location(dataset, campaign.data_root)
    try:
        return _plan(store, dataset, towers, campaign, prompts, uri)
    except ConfigError as error:
        if str(error).startswith("dataset "):
            raise
        raise ConfigError(f"dataset {dataset.name}: {error}") from error


def _plan(
    store: Store,
    dataset: Dataset,
    towers: dict[str, Backbone | None],
    campaign: Campaign,
    prompts: dict[str, list[str]],
    uri: str,
) -> Given:
    classnames = prompts["classnames"]
    indices = _indices(store, dataset, campaign, classnames, uri)
    facts = {}
    for name in towers:
        what = fits.what(dataset, uri, name, classnames)
        place = store.address(FOLDER, dataset.name, name, what=what)
        if store.manifest(place) is None:
            store.finish(place, what, facts=fits.facts(dataset, uri, name, classnames))
        facts[name] = store.manifest(place)["facts"]
    whats = {
        name: {
            "given": facts[name]["classes"],
            "names": classnames,
            "format": dataset.format,
            "code": fingerprint.code(write),
        }
        for name, tower in towers.items()
        if tower is None
    }
    made = {name: tower for name, tower in towers.items() if tower}
    places = {
        name: classifiers.address(store, made[name], campaign.precision, dataset.name, prompts)
        if name in made
        else store.address("classifiers", dataset.name, name, what=whats[name])
        for name in towers
    }
    works = {split: _work(store, dataset, split, index, facts) for split, index in indices.items()}
    return Given(dataset, uri, classnames, facts, places, whats, made, works)


def _indices(
    store: Store, dataset: Dataset, campaign: Campaign, classnames: list[str], uri: str
) -> dict[str, Index]:
    """Make the index of each split from given rows; no worker reads images by it."""
    made_of = {"rows": fits.what(dataset, uri, None, classnames), "limit": campaign.limit}
    place = store.address(FOLDER, dataset.name, "rows", what=made_of)
    if store.manifest(place) is None:
        counts = {}
        for split, table in fits.splits(dataset, uri, classnames).items():
            usable.check(dataset.name, split, parts.count(table, {}), len(classnames))
            chosen = _limited(table, campaign.limit) if campaign.limit else table
            counts[split] = {"parts": [], **parts.count(chosen, {})._asdict()}
            for start in range(0, len(chosen), PART_ROWS):
                piece = chosen.slice(start, PART_ROWS)
                number = len(counts[split]["parts"])
                store.write_table(f"{place}/{split}/{parts.part_name(number)}", piece)
                counts[split]["parts"].append(len(piece))
        store.finish(place, made_of, counts=counts)
    told = store.manifest(place)["counts"]
    return {
        split: Index(
            dataset=dataset.name,
            split=split,
            address=f"{place}/{split}",
            chunks_at=place,
            location="",
            parts=tuple(told[split]["parts"]),
            chunk_parts=tuple(range(len(told[split]["parts"]))),
            content=f"{told[split]['content']:032x}",
            remarks=tuple(_remarks(split, told[split])),
        )
        for split in dataset.splits
    }


def _limited(table: pa.Table, limit: int) -> pa.Table:
    return table.take(parts.evenly(table.append_column("place", table["image_id"]), limit))


def write(store: Store, given: Given) -> Given:
    """Write the classifiers and embeddings that are missing; the same with nothing left to do."""
    for name in given.whats:
        place = given.classifiers[name]
        if store.manifest(place) is None:
            weights_CD = fits.class_vectors(given.dataset, given.uri, name, given.classnames)
            classifiers.write(store, place, given.whats[name], given.classnames, weights_CD)
    for split, work in given.works.items():
        for name in work.addresses:
            _write_split(store, given, split, work, name)
    done = {
        split: replace(work, todo={shard: [] for shard in work.todo})
        for split, work in given.works.items()
    }
    return replace(given, works=done)


def _write_split(store: Store, given: Given, split: str, work: Work, name: str) -> None:
    from clipray.steps.embed.encode import with_errors

    dataset, facts = given.dataset, given.facts[name]
    if not any(name in wanted for wanted in work.todo.values()):
        return
    part = fits.WHOLE if dataset.split else dataset.splits[split]
    matrix = files.matrix(fits.vectors(dataset, name), given.uri, part)
    order_N = fits.order(dataset, given.uri, name, part, len(matrix))
    for shard in work.shards():
        if name not in work.todo[shard.name]:
            continue
        rows = parts.rows_of(store, work.index.place, shard.part, shard.start, shard.rows)
        good = rows["error"].is_null().to_numpy(zero_copy_only=False)
        values_ND = matrix.take(order_N[rows["row"].to_numpy()[good]])
        errors = [None] * len(values_ND)
        if dataset.format == "logits":
            values_ND = on_sphere(values_ND, facts["radius"])
        else:
            errors = [None if row.any() else ALL_ZERO for row in values_ND]
        told = with_errors(rows, errors)
        kept = [error is None for error in errors]
        table = embedded(told, values_ND[kept], values_ND.shape[1], facts["precision"])
        store.write_table(f"{work.addresses[name]}/{shard.name}", table)


def on_sphere(logits_NC: np.ndarray, radius: float) -> np.ndarray:
    """Make unit vectors N×(C+1) whose first C numbers, times the radius, are the logits.

    >>> on_sphere(np.array([[3.0, 4.0]], np.float32), 10.0).round(4).tolist()
    [[0.30000001192092896, 0.4000000059604645, 0.8659999966621399]]
    """
    wide_NC = logits_NC.astype(np.float64) / radius
    rest_N = np.sqrt(np.clip(1 - (wide_NC**2).sum(1), 0, None))
    return np.concatenate([wide_NC, rest_N[:, None]], axis=1).astype(np.float32)


def _work(store: Store, dataset: Dataset, split: str, index: Index, facts: dict) -> Work:
    """Find the addresses of a split's embeddings, and the shards that are not there."""
    part = fits.WHOLE if dataset.split else dataset.splits[split]
    whats = {
        name: {
            "given": own["images"][part],
            "format": dataset.format,
            "precision": own["precision"],
            "radius": own["radius"],
            "images": index.content,
            "code": fingerprint.code(write),
        }
        for name, own in facts.items()
    }
    return embeddings.work(store, index, whats)


def _remarks(split: str, counts: dict) -> Iterator[str]:
    if counts["bad"]:
        yield f"{split} split: {counts['bad']} of {counts['rows']} rows cannot be used: {fits.NO_LABEL}"


def methods(campaign: Campaign, logits: bool) -> tuple[tuple[Head, ...], tuple[Fuser, ...]]:
    """Return the heads and fusers of a campaign; for a set of logits, those that need no embedding."""
    heads, fusers = checks.named_heads(campaign.heads), checks.entries(campaign)
    if not logits:
        return heads, fusers
    known_heads, known_fusers = declared.heads(), declared.fusers()
    return (
        tuple(head for head in heads if not known_heads[head.head].needs_labels),
        tuple(fuser for fuser in fusers if not known_fusers[fuser.fuser].needs_embeddings),
    )


def remarks(given: Given, campaign: Campaign) -> list[str]:
    """List what a person should know: rows that cannot be used, and methods that are left out on logits.

    Raises:
        ConfigError: no head is left.
    """
    said = [text for work in given.works.values() for text in work.index.remarks]
    if given.dataset.format != "logits":
        return said
    heads, fusers = methods(campaign, True)
    if not heads:
        raise ConfigError(
            f"dataset {given.dataset.name} has logits and no embeddings, and every head of `heads` learns from "
            "embeddings: add `zero_shot`."
        )
    every = [method for kind in methods(campaign, False) for method in kind]
    out = [method.name for method in every if method not in (*heads, *fusers)]
    if out:
        said.append(f"logits only, so methods that need embeddings are left out: {', '.join(out)}")
    return said
