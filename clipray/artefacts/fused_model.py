"""A fused model: one folder of JSON and safetensors, whose manifest has the digest of every other file.

fused_model.json     what it is: format, class names, backbones, head, fuser, figures, provenance
tensors.safetensors  `classifier_CD/<m>`, `head/<m>/<name>` and `fuser/<name>`
weights/…            the backbones' weights and model configs that are files of one's own
manifest.json        written last: the WHAT, and size and sha256 of all files above
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load, save

from clipray.errors import ConfigError
from clipray.store import MANIFEST, Store

FORMAT = 1  # of the folder; a reader refuses any other
FOLDER = "models"
ABOUT, TENSORS, WEIGHTS = "fused_model.json", "tensors.safetensors", "weights"


class Folder(NamedTuple):
    """A whole fused model, read and checked.

    Attributes:
        path: its folder on this machine.
        about: what `fused_model.json` holds.
        tensors: NumPy arrays by name.
        digest: of all of it, equal for equal models wherever they lie.
    """

    path: str
    about: dict[str, Any]
    tensors: dict[str, np.ndarray]
    digest: str


def address(store: Store, name: str, what: Any) -> str:
    """Return the address of a fused model in a workspace."""
    return store.address(FOLDER, name, what=what)


def write(
    store: Store,
    place: str,
    what: Any,
    about: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    weights: Mapping[str, str],
) -> None:
    """Write a fused model.

    Args:
        place: its `address`. what: that it was made of.
        weights: local files to put into it, by their names below `weights/`.
    """
    whole = dict(sorted(tensors.items()))
    parts = {
        ABOUT: (json.dumps({"format": FORMAT, **about}, indent=2) + "\n").encode(),
        TENSORS: save({name: np.ascontiguousarray(value) for name, value in whole.items()}),
    }
    files = {}
    for name, data in parts.items():
        store.write(f"{place}/{name}", data)
        files[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    for name, source in weights.items():
        data = Path(source).read_bytes()
        store.write(f"{place}/{WEIGHTS}/{name}", data)
        digest = hashlib.sha256(data).hexdigest()
        files[f"{WEIGHTS}/{name}"] = {"size": len(data), "sha256": digest}
    store.finish(place, what, format=FORMAT, files=files)


def read(path: str | os.PathLike) -> Folder:
    """Read a fused model from a folder on this machine, and check it file by file.

    Raises:
        ConfigError: it is none, lacks or adds a file, holds a changed one, or is of another format.
    """
    folder = Path(path)
    manifest = _manifest(folder)
    there = {
        str(file.relative_to(folder).as_posix()) for file in folder.rglob("*") if not file.is_dir()
    } - {MANIFEST}
    known = manifest["files"]
    if lacking := sorted(set(known) - there):
        raise ConfigError(f"the fused model {folder} lacks {lacking[0]}: copy the whole folder")
    if added := sorted(there - set(known)):
        raise ConfigError(
            f"the fused model {folder} holds {added[0]}, which is no part of it: remove that file"
        )
    for name, told in known.items():
        if _sha256(folder / name) != told["sha256"]:
            raise ConfigError(
                f"the fused model {folder}: {name} is not the file that was written: its sha256 is not that of "
                f"{MANIFEST}. Copy the folder again, or fit the model anew"
            )
    about = json.loads((folder / ABOUT).read_bytes())
    tensors = load((folder / TENSORS).read_bytes())
    return Folder(str(folder), about, tensors, digest(manifest))


def digest(manifest: Mapping[str, Any]) -> str:
    """Return 32 hex digits of the digests of a model's files."""
    lines = [f"{name} {told['sha256']}" for name, told in sorted(manifest["files"].items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def _manifest(folder: Path) -> dict[str, Any]:
    remedy = "Give the folder that `python -m jobs.fit` told as `model`"
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        seen = "has no manifest.json" if folder.is_dir() else "is not there"
        raise ConfigError(f"{folder} is no fused model: it {seen}. {remedy}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} is no fused model: {MANIFEST}: {error}. {remedy}") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ConfigError(f"{folder} is no fused model: {MANIFEST} lists no files. {remedy}")
    if manifest.get("format") != FORMAT:
        raise ConfigError(
            f"the fused model {folder} has format {manifest.get('format')!r}, this clipray reads {FORMAT}: "
            "fit it anew, or install the clipray that wrote it"
        )
    return manifest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetched(uri: str) -> str:
    """Return a fused model's folder on this machine: itself, or a copy of a remote one.

    A copy is kept by what its manifest says, so that a changed model is fetched anew.

    Raises:
        ConfigError: there is none.
    """
    if "://" not in uri or uri.startswith("file://"):
        return str(Path(uri.removeprefix("file://")).expanduser().absolute())
    store = Store(uri)
    try:
        told = store.read(MANIFEST)
    except FileNotFoundError:
        raise ConfigError(f"{uri} is no fused model: it has no {MANIFEST}") from None
    key = hashlib.sha256(told).hexdigest()[:32]
    target = Path(_cache(), "models", key)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        part = tempfile.mkdtemp(dir=target.parent)
        fs, root = store.fs, store.root
        fs.get(root.rstrip("/") + "/", part + "/", recursive=True)
        try:
            os.rename(part, target)
        except OSError:  # another process was first
            if not target.exists():
                raise
    return str(target)


def inside(folder: str) -> str:
    """Return the fused model's own folder, where MLflow keeps it inside another one."""
    found = sorted(Path(folder).glob(f"data/*/{ABOUT}"))
    return str(found[0].parent) if found and Path(folder, "MLmodel").is_file() else folder


def copy(store: Store, place: str, folder: str) -> None:
    """Copy a model's folder of this machine into a workspace, the manifest last; do nothing where it is there."""
    if store.manifest(place) is not None:
        return
    files = sorted(file for file in Path(folder).rglob("*") if file.is_file())
    files.sort(key=lambda file: file.name == MANIFEST)
    for file in files:
        store.write(f"{place}/{file.relative_to(folder).as_posix()}", file.read_bytes())


def _cache() -> str:
    return os.environ.get("CLIPRAY_CACHE") or str(Path.home() / ".cache" / "clipray")
