"""Text classifiers: the class vectors of a (backbone, dataset, templates)."""

import numpy as np
import pyarrow as pa

from clipray import backbones, fingerprint, snapshot
from clipray.artefacts import cards
from clipray.config import Backbone, Dataset
from clipray.store import Store

PREPARE = "clipray.steps.embed.texts:prepare"  # that makes them
PART = "classifier.parquet"


def address(store: Store, spec: Backbone, precision: str, dataset: str, prompts: dict) -> str:
    """Return the address of a backbone's classifier over a dataset's class names.

    Args:
        prompts: {"classnames": […], "templates": […]}.
    """
    return store.address("classifiers", dataset, spec.name, what=what(spec, precision, prompts))


def what(spec: Backbone, precision: str, prompts: dict) -> dict:
    """Return the WHAT of a classifier."""
    return {
        "backbone": backbones.origin(spec),
        "precision": precision,
        "prompts": prompts,
        "code": fingerprint.code(PREPARE),
    }


def table(names: list[str], weights_CD: np.ndarray) -> pa.Table:
    """Make the table of a classifier's file: class names with their vectors."""
    flat = pa.array(weights_CD.astype(np.float32).ravel())
    return pa.table(
        {"name": names, "weight": pa.FixedSizeListArray.from_arrays(flat, weights_CD.shape[1])}
    )


def read(store: Store, place: str) -> np.ndarray:
    """Read a classifier's weights, float32 C×D, in label order."""
    if store.manifest(place) is None:
        raise FileNotFoundError(f"{store.place(place)} is not complete")
    column = store.read_table(f"{place}/{PART}")["weight"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1).copy()


def missing(
    store: Store,
    specs: list[Backbone],
    precision: str,
    datasets: list[Dataset],
    prompts: dict[str, dict],
) -> dict[str, dict[str, dict]]:
    """Find, for each backbone with something missing, the datasets' prompts that it has no classifier for."""
    pairs = [(spec, dataset.name) for spec in specs for dataset in datasets]
    places = [address(store, spec, precision, name, prompts[name]) for spec, name in pairs]
    there = snapshot.complete(store, places)
    lacking = [pair for pair, place in zip(pairs, places, strict=True) if place not in there]
    work = {}
    for spec, card in zip(specs, cards.read_many(store, specs, precision), strict=True):
        wanted = {dataset: prompts[dataset] for other, dataset in lacking if other is spec}
        if wanted or card is None:
            work[spec.name] = wanted
    return work


def write(
    store: Store, place: str, made_of: dict, names: list[str], weights_CD: np.ndarray
) -> None:
    """Store a classifier; `made_of` is its WHAT."""
    store.write_table(f"{place}/{PART}", table(names, weights_CD))
    store.finish(place, made_of)
