"""Outcomes of single images → what the report says of each dataset: calibration, classes, overlap, images to see.

It looks at the headline's method, the backbone that is best on the dataset, and every single backbone, at one support
set. What is kept is small whatever the number of images and classes.
"""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from clipray.artefacts import lookup
from clipray.artefacts.evaluations import OUTCOMES
from clipray.artefacts.index import Index
from clipray.steps.publish import alike
from clipray.store import Store

MOST = 200_000  # images of a dataset; of a larger one the page has scores alone
DATASETS = 40  # that are looked at
BINS = 10  # of a reliability diagram
STEPS = 20  # of a risk-coverage curve
CLASSES = 12  # the worst, and as many confused pairs
PATTERNS = 64  # of right and wrong backbones that are kept, the most frequent
FEW = 3  # images of each kind; of likely label errors twice as many
SIDE, QUALITY = 96, 72  # of a thumbnail
DATASET_BYTES, PAGE_BYTES = 300_000, 3_000_000  # of thumbnails, encoded
COLUMNS = ["head", "method", "shots", "seed", "image_id", "label", "prediction", "confidence"]


class Answers(NamedTuple):
    """What the single backbones and the fused method say of the same N images, in the same order.

    Attributes:
        predictions_NM, confidences_NM: of the backbones `names`. fused_N, sure_N: the method's answer and confidence.
    """

    image_ids: list[str]
    labels_N: np.ndarray
    names: list[str]
    predictions_NM: np.ndarray
    confidences_NM: np.ndarray
    fused_N: np.ndarray
    sure_N: np.ndarray


def of_campaign(
    store: Store,
    places: Mapping[str, str],
    headline: Mapping[str, Any],
    classnames: Mapping[str, Sequence[str]],
    images: Mapping[str, Any],
    embeddings: Mapping[str, Mapping[str, str]],
) -> list[dict[str, Any]]:
    """Look at every dataset in turn, the first `DATASETS` of them.

    Args:
        places: by dataset, its evaluation. headline: `method`, `head` and `shots` of the method to look at.
        images: by dataset, the `Index` of its test images; those of given vectors have none.
        embeddings: by dataset and backbone, the address of the test images' embeddings; those of logits have none.
    """
    if "method" not in headline:
        return []
    found, left = [], PAGE_BYTES
    for dataset, place in list(places.items())[:DATASETS]:
        answers = read(store, f"{place}/{OUTCOMES}", headline)
        if answers is None:
            continue
        names = list(classnames.get(dataset, ()))
        detail = of_dataset(answers, names)
        if dataset in embeddings:
            detail["alike"] = same_pictures(
                store, embeddings[dataset], answers, detail["best"], names
            )
        if dataset in images:
            left -= add_pictures(store, images[dataset], detail, min(left, DATASET_BYTES))
        found.append({"dataset": dataset} | {k: headline[k] for k in ("method", "shots")} | detail)
    return found


def read(store: Store, path: str, wanted: Mapping[str, Any]) -> Answers | None:
    """The answers of all single backbones and one method at the first support set; None where one is missing."""
    try:
        file = pq.ParquetFile(pa.BufferReader(store.read(path)))
    except FileNotFoundError:
        return None
    parts = []
    for batch in file.iter_batches(columns=COLUMNS):
        frame = pa.Table.from_batches([batch]).to_pandas()
        own = (frame["head"] == wanted["head"]) & (frame["seed"] == 0)
        own &= frame["shots"].isin([0, wanted["shots"]])
        own &= frame["method"].str.startswith("single/") | (frame["method"] == wanted["method"])
        parts.append(frame[own])
        if sum(len(part) for part in parts) > MOST * 50:
            return None
    frame = pd.concat(parts)
    # a head that learns has its own single backbones at every number of shots
    frame = frame.sort_values("shots").drop_duplicates(["method", "image_id"], keep="last")
    wide = frame.pivot(index="image_id", columns="method", values=["prediction", "confidence"])
    wide = wide.dropna()
    names = sorted(name for name in frame["method"].unique() if name.startswith("single/"))
    if len(names) < 2 or wanted["method"] not in set(frame["method"]) or not 0 < len(wide) <= MOST:
        return None
    labels = frame.drop_duplicates("image_id").set_index("image_id")["label"].reindex(wide.index)
    return Answers(
        list(wide.index),
        labels.to_numpy(np.int64),
        [name.removeprefix("single/") for name in names],
        wide["prediction"][names].to_numpy(np.int64),
        wide["confidence"][names].to_numpy(float),
        wide["prediction"][wanted["method"]].to_numpy(np.int64),
        wide["confidence"][wanted["method"]].to_numpy(float),
    )


def of_dataset(answers: Answers, classnames: Sequence[str]) -> dict[str, Any]:
    """Everything that is said of one dataset, as JSON holds it."""
    right_NM = answers.predictions_NM == answers.labels_N[:, None]
    right_N = answers.fused_N == answers.labels_N
    best = int(right_NM.mean(0).argmax())

    name = partial(_name, classnames)
    curves = {"fused": (answers.sure_N, right_N)}
    curves[answers.names[best]] = (answers.confidences_NM[:, best], right_NM[:, best])
    return {
        "images": len(answers.image_ids),
        "backbones": answers.names,
        "best": answers.names[best],
        "reliability": {key: reliability(*curve) for key, curve in curves.items()},
        "risk": {key: risk(*curve) for key, curve in curves.items()},
        "classes": worst_classes(answers.labels_N, right_N, right_NM[:, best], name),
        "confused": confused(answers.labels_N, answers.fused_N, name),
        "patterns": patterns(right_NM),
        "examples": list(examples(answers, right_NM, right_N, name)),
    }


def same_pictures(
    store: Store,
    addresses: Mapping[str, str],
    answers: Answers,
    best: str,
    classnames: Sequence[str],
) -> list[dict[str, Any]]:
    """Pairs of images that are nearly the same, see `alike`: their `cosine`, and of each image its id and label."""
    names = [best, *(name for name in answers.names if name != best)]
    found = []
    for pair in alike.of_dataset(store, addresses, names, answers.image_ids):
        images = [
            {
                "image_id": answers.image_ids[row],
                "label": _name(classnames, int(answers.labels_N[row])),
            }
            for row in (pair.first, pair.second)
        ]
        found.append({"cosine": round(pair.cosine, 4), "images": images})
    return found


def _name(classnames: Sequence[str], number: int) -> str:
    return classnames[number] if 0 <= number < len(classnames) else f"class {number}"


def reliability(confidence_N: np.ndarray, right_N: np.ndarray) -> list[dict[str, float]]:
    """Mean confidence, accuracy and number of images of each bin of equal width that has any.

    >>> reliability(np.array([0.95, 0.85, 0.82]), np.array([True, True, False]))[0]
    {'confidence': 0.835, 'accuracy': 0.5, 'images': 2}
    """
    bin_N = np.clip((confidence_N * BINS).astype(int), 0, BINS - 1)
    found = []
    for number in range(BINS):
        own = bin_N == number
        if own.any():
            values = (confidence_N[own].mean(), right_N[own].mean())
            values = (round(float(value), 4) for value in values)
            found.append(
                dict(zip(("confidence", "accuracy"), values, strict=True), images=int(own.sum()))
            )
    return found


def risk(confidence_N: np.ndarray, right_N: np.ndarray) -> list[tuple[float, float]]:
    """(coverage, error rate) among the most confident share of the images.

    >>> risk(np.array([0.9, 0.8]), np.array([True, False]))[-1]
    (1.0, 0.5)
    """
    order = np.argsort(-confidence_N, kind="stable")
    errors = np.cumsum(~right_N[order]) / np.arange(1, len(order) + 1)
    places = np.unique(-(-np.arange(1, STEPS + 1) * len(order) // STEPS)) - 1
    return [(round(float(p + 1) / len(order), 4), round(float(errors[p]), 4)) for p in places]


def worst_classes(
    labels_N: np.ndarray, right_N: np.ndarray, alone_N: np.ndarray, name: Any
) -> list[dict[str, Any]]:
    """The classes with the least accuracy of the fused method, and that of the best backbone there."""
    frame = pd.DataFrame({"label": labels_N, "fused": right_N, "alone": alone_N})
    means = frame.groupby("label").agg(
        images=("fused", "size"), fused=("fused", "mean"), alone=("alone", "mean")
    )
    means = means.sort_values(["fused", "alone"], kind="stable").head(CLASSES)
    return [{"name": name(int(label)), **row} for label, row in means.to_dict("index").items()]


def confused(labels_N: np.ndarray, fused_N: np.ndarray, name: Any) -> list[dict[str, Any]]:
    """The pairs of classes that the fused method takes for each other most often: label, answer, images."""
    frame = pd.DataFrame({"label": labels_N, "answer": fused_N})
    counts = frame[frame["label"] != frame["answer"]].value_counts(sort=True).head(CLASSES)
    of_label = frame["label"].value_counts()
    return [
        {"label": name(a), "answer": name(b), "images": int(n), "share": float(n / of_label[a])}
        for (a, b), n in counts.items()
    ]


def patterns(right_NM: np.ndarray) -> list[tuple[list[int], int]]:
    """(numbers of the backbones that are right, images), the most frequent first.

    >>> patterns(np.array([[True, False], [True, False], [False, False]]))
    [([0], 2), ([], 1)]
    """
    rows, counts = np.unique(right_NM, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:PATTERNS]
    return [([int(m) for m in np.flatnonzero(rows[u])], int(counts[u])) for u in order]


def examples(
    answers: Answers, right_NM: np.ndarray, right_N: np.ndarray, name: Any
) -> Iterator[dict[str, Any]]:
    """Images to look at, of four kinds, the surest first."""
    first = answers.predictions_NM[:, :1]
    agreed_N = (answers.predictions_NM == first).all(1)
    number_N = right_NM.sum(1)
    surest_N = np.where(right_NM, answers.confidences_NM, 0).max(1)
    kinds = {
        "one rescues": (number_N == 1, surest_N, FEW),
        "fusion rescues": (right_N & (number_N == 0), answers.sure_N, FEW),
        "fusion loses": (~right_N & (number_N > 0), number_N + surest_N, FEW),
        "label?": (agreed_N & (number_N == 0), answers.confidences_NM.mean(1), 2 * FEW),
    }
    for kind, (own_N, rank_N, few) in kinds.items():
        rows = np.flatnonzero(own_N)
        for n in rows[np.argsort(-rank_N[rows], kind="stable")][:few]:
            said = zip(
                answers.names, answers.predictions_NM[n], answers.confidences_NM[n], strict=True
            )
            yield {
                "kind": kind,
                "of_kind": int(own_N.sum()),
                "image_id": answers.image_ids[n],
                "label": name(int(answers.labels_N[n])),
                "fused": [name(int(answers.fused_N[n])), round(float(answers.sure_N[n]), 3)],
                "said": [[who, name(int(p)), round(float(c), 3)] for who, p, c in said],
            }


def add_pictures(store: Store, index: Index, detail: dict[str, Any], limit: int) -> int:
    """Give each image its `key` and, where it can be read, a small `picture`; the bytes that these take."""
    pairs = (one for pair in detail.get("alike", ()) for one in pair["images"])
    wanted: dict[str, list[dict[str, Any]]] = {}
    for one in (*detail["examples"], *pairs):
        wanted.setdefault(one["image_id"], []).append(one)
    try:
        found = dict(lookup.images(store, index, set(wanted)))
    except Exception as error:  # the images may have moved since: the report needs none of them
        detail["no_pictures"] = f"The images could not be read ({type(error).__name__})."
        return 0
    spent = 0
    for image_id, (key, data) in found.items():
        picture = thumbnail(data) if isinstance(data, bytes) else ""
        for one in wanted[image_id]:
            one["key"] = key
            if picture and spent + len(picture) <= limit:
                one["picture"] = picture
                spent += len(picture)
    return spent


def thumbnail(data: bytes) -> str:
    """A small JPEG as a data URI; empty where the image cannot be decoded."""
    from clipray import images

    try:
        image = images.decode(data)
    except images.ImageError:
        return ""
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
