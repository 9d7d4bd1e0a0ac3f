"""Where results are recorded: MLflow, and this is the only door to it.

`record` states what the runs of a campaign must hold (one parent run, and runs below it), keeps the
statement in the workspace, and makes it so. Stating the same again changes nothing and costs nothing
(MLflow, 6 s to import, is then not even loaded); stating more adds what is missing. What cannot be
sent is kept: `send` makes up for it, and `python -m jobs.track` calls that.

    tracking/<name>/record.json    what the runs must hold
    tracking/<name>/sent.json      by server and experiment: the runs' ids, and what they hold

Each campaign has files of its own, so two at a time lose nothing of each other's. One campaign that
runs twice at a time takes turns where the workspace is local; at `s3://` there is no lock, and the
later one of the two wins.
"""

import contextlib
import getpass
import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from clipray.config import Tracking
from clipray.errors import ConfigError
from clipray.secrets import HIDDEN, redacted
from clipray.store import Store
from clipray.tracking import client, records, runs
from clipray.tracking.client import ARTIFACTS, DATABASE
from clipray.tracking.records import Input, Metric, Record, names

__all__ = [
    "ARTIFACTS",
    "DATABASE",
    "Input",
    "Metric",
    "Record",
    "check",
    "names",
    "origin",
    "record",
    "send",
    "stated",
    "wanted",
]

SENT = "sent.json"
EXPERIMENT_LENGTH = 500  # MLflow's limit


def record(
    name: str,
    workspace: str,
    tracking: Tracking,
    parent: Record,
    children: Mapping[str, Record] | None = None,
) -> dict:
    """State what the runs of a campaign must hold, and send what is missing.

    Args:
        name: the campaign, and the parent run's name.
        workspace: a local folder or a URI; by default the database and the artifacts live in it too.
        tracking: the server and the experiment.
        parent: what the campaign's run holds.
        children: what the runs below it hold, by their names.

    Returns:
        `tracking_uri`, `experiment`, `run_id` (the parent's), `open` (what shows the runs) and `written`
        (whether anything was). Where MLflow fails, `error` says why and `send` is the command that sends
        later. With tracking disabled the statement is kept, all are None, and `written` is False.
    """
    store = Store(workspace)
    statement = {
        "tracking": _described(tracking),
        "parent": records.dump(store, parent),
        "children": {key: records.dump(store, one) for key, one in (children or {}).items()},
    }
    _keep(store, f"{records.folder(name)}/{records.STATEMENT}", statement)
    return send(name, workspace, tracking)


def send(name: str, workspace: str, tracking: Tracking, verify: bool = False) -> dict:
    """Send what is stated and missing.

    Args:
        name: of what was recorded.
        workspace: where it was.
        tracking: the server and the experiment.
        verify: look at the server whether the runs are still there.

    Returns:
        as `record`.
    """
    told = dict.fromkeys(("tracking_uri", "experiment", "run_id", "open"))
    if not tracking.enabled:
        return told | {"written": False}
    store = Store(workspace)
    told["tracking_uri"] = client.address(name, store, tracking)
    told["experiment"] = tracking.experiment
    try:
        return told | _send(name, store, tracking, verify)
    except Exception as error:  # whatever it is, results are kept and a campaign ends well
        words = client.reason(error, tracking.uri)
        return told | {
            "written": False,
            "error": f"MLflow has not all of {name} ({told['tracking_uri']}: {words})",
            "send": send_command(name, store, tracking),
        }


def _keep(store: Store, path: str, value: dict) -> None:
    """JSON without spaces: hundreds of methods on many datasets are tens of thousands of numbers."""
    store.write(path, json.dumps(value, separators=(",", ":"), default=str).encode())


def send_command(name: str, store: Store, tracking: Tracking) -> str:
    """What sends later what is not sent yet."""
    words = ["python", "-m", "jobs.track", store.uri, name]
    if _described(tracking)["uri"] != tracking.uri:
        words += ["--set", "tracking.uri=URI"]
    return shlex.join(words)


def _send(name: str, store: Store, tracking: Tracking, verify: bool) -> dict:
    folder = records.folder(name)
    with _turn(store, folder):
        data = store.read(f"{folder}/{records.STATEMENT}")
        every = store.read_json(f"{folder}/{SENT}") or {}
        home = f"{_described(tracking)['uri']} {tracking.experiment}".strip()
        own = not tracking.uri
        there = not own or store.exists(client.database(name, store))
        sent = runs.Sent(**every.get(home, {})) if there else runs.Sent()
        digest = hashlib.sha256(data).hexdigest()
        written = False
        if verify or sent.complete != digest:

            def save() -> None:
                _keep(store, f"{folder}/{SENT}", every | {home: vars(sent)})

            with client.opened(name, store, tracking) as (door, experiment, uri):
                writer = runs.Writer(door, experiment, uri, store, verify)
                sent.experiment = experiment
                try:
                    written = runs.write(writer, name, json.loads(data), sent, save)
                    sent.complete = digest
                finally:
                    save()
        else:
            client.settle(store, tracking)
    run_id = sent.runs[name]["run_id"]
    place = client.page(sent.experiment, run_id)
    return {
        "run_id": run_id,
        "open": client.command(name, store, tracking, place),
        "written": written,
    }


@contextlib.contextmanager
def _turn(store: Store, folder: str) -> Iterator[None]:
    """One process at a time sends a campaign's runs, where the workspace is local."""
    with client.locked(f"sqlite:///{store.root}/{folder}/{SENT}" if store.local else ""):
        yield


def _described(tracking: Tracking) -> dict:
    """The server and the experiment, without secrets."""
    return {"uri": redacted(tracking.uri), "experiment": tracking.experiment}


def stated(name: str, workspace: str) -> bool:
    """Whether a workspace has a record of this name."""
    return Store(workspace).exists(f"{records.folder(name)}/{records.STATEMENT}")


def wanted(name: str, workspace: str) -> dict:
    """The server and the experiment that a record was made for, without secrets."""
    statement = Store(workspace).read_json(f"{records.folder(name)}/{records.STATEMENT}")
    return statement["tracking"]


def origin(job: str, known: Mapping[str, Any]) -> dict[str, str]:
    """The tags from which MLflow's UI takes source, user and version.

    Args:
        job: the module that ran, as in `jobs.run`.
        known: `store.provenance()`.
    """
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        user = ""
    tags = {
        "mlflow.user": user,
        "mlflow.source.name": f"python -m {job}",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": known.get("commit"),
    }
    return {key: value for key, value in tags.items() if value}


def check(name: str, workspace: str, tracking: Tracking) -> None:
    """Look before work starts whether the runs can be written.

    It takes seconds, and loads MLflow, save for a database that MLflow has yet to make: that has only to be writable.

    Args:
        name: the campaign. workspace: where it writes to. tracking: the server and the experiment.

    Raises:
        ConfigError: the server is not there or says no, the database cannot be written or has the schema
            of another MLflow, or the experiment's name cannot be one.
    """
    if not tracking.enabled:
        return
    check_experiment(tracking)
    store = Store(workspace)
    try:
        if client.is_new(name, store, tracking):
            return
        with client.opened(name, store, tracking, client.CHECKING):
            return
    except Exception as error:
        found = client.address(name, store, tracking)
        raise ConfigError(
            f"tracking: MLflow cannot record at {found}: {client.reason(error, tracking.uri)}. "
            "Mend that or tracking.uri; or `--set tracking.enabled=false` runs without, and "
            f"`python -m jobs.track {store.uri} {name}` records the results later."
        ) from None


def check_experiment(tracking: Tracking) -> None:
    """`ConfigError` for an experiment's name that MLflow refuses, or a URI whose secrets were taken out."""
    if not tracking.experiment.strip() or len(tracking.experiment) > EXPERIMENT_LENGTH:
        raise ConfigError(
            f"tracking.experiment: a name of 1 to {EXPERIMENT_LENGTH} characters, not "
            f"{tracking.experiment[:60]!r}"
        )
    if HIDDEN in tracking.uri:
        raise ConfigError(
            f"tracking.uri: in {tracking.uri} a secret was replaced by {HIDDEN}. Give the whole: "
            "--set tracking.uri=URI; for a server, MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD in the environment do instead."
        )
