"""Fused models in MLflow's registry: registered once per content, found again by `models:/<name>@<alias>`.

A model is logged as a pyfunc whose loader is a module of clipray (`clipray.fused`) and whose data are the model's
folder as it is, so nothing is pickled. The package's source goes along: a server needs no installed clipray.
"""

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import clipray
from clipray.config import Tracking
from clipray.errors import ConfigError
from clipray.secrets import redacted
from clipray.store import Store
from clipray.tracking import client

DIGEST, RUN = "clipray.digest", "clipray.run"
LOADER = "clipray.fused"
OUTPUT = (  # (column, MLflow's type) of what a model answers
    ("image_id", "string"),
    ("label", "string"),
    ("class", "long"),
    ("probability", "double"),
    ("gflops", "double"),
    ("error", "string"),
)


def register(
    record: str,
    store: Store,
    tracking: Tracking,
    run_id: str,
    name: str,
    folder: str,
    digest: str,
    alias: str,
    requirements: Sequence[str],
    example: bytes,
    metrics: Mapping[str, float],
    note: str,
) -> dict[str, str]:
    """Register a fused model under a name, unless this very model is there, and let the alias point to it.

    Args:
        record: the name that its run was recorded by. run_id: that run.
        folder: the model, on this machine. digest: of all of it.
        requirements: what a server installs, as pip takes it.
        example: an encoded image. note: what the registry says of the version.

    Returns:
        `name`, `version`, `alias`, `uri`; with `error` where MLflow failed.
    """
    told = {"name": name, "alias": alias, "uri": f"models:/{name}@{alias}"}
    try:
        with client.opened(record, store, tracking) as (door, _, uri), client.locked(uri):
            version = _version(door, name, digest)
            if version is None:
                with _at(uri):
                    version = _log(door, run_id, name, folder, requirements, example, metrics, note)
                for key, value in {DIGEST: digest, RUN: run_id, **_texts(metrics)}.items():
                    door.set_model_version_tag(name, version, key, value)
            door.set_registered_model_alias(name, alias, version)
        return told | {"version": str(version)}
    except Exception as error:  # whatever it is, the model is kept
        return told | {"error": client.reason(error, tracking.uri)}


def _texts(metrics: Mapping[str, float]) -> dict[str, str]:
    return {key: f"{value:.6g}" for key, value in metrics.items()}


def _version(door: Any, name: str, digest: str) -> str | None:
    """The version that holds this very model; None where there is none."""
    found = door.search_model_versions(f"name='{name}'")
    same = [one for one in found if one.tags.get(DIGEST) == digest]
    return max((one.version for one in same), key=int, default=None)


def _log(
    door: Any,
    run_id: str,
    name: str,
    folder: str,
    requirements: Sequence[str],
    example: bytes,
    metrics: Mapping[str, float],
    note: str,
) -> str:
    """Log the model to its run and register it; its version."""
    import mlflow
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    inputs = Schema([ColSpec(DataType.binary, "image")])
    outputs = Schema([ColSpec(kind, column, required=False) for column, kind in OUTPUT])
    with mlflow.start_run(run_id=run_id):
        info = mlflow.pyfunc.log_model(
            name="fused_model",
            loader_module=LOADER,
            data_path=folder,
            code_paths=[str(Path(clipray.__file__).parent)],
            pip_requirements=list(requirements),
            signature=ModelSignature(inputs, outputs),
            input_example=pd.DataFrame({"image": [example]}),
            registered_model_name=name,
            metadata={"clipray": clipray.__version__},
        )
        mlflow.log_metrics(dict(metrics), model_id=info.model_id, run_id=run_id)
    version = str(info.registered_model_version)
    door.update_model_version(name, version, description=note)
    return version


@contextlib.contextmanager
def _at(uri: str) -> Iterator[None]:
    """MLflow's own calls go to this server or database for a while, and what they print goes nowhere.

    MLflow puts into the environment what is set. So that tells what was set before, and if nothing was, that the
    registry is to follow the tracking URI again, which `get_registry_uri` would not.
    """
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI"), os.environ.get("MLFLOW_REGISTRY_URI")
    if uri:
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        mlflow.set_tracking_uri(before[0])
        mlflow.set_registry_uri(before[1])
        if before[1] is None:  # MLflow forgets it, and leaves the variable
            os.environ.pop("MLFLOW_REGISTRY_URI", None)


def download(uri: str, tracking_uri: str = "") -> str:
    """The folder of a registered model, on this machine.

    Args:
        uri: `models:/<name>@<alias>` or `models:/<name>/<version>`.
        tracking_uri: the server or database; by default as MLflow itself finds it.

    Raises:
        ConfigError: there is none, or it cannot be fetched.
    """
    target = tempfile.mkdtemp(prefix="clipray-model-")
    try:
        with client.silent(), _at(tracking_uri):
            import mlflow

            return mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=target)
    except Exception as error:  # of MLflow, its store or the network
        shutil.rmtree(target, ignore_errors=True)
        where = f" at {redacted(tracking_uri)}" if tracking_uri else ""
        raise ConfigError(
            f"{uri}{where} cannot be fetched ({client.reason(error, tracking_uri)}): see the registered names and "
            "aliases with `mlflow ui`; tracking.uri (MLFLOW_TRACKING_URI in a notebook) names the server or database"
        ) from None


def registered(uri: str, store: Store, tracking: Tracking) -> str:
    """As `download`, from the server of a config or the workspace's own database."""
    name = uri.removeprefix("models:/").partition("@")[0].partition("/")[0]
    try:
        with client.opened(f"fit/{name}", store, tracking) as (_, _, place):
            return download(uri, place)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{uri}: MLflow cannot be asked ({client.reason(error, tracking.uri)}): mend tracking.uri"
        ) from None
