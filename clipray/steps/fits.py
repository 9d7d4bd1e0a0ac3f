"""Whether given files fit each other: rows, ids, labels, class vectors; all of it before anything is written."""

import hashlib
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from clipray import fingerprint, schema
from clipray.config import Dataset, GivenBackbone
from clipray.errors import ConfigError
from clipray.sources import given as files

NO_LABEL = "it has no label"
WHOLE = ""  # the one part of data without splits of their own


def vectors(dataset: Dataset, name: str) -> str:
    """Return the file of a backbone's rows, as the config names it."""
    backbone = dataset.backbones[name]
    return backbone.logits if dataset.format == "logits" else backbone.images


def parts(dataset: Dataset) -> list[str]:
    """List the names that `{split}` stands for, in turn."""
    return [WHOLE] if dataset.split else list(dataset.splits.values())


def what(dataset: Dataset, uri: str, name: str | None, classnames: list[str]) -> dict:
    """Return the WHAT of checked rows or of a backbone's checked files: what the config says, and their state."""
    backbone = dataset.backbones[name] if name else None
    named = [dataset.labels, dataset.ids]
    if backbone:
        named += [backbone.images, backbone.classes, backbone.logits, backbone.labels, backbone.ids]
    named = [each for each in named if each]
    places = [
        place for part in parts(dataset) for each in named for place in files.files(each, uri, part)
    ]
    return {
        "files": named,
        "state": files.state(sorted(set(places))),
        "format": dataset.format,
        "splits": dataset.splits,
        "split": dataset.split.model_dump() if dataset.split else None,
        "classnames": classnames,
        "code": fingerprint.code(facts, splits),
    }


def splits(dataset: Dataset, uri: str, classnames: list[str]) -> dict[str, pa.Table]:
    """Return the rows of each split (`schema.INDEX`); `row` is the row in the files."""
    tables = {
        part: _rows(dataset, uri, part, classnames, number)
        for number, part in enumerate(parts(dataset))
    }
    if not dataset.split:
        return {split: tables[part] for split, part in dataset.splits.items()}
    table, rule = tables[WHOLE], dataset.split
    share_N = np.array([_share(f"{rule.seed} {each}") for each in table["image_id"].to_pylist()])
    test_N = pa.array(share_N < rule.test)
    halves = {"test": table.filter(test_N), "train": table.filter(pa.compute.invert(test_N))}
    for split, half in halves.items():
        if not len(half):
            raise ConfigError(f"`split` leaves no image for {split}: change its share or its seed.")
    return {split: halves[split] for split in dataset.splits}


def _share(text: str) -> float:
    """Return a number from 0 up to 1 that depends on a text alone."""
    return int(hashlib.blake2b(text.encode(), digest_size=8).hexdigest(), 16) / 2**64


def _rows(dataset: Dataset, uri: str, part: str, classnames: list[str], number: int) -> pa.Table:
    """Read all rows of one part of the files."""
    labels = files.labels(dataset.labels, uri, part, classnames)
    keys = _ids(dataset.ids, uri, part) if dataset.ids else None
    if keys is not None and len(keys) != len(labels):
        raise ConfigError(
            f"{dataset.ids} has {len(keys)} ids, but {dataset.labels} has {len(labels)} labels: give one of each an"
            " image."
        )
    if labels and all(label is None for label in labels):
        raise ConfigError(f"{dataset.labels} holds no label: name another file or column.")
    keys = keys or [f"{part}/{row}" if part else str(row) for row in range(len(labels))]
    ids = [hashlib.blake2b(key.encode(), digest_size=16).hexdigest() for key in keys]
    rows = len(labels)
    columns = {
        "image_id": pa.array(ids, pa.string()),
        "chunk": pa.array([number] * rows, pa.int32()),
        "row": pa.array(range(rows), pa.int32()),
        "key": pa.array(keys, pa.string()),
        "offset": pa.nulls(rows, pa.int64()),
        "size": pa.nulls(rows, pa.int64()),
        "label": pa.array(labels, pa.int64()),
        "error": pa.array([NO_LABEL if each is None else None for each in labels], pa.string()),
    }
    return pa.table([columns[name] for name in schema.INDEX.names], schema=schema.INDEX)


def _ids(name: str, uri: str, part: str) -> list[str]:
    """Read the ids that a config names, and check that each occurs once."""
    found = files.column(name, uri, part)
    if None in found:
        raise ConfigError(f"{name}: row {found.index(None)} has no id: give each image one.")
    texts = [str(value) for value in found]
    twice = [text for text, count in Counter(texts).items() if count > 1]
    if twice:
        raise ConfigError(
            f"{name}: {len(twice)} ids stand twice, such as {twice[0]!r}: each image needs its own."
        )
    return texts


def order(dataset: Dataset, uri: str, name: str, part: str, rows: int) -> np.ndarray:
    """Return, for each row of the set, the row of a backbone's file: by ids where it has some. Labels must agree."""
    backbone = dataset.backbones[name]
    order_N = np.arange(rows)
    if backbone.ids and dataset.ids:
        theirs, ours = _ids(backbone.ids, uri, part), _ids(dataset.ids, uri, part)
        places = {each: row for row, each in enumerate(theirs)}
        lacking = [each for each in ours if each not in places]
        if lacking:
            raise ConfigError(
                f"backbones.{name}.ids: {backbone.ids} lacks {len(lacking)} of the {len(ours)} ids of {dataset.ids},"
                f" such as {lacking[0]!r}: give the vectors of the same images."
            )
        order_N = np.array([places[each] for each in ours], np.int64)
    elif backbone.ids:
        raise ConfigError(
            f"backbones.{name}.ids cannot be compared: write `ids` for the data set too."
        )
    return order_N


def facts(dataset: Dataset, uri: str, name: str, classnames: list[str]) -> dict[str, Any]:
    """Check one backbone's files and digest them.

    Returns:
        `images`: digests by part; `classes`: a digest, "" where a model makes them; `precision` that holds the
        vectors; `dim`; `radius` (logits).
    """
    named, width, digest = dataset.backbones[name].classes, None, ""
    if not dataset.backbones[name].model:
        weights_CD = class_vectors(dataset, uri, name, classnames)
        width = weights_CD.shape[1]
        digest = hashlib.sha256(weights_CD.tobytes()).hexdigest()[:32]
    digests, halves, radius = {}, [], 1.0
    for part in parts(dataset):
        matrix = files.matrix(vectors(dataset, name), uri, part)
        named = named or matrix.where
        width = width or matrix.width
        _fits(dataset, uri, name, part, matrix, width, named)
        whole, longest = _digest(dataset, name, matrix)
        order_N = order(dataset, uri, name, part, len(matrix))
        digests[part] = fingerprint.fingerprint(
            [whole, hashlib.sha256(order_N.tobytes()).hexdigest()]
        )
        halves.append(matrix.half)
        radius = max(radius, longest)
    logits = dataset.format == "logits"
    return {
        "images": digests,
        "classes": digest,
        "precision": "fp16" if all(halves) and not logits else "fp32",
        "dim": width,
        "radius": radius,
    }


def _fits(
    dataset: Dataset,
    uri: str,
    name: str,
    part: str,
    matrix: files.Matrix,
    width: int,
    named: str,
) -> None:
    """`ConfigError` unless the rows of a backbone are the set's, in number, labels and width (that of `named`)."""
    backbone, own = dataset.backbones[name], files.column(dataset.labels, uri, part)
    width -= dataset.format == "logits"  # the sphere's last dimension
    against = "the class names" if dataset.format == "logits" else named
    key = "logits" if dataset.format == "logits" else "images"
    where = f"backbones.{name}.{key}: {matrix.where}"
    rows = len(_ids(backbone.ids, uri, part)) if backbone.ids else len(own)
    if len(matrix) != rows:
        known = backbone.ids or dataset.labels
        raise ConfigError(
            f"{where} has {len(matrix)} rows, but {known} has {rows}: give one row an image, in the same order."
        )
    if matrix.width != width:
        raise ConfigError(
            f"{where} has rows of {matrix.width} numbers, but {against} has {width}: they are not of one model and set."
        )
    if backbone.labels:
        order_N = order(dataset, uri, name, part, len(matrix))
        theirs = files.column(backbone.labels, uri, part)
        _same_labels(name, backbone, theirs, own, order_N)


def _same_labels(
    name: str, backbone: GivenBackbone, theirs: list, own: list, order_N: np.ndarray
) -> None:
    if len(theirs) <= order_N.max(initial=-1):
        raise ConfigError(
            f"backbones.{name}.labels: {backbone.labels} has {len(theirs)} labels, too few for its rows: give one each."
        )
    differ = [row for row, place in enumerate(order_N) if theirs[place] != own[row]]
    if differ:
        raise ConfigError(
            f"backbones.{name}.labels: {backbone.labels} has another label than the data set in {len(differ)} rows"
            f" (first: row {differ[0]}): the rows are in another order; give `ids` for both, or sort them alike."
        )


def _digest(dataset: Dataset, name: str, matrix: files.Matrix) -> tuple[str, float]:
    """Compute a digest of all rows, and the length of the longest finite row, in one pass."""
    found = hashlib.blake2b(digest_size=16)
    longest, usable = 0.0, 0
    for block in matrix.blocks():
        found.update(np.ascontiguousarray(block).tobytes())
        with np.errstate(over="ignore", invalid="ignore"):
            length_N = np.sqrt((block.astype(np.float64) ** 2).sum(1))
        finite_N = np.isfinite(length_N)
        good_N = finite_N if dataset.format == "logits" else finite_N & (length_N > 0)
        usable += int(good_N.sum())
        longest = max(longest, float(length_N[finite_N].max(initial=0.0)))
    if not usable:
        raise ConfigError(
            f"backbones.{name}: {matrix.where} has no usable row; all are zero or not finite: compute it again."
        )
    return found.hexdigest(), longest


def class_vectors(dataset: Dataset, uri: str, name: str, classnames: list[str]) -> np.ndarray:
    """Read the class vectors C×D, float32, and check them."""
    if dataset.format == "logits":
        return np.eye(len(classnames), len(classnames) + 1, dtype=np.float32)
    backbone = dataset.backbones[name]
    matrix = files.matrix(backbone.classes, uri, WHOLE)
    where = f"backbones.{name}.classes: {matrix.where}"
    if len(matrix) != len(classnames):
        raise ConfigError(
            f"{where} has {len(matrix)} rows, but there are {len(classnames)} class names: give one row a class, in"
            " label order."
        )
    weights_CD = matrix.take(np.arange(len(matrix)))
    bad = ~np.isfinite(weights_CD).all(1) | ~weights_CD.any(1)
    if bad.any():
        first = classnames[int(np.flatnonzero(bad)[0])]
        raise ConfigError(
            f"{where}: the vector of {first!r} is all zero or not finite: compute it again."
        )
    return weights_CD
