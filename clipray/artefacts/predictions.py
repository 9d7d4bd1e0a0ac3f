"""The predictions of a fused model for a collection: shard by shard a file, and a manifest once all are there."""

from clipray import fingerprint
from clipray.artefacts.index import Index, shard_rows
from clipray.store import Store

FOLDER = "predictions"
WRITE = "clipray.steps.predict.write"  # that makes them


def what(model: str, index: Index, targets: bool) -> dict:
    """Return the WHAT of predictions.

    Args:
        model: the digest of the whole model. targets: whether labels are known, and are of the model's classes.
    """
    makers = (f"{WRITE}:{name}" for name in ("decode", "Encode", "Label"))
    return {
        "model": model,
        "images": index.identity,
        "shard_rows": shard_rows(index),
        "targets": targets,
        "code": fingerprint.code(*makers),
    }


def address(store: Store, model: str, dataset: str, made_of: dict) -> str:
    """Return the address of the predictions of a model, by its name, for a dataset; `made_of` is their WHAT."""
    return store.address(FOLDER, f"{model}-on-{dataset}", what=made_of)
