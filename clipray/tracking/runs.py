"""The runs of one record: which are missing or differ, and writing these with few calls."""

import base64
import json
import math
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipray.config import fingerprint
from clipray.store import Store
from clipray.tracking.client import locked
from clipray.tracking.records import content

METRICS_PER_BATCH = 800  # MLflow takes 1000 entries, of them 100 params and 100 tags
PARAMS_PER_BATCH = 100
PARAM_LENGTH = 6000  # MLflow cuts longer values in silence
TAG_LENGTH = 8000
SAVE = 5.0  # seconds between two savings of what is sent

SUPERSEDED = "clipray.superseded_by"

Points = dict[str, dict[str, float]]  # name → step as text → value


@dataclass
class Sent:
    """What a server or database holds of a record."""

    experiment: str = ""
    complete: str = ""  # digest of the statement that was sent whole
    runs: dict[str, dict] = field(default_factory=dict)  # key → run_id, digest, points


@dataclass
class Writer:
    """One client at work on the runs of one record."""

    client: Any
    experiment: str
    uri: str
    store: Store
    verify: bool  # look for each run at the server, as somebody may have deleted it


def write(writer: Writer, name: str, statement: dict, sent: Sent, save: Any) -> bool:
    """Make the runs hold what is stated; whether anything was written.

    Args:
        statement: `parent` and `children`, records as `records.dump` writes them.
        sent: what is there; kept up to date.
        save: called from time to time, so that little is sent twice after a crash.
    """
    written, saved = False, time.monotonic()
    above = ""
    stated = dict(_stated(name, statement))
    for key, one in stated.items():
        known = sent.runs.get(key, {})
        tags = {"mlflow.parentRunId": above} if above else {}
        what = {field: value for field, value in one.items() if field not in ("started", "ended")}
        digest = fingerprint([what, above])
        gone = writer.verify and known and _living(writer.client, known["run_id"]) is None
        if gone or known.get("digest") != digest:
            with locked(writer.uri):
                _write(writer, key, one, tags, sent)
            sent.runs[key]["digest"] = digest
            written = True
        if not above:
            above = sent.runs[key]["run_id"]
        if time.monotonic() - saved > SAVE:
            save()
            saved = time.monotonic()
    for key in set(sent.runs) - set(stated):
        if _living(writer.client, run_id := sent.runs.pop(key)["run_id"]) is not None:
            writer.client.set_tag(run_id, SUPERSEDED, above)
    return written


def _stated(name: str, statement: dict) -> Iterator[tuple[str, dict]]:
    """The parent first."""
    yield name, statement["parent"]
    for child, one in statement["children"].items():
        yield f"{name}/{child}", one | {"name": child}


def _write(writer: Writer, key: str, one: dict, tags: dict, sent: Sent) -> None:
    """Write one run. The earlier run goes on, or is superseded where it cannot.

    `sent` knows of the run and of each batch at once, so that what breaks off is continued.
    """
    known = sent.runs.get(key, {})
    one = _long_params_to_files(one)
    params = {plain_name(name): _text(value) for name, value in one["params"].items()}
    points = _points(one["metrics"])
    run, before = _living(writer.client, known.get("run_id", "")), known.get("points", {})
    superseded = ""
    if run is not None and not _goes_on(run, params, before, points):
        superseded, run = run.info.run_id, None
    tags = tags | _tags(one)
    if run is None:
        started = one["started"] or time.time()
        run = writer.client.create_run(
            writer.experiment,
            start_time=int(1000 * started),
            run_name=one.get("name", key),
            tags=tags,
        )
        before, tags = {}, {}
    run_id = run.info.run_id
    sent.runs[key] = {"run_id": run_id, "points": before, "digest": ""}
    if superseded:
        writer.client.set_tag(superseded, SUPERSEDED, run_id)
    new = {name: value for name, value in params.items() if name not in run.data.params}
    _log(writer.client, run_id, _new_points(points, before), new, tags, before)
    _write_inputs(writer.client, run, one["inputs"])
    _write_artifacts(writer, run_id, one["artifacts"])
    ended = one["ended"] or time.time()
    writer.client.set_terminated(run_id, one["status"], end_time=int(1000 * ended))


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


def _goes_on(run: Any, params: Mapping[str, str], before: Points, points: Points) -> bool:
    """Whether a run can become what is stated: MLflow changes no param and takes no point away."""
    if any(run.data.params.get(name, value) != value for name, value in params.items()):
        return False
    return all(set(steps) <= set(points.get(name, {})) for name, steps in before.items())


def _tags(one: dict) -> dict[str, str]:
    note = {"mlflow.note.content": shorten(one["note"])} if one["note"] else {}
    return {name: _text(value) for name, value in one["tags"].items()} | note


def _points(metrics: list) -> Points:
    points: Points = {}
    for name, value, step in metrics:
        steps = points.setdefault(plain_name(name), {})
        if str(step) in steps:
            raise ValueError(f"two metrics are named {plain_name(name)} at step {step}")
        steps[str(step)] = float(value)
    return points


def _new_points(points: Points, before: Points) -> list:
    """The points that the run does not hold yet, as MLflow's entities."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    new = []
    for name, steps in points.items():
        held = before.get(name, {})
        for step, value in steps.items():
            if not _equal(held.get(step), value):
                new.append(Metric(name, value, now, int(step)))
    return new


def _equal(a: float | None, b: float) -> bool:
    return a is not None and (a == b or (math.isnan(a) and math.isnan(b)))


def _log(client: Any, run_id: str, points: list, params: dict, tags: dict, logged: Points) -> None:
    """Log all with as few calls as MLflow's limits allow; `logged` gets each point as it arrives."""
    from mlflow.entities import Param, RunTag

    left_params = [Param(*item) for item in params.items()]
    left_tags = [RunTag(*item) for item in tags.items()]
    while points or left_params or left_tags:
        client.log_batch(
            run_id,
            metrics=points[:METRICS_PER_BATCH],
            params=left_params[:PARAMS_PER_BATCH],
            tags=left_tags[:PARAMS_PER_BATCH],
        )
        for point in points[:METRICS_PER_BATCH]:
            logged.setdefault(point.key, {})[str(point.step)] = point.value
        points = points[METRICS_PER_BATCH:]
        left_params = left_params[PARAMS_PER_BATCH:]
        left_tags = left_tags[PARAMS_PER_BATCH:]


def _write_inputs(client: Any, run: Any, inputs: list[dict]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    held = {
        (item.dataset.name, item.dataset.digest)
        for item in (run.inputs.dataset_inputs if run.inputs else ())
    }
    entities = []
    for one in inputs:
        if (one["name"], one["digest"]) not in held:
            kind = one["source"].partition("://")[0] if "://" in one["source"] else "local"
            source, profile = json.dumps({"uri": one["source"]}), json.dumps(one["profile"])
            dataset = Dataset(one["name"], one["digest"], kind, source, profile=profile)
            tag = InputTag("mlflow.data.context", one["context"])
            entities.append(DatasetInput(dataset, [tag]))
    if entities:
        client.log_inputs(run.info.run_id, entities)


def _write_artifacts(writer: Writer, run_id: str, artifacts: dict[str, dict]) -> None:
    """One call for all of a run's files."""
    if not artifacts:
        return
    from mlflow.tracking._tracking_service import utils

    # by run id MLflow remembers where artifacts went, even after the workspace has moved
    utils._artifact_repos_cache.pop(run_id, None)
    with tempfile.TemporaryDirectory() as place:
        for name, artifact in artifacts.items():
            copy = Path(place, name)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content(writer.store, artifact))
        writer.client.log_artifacts(run_id, place)


def _long_params_to_files(one: dict) -> dict:
    """Params longer than MLflow keeps become artifacts, and the param says where the whole is."""
    params, artifacts = dict(one["params"]), dict(one["artifacts"])
    for key, value in one["params"].items():
        text = _text(value)
        if len(text) > PARAM_LENGTH:
            name = f"params/{re.sub(r'[^A-Za-z0-9._-]', '_', key)}.txt"
            artifacts[name] = {"base64": base64.b64encode(text.encode()).decode()}
            params[key] = (
                f"{len(text)} characters, whole in the artifact {name}, "
                f"fingerprint {fingerprint(text)}"
            )
    return one | {"params": params, "artifacts": artifacts}


def shorten(text: str) -> str:
    """A text within what MLflow keeps of a tag, cut between two lines."""
    if len(text) <= TAG_LENGTH:
        return text
    kept = text[: TAG_LENGTH - 100].rpartition("\n")[0]
    return f"{kept}\n\n… the whole is in the artifacts."


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def plain_name(name: str) -> str:
    """A name of the characters that MLflow takes."""
    return re.sub(r"[^\w\-. /:]", "_", name)
