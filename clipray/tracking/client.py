"""The MLflow server or database of a config: its address, a silent client, and experiments in their place."""

import contextlib
import io
import logging
import os
import re
import shlex
import socket
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit
from urllib.request import getproxies

from clipray.config import Tracking
from clipray.errors import TrackingError
from clipray.secrets import redacted
from clipray.store import Store
from clipray.tracking.records import folder

DATABASE = "mlflow.db"
ARTIFACTS = "mlflow-artifacts"
DEFAULT = "mlruns/0"  # of MLflow's experiment "Default", below the folder that a process runs in
BESIDE = "clipray.artifacts"  # marks experiments whose artifacts lie beside their database
KIND = ("mlflow.experimentKind", "custom_model_development")  # opens as an experiment of models
HTTP = ("http://", "https://")
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
LOCKED = 600  # seconds to wait for another campaign to let go of a database


class Patience(NamedTuple):
    """How long a server may take."""

    timeout: int  # seconds for each request
    retries: int
    ours: bool  # whether it stands above MLflow's variables in the user's environment


CHECKING = Patience(10, 1, True)
WORKING = Patience(30, 3, False)  # MLflow's own 120 s and 7 retries block for minutes


def database(name: str, store: Store) -> str:
    """Where the workspace's own database is: one for all, or one for each campaign where it is not local.

    A remote database is worked on as a local copy, and the copy of another campaign would overwrite it.
    """
    return DATABASE if store.local else f"{folder(name)}/{DATABASE}"


def address(name: str, store: Store, tracking: Tracking) -> str:
    """The server or database, without secrets."""
    if tracking.uri:
        return redacted(tracking.uri)
    place = store.place(database(name, store))
    return f"sqlite:///{place}" if store.local else place


def command(name: str, store: Store, tracking: Tracking, place: str = "") -> str:
    """What shows the runs. `place` is a run's page below a server's address."""
    found = address(name, store, tracking)
    if found.startswith(HTTP):
        return f"open {found.rstrip('/')}{place} in a browser"
    if tracking.uri or store.local:
        return f"mlflow ui --backend-store-uri {shlex.quote(found)}"
    return f"aws s3 cp {shlex.quote(found)} . && mlflow ui --backend-store-uri sqlite:///{DATABASE}"


def reason(error: Exception, *uris: str) -> str:
    """An error of MLflow or of what lies below it, in short and without secrets."""
    text = " ".join(str(error).split())
    for sign in ("Connection refused", "Name or service not known", "timed out", "Read timed out"):
        if sign in text:
            return sign.lower()
    if found := re.search(r"\(found version (\w+)", text):
        return _other_schema(found.group(1))
    if "Can't locate revision" in text:
        return _other_schema("")
    return redacted(f"{type(error).__name__}: {text}", *uris)[:300]


def _other_schema(revision: str) -> str:
    """What to do with a database whose schema is not that of the installed MLflow."""
    import mlflow

    known = Path(mlflow.__file__).parent / "store" / "db_migrations" / "versions"
    if revision and list(known.glob(f"{revision}*")):
        return (
            f"its schema {revision} is older than MLflow {mlflow.__version__}: back it up, then "
            "`mlflow db upgrade URI`"
        )
    return (
        f"its schema {revision or '(unknown)'} is newer than MLflow {mlflow.__version__}: install "
        "the MLflow that wrote it, or name another database"
    )


@contextlib.contextmanager
def opened(
    name: str, store: Store, tracking: Tracking, patience: Patience = WORKING
) -> Iterator[tuple[Any, str, str]]:
    """A silent client, the experiment's id, and the URI; a remote workspace's database is worked on as a copy."""
    with tempfile.TemporaryDirectory() as place, silent(), _patient(patience):
        uri, copy, path = tracking.uri, None, database(name, store)
        if not uri and not store.local:
            copy = Path(place) / DATABASE
            uri = f"sqlite:///{copy}"
            if store.exists(path):
                copy.write_bytes(store.read(path))
        elif not uri:
            uri = f"sqlite:///{store.place(path)}"
        try:
            with locked(uri):
                client, experiment = _ready(uri, store, tracking)
            yield client, experiment, uri
        finally:
            if copy is not None and copy.exists():
                store.write(path, copy.read_bytes())


def _ready(uri: str, store: Store, tracking: Tracking) -> tuple[Any, str]:
    file = file_of(uri)
    if file is None:
        _reach(uri)
    else:
        _write_to(file)
    _mlflow()
    from mlflow.store.db import utils

    tries, utils.MAX_RETRY_COUNT = utils.MAX_RETRY_COUNT, 2  # ten take two minutes
    try:
        # else models would go to whatever registry this process was pointed to
        client = _mlflow().MlflowClient(tracking_uri=uri, registry_uri=uri)
    finally:
        utils.MAX_RETRY_COUNT = tries
    if file is not None:
        relocate(file, _artifacts(uri, store, tracking), not tracking.uri)
    return client, _experiment(client, uri, store, tracking)


def _reach(uri: str) -> None:
    """Connect to the server's port: MLflow would ask a server that is gone again and again, for minutes."""
    parts = urlsplit(uri)
    port = PORTS.get(parts.scheme.partition("+")[0]) if parts.port is None else parts.port
    if not parts.hostname or port is None or (uri.startswith(HTTP) and getproxies()):
        return
    socket.create_connection((parts.hostname, port), timeout=CHECKING.timeout).close()


def _local(store: Store, tracking: Tracking) -> str:
    """The URI that a local workspace's runs go to: the config's, or that of its own database."""
    return tracking.uri or f"sqlite:///{store.place(DATABASE)}"


def is_new(name: str, store: Store, tracking: Tracking) -> bool:
    """Tell whether MLflow has yet to make its tables in an sqlite file, which can be written.

    Raises:
        sqlite3.Error, OSError: it cannot be.
    """
    if not tracking.uri and not store.local:
        return not store.exists(database(name, store))
    uri = _local(store, tracking)
    file = file_of(uri)
    if file is None:
        return False
    with locked(uri):
        _write_to(file)
        with contextlib.closing(sqlite3.connect(file, timeout=20)) as own:
            return own.execute("SELECT 1 FROM sqlite_master").fetchone() is None


def _write_to(file: Path) -> None:
    """Raise what sqlite says of a file that cannot be written, is no database or stays locked."""
    with contextlib.closing(sqlite3.connect(file, timeout=20, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        database.execute("ROLLBACK")


@contextlib.contextmanager
def locked(uri: str) -> Iterator[None]:
    """No other process of ours writes to this sqlite file; other databases and servers need no lock."""
    from filelock import FileLock, Timeout

    file = file_of(uri)
    if file is None:
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{file}.lock", timeout=LOCKED):
            yield
    except Timeout as error:
        raise TrackingError(f"{file} is in use by another process") from error


def file_of(uri: str) -> Path | None:
    """The file of an sqlite database; None for anything else."""
    if not uri.startswith("sqlite:"):
        return None
    path = uri.partition("///")[2].partition("?")[0]
    return Path(path).absolute() if path and path != ":memory:" else None


def _artifacts(uri: str, store: Store, tracking: Tracking) -> str:
    """Where a new experiment's artifacts go: into the workspace, or beside an sqlite file of one's own."""
    file = file_of(uri)
    if tracking.uri and file is not None:
        return (file.parent / ARTIFACTS).as_uri()
    return Path(store.place(ARTIFACTS)).as_uri() if store.local else store.place(ARTIFACTS)


def settle(store: Store, tracking: Tracking) -> None:
    """Let an sqlite database, wherever it was moved to, point to the artifacts beside it."""
    if not tracking.uri and not store.local:
        return  # its copy is settled when it is opened
    uri = _local(store, tracking)
    if (file := file_of(uri)) is not None:
        relocate(file, _artifacts(uri, store, tracking), not tracking.uri)


def relocate(file: Path, artifacts: str, own: bool) -> None:
    """Let a database that was moved or copied point to the artifacts beside it.

    MLflow keeps the absolute place of an experiment's and of each run's artifacts, and has no call to
    change it. Without this, a moved workspace would write to where it was, and a copy into its original.

    Args:
        file: the sqlite file.
        artifacts: where the artifacts lie now, as a URI.
        own: whether all experiments in it are of this workspace; else only marked ones are changed.
    """
    if not file.exists():
        return
    marked = "SELECT experiment_id FROM experiment_tags WHERE key = ?"
    with contextlib.closing(sqlite3.connect(file, timeout=20)) as database, database:
        if not database.execute(
            "SELECT 1 FROM sqlite_master WHERE name = 'experiment_tags'"
        ).fetchone():
            return
        rows = database.execute(
            "SELECT experiment_id, artifact_location FROM experiments WHERE artifact_location != ?"
            " AND (artifact_location LIKE ? OR artifact_location LIKE ?)"
            f" AND (? OR experiment_id IN ({marked}))",
            (artifacts, f"%/{ARTIFACTS}", f"%/{DEFAULT}", own, BESIDE),
        ).fetchall()
        for experiment, before in rows:
            database.execute(
                "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?)"
                " WHERE experiment_id = ? AND substr(artifact_uri, 1, ?) = ?",
                (artifacts, len(before) + 1, experiment, len(before) + 1, before + "/"),
            )
            database.execute(
                "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?",
                (artifacts, experiment),
            )


def _experiment(client: Any, uri: str, store: Store, tracking: Tracking) -> str:
    """The id of the experiment, which is made, restored and marked where it has to be."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(tracking.experiment)
    if found is None:
        # a server has an artifact store of its own
        place = None if uri.startswith(HTTP) else _artifacts(uri, store, tracking)
        tags = dict([KIND]) | ({} if file_of(uri) is None else {BESIDE: "beside the database"})
        try:
            return client.create_experiment(tracking.experiment, artifact_location=place, tags=tags)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(tracking.experiment)  # made in this moment
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    if KIND[0] not in found.tags:
        client.set_experiment_tag(found.experiment_id, *KIND)
    return found.experiment_id


def page(experiment: str, run_id: str) -> str:
    """A run's page, below a server's address."""
    return f"/#/experiments/{quote(experiment)}/runs/{quote(run_id)}"


@contextlib.contextmanager
def _patient(patience: Patience) -> Iterator[None]:
    """MLflow's patience with a server, for a while; afterwards all is as it was before."""
    wanted = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(patience.timeout),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(patience.retries),
    }
    before = {key: os.environ.get(key) for key in wanted}
    for key, value in wanted.items():
        if patience.ours or before[key] is None:
            os.environ[key] = value
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """No word of MLflow, of its migrations or of urllib3's retries: they quote URIs, and errors say enough.

    A job's last line of stdout is a contract, so what MLflow prints goes nowhere too.
    """
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic", "urllib3")]
    before = [logger.level for logger in loggers]
    with contextlib.redirect_stdout(io.StringIO()):
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


def _mlflow() -> Any:
    """MLflow without telemetry and without handlers of its own."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")
    import mlflow

    return mlflow
