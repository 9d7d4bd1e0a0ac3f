"""What MLflow's runs must hold, and its form in the workspace until it is sent, and after."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import fsspec

from clipray import secrets
from clipray.store import Store

FOLDER = "tracking"
STATEMENT = "record.json"


class Metric(NamedTuple):
    """One point. Give `step` a meaning that plots well: an epoch, or a part of the training."""

    name: str
    value: float | None
    step: int = 0


class Input(NamedTuple):
    """A dataset that went in."""

    name: str
    digest: str  # of its listing or content; at most 36 characters
    source: str  # a path or URI
    context: str = "test"  # what it was used for
    profile: Mapping[str, Any] = {}  # counts and the like


@dataclass(frozen=True)
class Record:
    """What one run holds.

    Attributes:
        params: the WHAT. MLflow's params cannot change, so a run whose params differ is superseded by a new one.
        metrics: points; those with a value of None are left out.
        inputs: datasets.
        artifacts: name in the run (`scores/scores.parquet`) → a path or URI to copy from, or the content as bytes.
        tags: all that may change between re-runs (HOW, versions).
        note: what the UI shows as the run's description, in Markdown.
        status: MLflow's word: FINISHED or FAILED.
        started, ended: in seconds since 1970; None: when it is sent.
    """

    params: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[Metric] = ()
    inputs: Sequence[Input] = ()
    artifacts: Mapping[str, str | bytes] = field(default_factory=dict)
    tags: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    status: str = "FINISHED"
    started: float | None = None
    ended: float | None = None


def folder(name: str) -> str:
    """Where the record of a campaign (`demo`), or of another job (`tune/demo`), lies in its workspace."""
    return f"{FOLDER}/{name.replace('/', '+')}"


def names(store: Store) -> list[str]:
    """What a workspace has records of."""
    found = sorted(store.names(FOLDER))
    return [one.replace("+", "/") for one in found if store.exists(f"{FOLDER}/{one}/{STATEMENT}")]


def dump(store: Store, one: Record) -> dict:
    """A record as JSON can hold it, without secrets; files of the workspace by their path below it."""
    plain = {
        "params": dict(one.params),
        "metrics": [list(metric) for metric in one.metrics if metric.value is not None],
        "inputs": [item._asdict() for item in one.inputs],
        "tags": dict(one.tags),
        "note": one.note,
        "status": one.status,
        "started": one.started,
        "ended": one.ended,
    }
    artifacts = {name: _dump_artifact(store, item) for name, item in one.artifacts.items()}
    return secrets.clean(plain) | {"artifacts": artifacts}


def _dump_artifact(store: Store, artifact: str | bytes) -> dict[str, str]:
    data = artifact if isinstance(artifact, bytes) else _fetch(artifact)
    digest = {"sha256": hashlib.sha256(data).hexdigest()}
    if isinstance(artifact, bytes):
        return digest | {"base64": base64.b64encode(artifact).decode()}
    if artifact.startswith(store.uri + "/"):
        return digest | {"path": artifact.removeprefix(store.uri + "/")}
    return digest | {"uri": artifact}


def content(store: Store, artifact: Mapping[str, str]) -> bytes:
    """The bytes of an artifact as `dump` wrote it."""
    if "base64" in artifact:
        return base64.b64decode(artifact["base64"])
    if "path" in artifact:
        return store.read(artifact["path"])
    return _fetch(artifact["uri"])


def _fetch(place: str) -> bytes:
    with fsspec.open(place, "rb") as file:
        return file.read()
