"""Text classifiers per (backbone, dataset, templates)."""

import numpy as np
import pyarrow as pa

from clipray import backbones, fingerprint
from clipray.config import Backbone, Dataset
from clipray.steps.embed import measure as cards
from clipray.store import Store

PART = "classifier.parquet"


def address(store: Store, spec: Backbone, precision: str, dataset: str, prompts: dict) -> str:
    """Where the classifier of a backbone over a dataset's class names lies.

    Args:
        prompts: {"classnames": […], "templates": […]}.
    """
    return store.address("classifiers", dataset, spec.name, what=what(spec, precision, prompts))


def what(spec: Backbone, precision: str, prompts: dict) -> dict:
    """The WHAT of a classifier."""
    return {
        "backbone": backbones.origin(spec),
        "precision": precision,
        "prompts": prompts,
        "code": fingerprint.code(prepare),
    }


def prepare(
    store: Store, spec: Backbone, precision: str, device: str, prompts: dict[str, dict]
) -> dict[str, str]:
    """Load a backbone once; write its card and the classifiers that are missing.

    Args:
        prompts: for each dataset whose classifier is missing, its class names and templates.

    Returns:
        by dataset, why it has no classifier of this backbone; the others have one.
    """
    encoder = backbones.load(spec, precision, device)
    cards.write(store, encoder, device)
    failed = {}
    for dataset, texts in prompts.items():
        try:
            weights_CD = encoder.classifier(texts["classnames"], texts["templates"])
        except (
            Exception
        ) as error:  # what one set's names do to a text tower must not cost the others
            failed[dataset] = f"its class names cannot be embedded: {type(error).__name__}: {error}"
            continue
        if not np.isfinite(weights_CD).all():
            failed[dataset] = "the embeddings of its class names are not finite"
            continue
        place = address(store, spec, precision, dataset, texts)
        store.write_table(f"{place}/{PART}", table(texts["classnames"], weights_CD))
        store.finish(place, what(spec, precision, texts))
    return failed


def table(names: list[str], weights_CD: np.ndarray) -> pa.Table:
    """Class names with their vectors, as a classifier's file has them."""
    flat = pa.array(weights_CD.astype(np.float32).ravel())
    return pa.table(
        {"name": names, "weight": pa.FixedSizeListArray.from_arrays(flat, weights_CD.shape[1])}
    )


def read(store: Store, place: str) -> np.ndarray:
    """A classifier's weights, float32 C×D, in label order."""
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
    """For each backbone with something missing: the datasets' prompts that it has no classifier for."""
    pairs = [(spec, dataset.name) for spec in specs for dataset in datasets]
    places = [address(store, spec, precision, name, prompts[name]) for spec, name in pairs]
    manifests = store.manifests(places)
    lacking = [pair for pair, found in zip(pairs, manifests, strict=True) if found is None]
    work = {}
    for spec in specs:
        wanted = {dataset: prompts[dataset] for other, dataset in lacking if other is spec}
        if wanted or cards.read(store, spec, precision) is None:
            work[spec.name] = wanted
    return work
