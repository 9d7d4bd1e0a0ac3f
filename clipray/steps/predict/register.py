"""A fused model's record in MLflow: a run with its numbers, and a version in the registry under its name."""

from importlib import metadata
from typing import Any

from clipray import fingerprint, images, tracking
from clipray.artefacts import fused_model
from clipray.config.predict import Fit
from clipray.store import Store, provenance
from clipray.tracking import Metric, Record, models

# what the loader needs beside the numeric libraries, whose versions the code's fingerprint knows
CARRIERS = ("fsspec", "s3fs", "pyarrow", "pydantic", "pyyaml", "safetensors", "filelock", "mlflow")


def name_of(wanted: Fit) -> str:
    """Return the name of the record."""
    return f"fit/{wanted.name}"


def check(wanted: Fit, workspace: str) -> None:
    """Check before work starts whether MLflow takes the run; see `tracking.check`."""
    tracking.check(name_of(wanted), workspace, wanted.tracking)


def register(wanted: Fit, store: Store, address: str) -> dict[str, Any]:
    """Record a fitted model, and return what the job prints as its last line.

    Returns:
        `model` (its folder), `name`, `head`, `fuser`, `backbones`, `classes`, `support`, `figures`, `cascade` (what it
        promises), `registered` (name, alias, version, uri; None without tracking) and `mlflow` (see `tracking.record`).
    """
    about = store.read_json(f"{address}/{fused_model.ABOUT}")
    digest = fused_model.digest(store.manifest(address))
    told = {
        "model": store.place(address),
        "name": about["name"],
        "dataset": about["dataset"],
        "head": about["head"]["name"],
        "fuser": about["fuser"]["name"],
        "backbones": [one["entry"]["name"] for one in about["backbones"]],
        "classes": len(about["classnames"]),
        "support": about["support"],
        "figures": about["figures"],
        "cascade": about["cascade"] and about["cascade"]["promise"],
    }
    numbers = metrics(about["figures"])
    params = {
        key: told[key] for key in ("name", "dataset", "head", "fuser", "backbones", "classes")
    }
    record = Record(
        params | {"support": about["support"], "digest": digest},
        [Metric(key, value) for key, value in numbers.items()],
        artifacts={"fused_model.json": store.place(f"{address}/{fused_model.ABOUT}")},
        tags=tracking.origin("jobs.fit", provenance()) | {"clipray.kind": "fused model"},
        note=note(told),
    )
    name = name_of(wanted)
    mlflow = tracking.record(name, store.uri, wanted.tracking, record)
    mlflow = {key: value for key, value in mlflow.items() if key != "written"}
    registered = None
    if wanted.tracking.enabled and "error" not in mlflow:
        registered = models.register(
            name,
            store,
            wanted.tracking,
            mlflow["run_id"],
            about["name"],
            fused_model.fetched(store.place(address)),
            digest,
            wanted.alias,
            requirements(),
            images.sample(),
            numbers,
            note(told),
        )
        if "error" in registered:
            words = f"MLflow has not registered {about['name']} ({registered['error']})"
            mlflow |= {"error": words, "send": "the same command again"}
    return told | {"registered": registered, "mlflow": mlflow}


def metrics(figures: dict[str, Any]) -> dict[str, float]:
    """List the numbers of a model by the names that MLflow shows: `held_out_nll`, `test_top1`, …"""
    found = {}
    for part in ("held_out", "test"):
        for key, value in figures.get(part, {}).items():
            found[f"{part}_{key}"] = float(value)
    return found


def note(told: dict[str, Any]) -> str:
    """Write what MLflow shows of the model, in Markdown."""
    held = told["figures"].get("held_out")
    lines = [
        f"`{told['fuser']}` of {', '.join(told['backbones'])} on `{told['head']}`, {told['classes']} classes of "
        f"{told['dataset']}, from {told['support']['images']} labelled images."
    ]
    if held:
        lines.append(
            f"Cross-validated on them: top-1 {held['top1']:.3f}, NLL {held['nll']:.3f} nats."
        )
    if told["cascade"]:
        why = told["cascade"]["why"]
        spent = told["cascade"]["gflops"]
        lines.append(f"A cascade: {why}. Held out, an image takes {spent:.3g} GFLOPs on average.")
    lines.append("Send encoded images (base64 in JSON) in a column `image`.")
    return "\n\n".join(lines)


def requirements() -> list[str]:
    """List what a machine must install to load a model, at the versions that are here."""
    known = dict(fingerprint.code("clipray.fused")["libraries"])
    for name in CARRIERS:
        known[name] = metadata.version(name)
    return sorted(f"{name}=={version}" for name, version in known.items() if version[:1].isdigit())
