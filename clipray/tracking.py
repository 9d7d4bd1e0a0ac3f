"""Where results are recorded: MLflow, and this is the only door to it.

`record` states what the runs of a campaign must hold, and makes it so: one parent run, one child run per dataset.
Stating the same again changes nothing, and costs nothing (MLflow, 6 s to import, is then not even loaded); stating
more adds what is missing. The run ids are kept in the workspace, so a re-run continues its runs.
"""

import contextlib
import hashlib
import io
import json
import logging
import math
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import fsspec

from clipray.config import Tracking, fingerprint
from clipray.store import Store

RUNS = "mlflow-runs.json"
DATABASE = "mlflow.db"
ARTIFACTS = "mlflow-artifacts"
METRICS_PER_BATCH = 1000  # MLflow's own limits
PARAMS_PER_BATCH = 100
PARAM_LENGTH = 6000  # MLflow cuts longer values in silence


class Metric(NamedTuple):
    """One point. Give `step` a meaning that plots well: an epoch, or the number of shots."""

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
    """

    params: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[Metric] = ()
    inputs: Sequence[Input] = ()
    artifacts: Mapping[str, str | bytes] = field(default_factory=dict)
    tags: Mapping[str, Any] = field(default_factory=dict)


def record(
    name: str,
    workspace: str,
    tracking: Tracking,
    parent: Record,
    children: Mapping[str, Record] | None = None,
    status: str = "FINISHED",
) -> dict:
    """Make the MLflow runs of a campaign hold what is stated; one writer at a time (the driver).

    Args:
        name: the campaign; the parent run's name.
        workspace: a local folder or a URI; run ids, and by default the database and the artifacts, live in it.
        tracking: the server and the experiment.
        parent: what the campaign's run holds.
        children: dataset → what its run holds.
        status: MLflow's word for the state of these runs: RUNNING, FINISHED or FAILED.

    Returns:
        `tracking_uri`, `experiment`, `run_id` (the parent's), `open` (the command that shows the runs) and `written`
        (whether anything was); with tracking disabled all are None, and `written` False.
    """
    if not tracking.enabled:
        return {
            "tracking_uri": None,
            "experiment": None,
            "run_id": None,
            "open": None,
            "written": False,
        }
    store = Store(workspace)
    stated = {name: parent} | {
        f"{name}/{dataset}": child for dataset, child in (children or {}).items()
    }
    stated = {key: _with_long_params_as_files(one) for key, one in stated.items()}
    contents = {
        key: {n: _content(a) for n, a in one.artifacts.items()} for key, one in stated.items()
    }
    known = store.read_json(RUNS) or {}
    home = {"tracking_uri": tracking.uri or _address(store), "experiment": tracking.experiment}
    digests = {key: _digest(one, contents[key], status) for key, one in stated.items()}
    same = {
        key
        for key, digest in digests.items()
        if known.get(key, {}).items() >= {**home, "digest": digest}.items()
    }
    written = not (same == set(stated) and not tracking.uri and store.exists(DATABASE))
    if written:
        with _client(store, tracking) as (client, experiment):
            above = ""
            for key, one in stated.items():
                earlier = known.get(key, {})
                earlier = earlier.get("run_id", "") if home.items() <= earlier.items() else ""
                run_id = _write(
                    client,
                    experiment,
                    key.rpartition("/")[2] if above else name,
                    above,
                    earlier,
                    one,
                )
                _write_artifacts(client, run_id, contents[key])
                client.set_terminated(run_id, status) if status != "RUNNING" else client.update_run(
                    run_id, status
                )
                known[key] = {**home, "run_id": run_id, "digest": digests[key]}
                above = above or run_id
        store.write_json(RUNS, known)
    return {
        **home,
        "run_id": known[name]["run_id"],
        "open": _command(store, tracking),
        "written": written,
    }


def _address(store: Store) -> str:
    return f"sqlite:///{store.place(DATABASE)}" if store.local else store.place(DATABASE)


def _command(store: Store, tracking: Tracking) -> str:
    if tracking.uri.startswith(("http://", "https://")):
        return f"open {tracking.uri} in a browser"
    if tracking.uri or store.local:
        return f"mlflow ui --backend-store-uri {tracking.uri or _address(store)}"
    return f"aws s3 cp {_address(store)} . && mlflow ui --backend-store-uri sqlite:///{DATABASE}"


@contextlib.contextmanager
def _client(store: Store, tracking: Tracking) -> Iterator[tuple[Any, str]]:
    """A silent client and the experiment's id; a database at `s3://` is worked on as a local copy."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        uri = tracking.uri or _address(store)
        copy = Path(folder) / DATABASE
        if uri == store.place(DATABASE):
            uri = f"sqlite:///{copy}"
            if store.exists(DATABASE):
                copy.write_bytes(store.read(DATABASE))
        elif not tracking.uri:
            Path(store.place(DATABASE)).parent.mkdir(parents=True, exist_ok=True)
        client = _silent_mlflow().MlflowClient(tracking_uri=uri)
        yield client, _experiment(client, store, tracking)
        if copy.exists():
            store.write(DATABASE, copy.read_bytes())


def _silent_mlflow() -> Any:
    """MLflow without telemetry, migration logs and tips: a job's last line of stdout is a contract."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")
    import mlflow

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return mlflow


def _experiment(client: Any, store: Store, tracking: Tracking) -> str:
    found = client.get_experiment_by_name(tracking.experiment)
    if found is None:
        server = tracking.uri.startswith(
            ("http://", "https://")
        )  # it has an artifact store of its own
        place = Path(store.place(ARTIFACTS)).as_uri() if store.local else store.place(ARTIFACTS)
        return client.create_experiment(
            tracking.experiment, artifact_location=None if server else place
        )
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def _write(client: Any, experiment: str, name: str, above: str, earlier: str, one: Record) -> str:
    """Params, metrics, inputs and tags of one run; its id: the earlier one where that can be continued."""
    from mlflow.entities import Param, RunTag

    params = {_plain_name(key): _text(value) for key, value in one.params.items()}
    run = _living(client, earlier)
    before = run.info.run_id if run else ""
    if run and any(run.data.params.get(key, value) != value for key, value in params.items()):
        run = None
    run = run or client.create_run(experiment, run_name=name)
    run_id = run.info.run_id
    if before and before != run_id:
        client.set_tag(before, "clipray.superseded_by", run_id)
    new = [Param(key, value) for key, value in params.items() if key not in run.data.params]
    for start in range(0, len(new), PARAMS_PER_BATCH):
        client.log_batch(run_id, params=new[start : start + PARAMS_PER_BATCH])
    tags = dict(one.tags) | ({"mlflow.parentRunId": above} if above else {})
    tags = [RunTag(key, _text(value)) for key, value in tags.items()]
    for start in range(0, len(tags), PARAMS_PER_BATCH):
        client.log_batch(run_id, tags=tags[start : start + PARAMS_PER_BATCH])
    points = _new_points(client, run, one.metrics)
    for start in range(0, len(points), METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=points[start : start + METRICS_PER_BATCH])
    _write_inputs(client, run_id, one.inputs)
    return run_id


def _living(client: Any, run_id: str) -> Any:
    """The run, or None where there is none (any more)."""
    from mlflow.exceptions import MlflowException

    if not run_id:
        return None
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


def _new_points(client: Any, run: Any, metrics: Sequence[Metric]) -> list:
    """The points that the run does not hold yet, as MLflow's entities."""
    from mlflow.entities import Metric as Point

    now = int(time.time() * 1000)
    held = {}  # (name, step) → the value logged last
    for name in {_plain_name(metric.name) for metric in metrics} & set(run.data.metrics):
        for point in client.get_metric_history(run.info.run_id, name):
            held[name, point.step] = point.value
    points = {}
    for metric in metrics:
        key, value = (_plain_name(metric.name), metric.step), metric.value
        if key in points:
            raise ValueError(f"two metrics are named {key[0]} at step {key[1]}")
        if value is not None and not _equal(held.get(key), value):
            points[key] = Point(key[0], float(value), now, key[1])
    return list(points.values())


def _equal(a: float | None, b: float) -> bool:
    return a is not None and (a == b or (math.isnan(a) and math.isnan(b)))


def _write_inputs(client: Any, run_id: str, inputs: Sequence[Input]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    held = {
        (i.dataset.name, i.dataset.digest) for i in client.get_run(run_id).inputs.dataset_inputs
    }
    entities = []
    for one in inputs:
        if (one.name, one.digest) not in held:
            kind = one.source.partition("://")[0] if "://" in one.source else "local"
            source, profile = json.dumps({"uri": one.source}), json.dumps(dict(one.profile))
            dataset = Dataset(one.name, one.digest, kind, source, profile=profile)
            entities.append(DatasetInput(dataset, [InputTag("mlflow.data.context", one.context)]))
    if entities:
        client.log_inputs(run_id, entities)


def _write_artifacts(client: Any, run_id: str, contents: Mapping[str, bytes]) -> None:
    for name, content in contents.items():
        folder, _, file = name.rpartition("/")
        with tempfile.TemporaryDirectory() as place:
            copy = Path(place) / file
            copy.write_bytes(content)
            client.log_artifact(run_id, str(copy), folder or None)


def _with_long_params_as_files(one: Record) -> Record:
    """Params longer than MLflow keeps become artifacts, and the param says where the whole is."""
    params, artifacts = dict(one.params), dict(one.artifacts)
    for key, value in one.params.items():
        text = _text(value)
        if len(text) > PARAM_LENGTH:
            name = f"params/{re.sub(r'[^A-Za-z0-9._-]', '_', key)}.txt"
            artifacts[name] = text.encode()
            digest = hashlib.sha256(text.encode()).hexdigest()[:16]
            params[key] = f"{len(text)} characters, whole in the artifact {name}, sha256 {digest}"
    return Record(params, one.metrics, one.inputs, artifacts, one.tags)


def _content(artifact: str | bytes) -> bytes:
    if isinstance(artifact, bytes):
        return artifact
    with fsspec.open(artifact, "rb") as file:
        return file.read()


def _digest(one: Record, contents: Mapping[str, bytes], status: str) -> str:
    artifacts = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    return fingerprint(
        [one.params, list(one.metrics), list(one.inputs), artifacts, one.tags, status]
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _plain_name(name: str) -> str:
    """A name of the characters that MLflow takes."""
    return re.sub(r"[^\w\-. /:]", "_", name)
