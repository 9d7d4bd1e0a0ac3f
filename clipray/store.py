"""Where an artefact lives, local or at `s3://` alike: atomic writes, the manifest last, reads sorted by `image_id`.

An artefact is a folder whose address is its kind, its names and the fingerprint of its WHAT. It is complete when its
`manifest.json` is there; parts without one are resumed or overwritten, never read as complete.
"""

import contextlib
import errno
import functools
import io
import json
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from clipray import secrets
from clipray.errors import DamagedError, StoreError
from clipray.fingerprint import fingerprint, plain
from clipray.patience import is_s3, patient, whole

MANIFEST = "manifest.json"
PAGE = 1000  # files of a page of a listing; S3 gives no more
END = chr(0x10FFFF)  # behind every name
VERSIONS = (
    "clipray",
    "torch",
    "open_clip_torch",
    "pillow",
    "pyarrow",
    "ray",
    "numpy",
    "scikit-learn",
)

REMEDIES = {
    errno.ENOSPC: "make room there, or give another place: --set workspace=…",
    errno.EDQUOT: "make room there, or give another place: --set workspace=…",
    errno.EROFS: "give a place that can be written to: --set workspace=…",
    errno.EACCES: "give its owner or mode the right to, or another place: --set workspace=…",
    errno.EPERM: "give its owner or mode the right to, or another place: --set workspace=…",
    errno.ENOTDIR: "a part of that path is a file: give a folder, --set workspace=…",
    errno.EEXIST: "a part of that path is a file: give a folder, --set workspace=…",
    errno.EISDIR: "a folder stands where a file should be: remove it",
    errno.ENAMETOOLONG: "shorten the names in the config",
}


class Page(NamedTuple):
    """A part of a listing.

    Attributes:
        versions: by path, what changes with the file's bytes.
        last: no file is left out up to this path.
    """

    versions: dict[str, str]
    last: str


class Store:
    """The artefacts of one workspace.

    Args:
        workspace: a local folder or a URI that fsspec knows, such as `s3://bucket/prefix`.
    """

    def __init__(self, workspace: str):
        workspace = workspace.removeprefix("file://")
        self.local = "://" not in workspace
        self.uri = (
            str(Path(workspace).expanduser().absolute()) if self.local else workspace.rstrip("/")
        )
        fs, self.root = fsspec.core.url_to_fs(self.uri, use_listings_cache=False)
        self.fs = patient(fs)

    def __reduce__(self):
        return Store, (self.uri,)

    def address(self, kind: str, *names: str, what: Any) -> str:
        """Return an artefact's folder, relative to the workspace."""
        return "/".join((kind, *names)) + f"-{fingerprint(what)}"

    def place(self, path: str) -> str:
        """Return the full path or URI of a relative path, for people and other programs."""
        return f"{self.uri}/{path}"

    def exists(self, path: str) -> bool:
        """Tell whether a file is there."""
        with self._told("read", path):
            return self.fs.exists(f"{self.root}/{path}")

    def names(self, address: str) -> set[str]:
        """List the file names in a folder; empty where it is not there."""
        with self._told("read", address):
            try:
                paths = self.fs.ls(f"{self.root}/{address}", detail=False)
            except FileNotFoundError:
                return set()
        return {Path(path).name for path in paths}

    def write(self, path: str, data: bytes) -> None:
        """Write a file whole or not at all: by a rename locally, by a single put remotely.

        Raises:
            StoreError: it cannot be written; what stood there before still does, and nothing else is left behind.
        """
        target = f"{self.root}/{path}"
        with self._told("written", path):
            if not self.local:
                self.fs.pipe_file(target, data)
                return
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            part = Path(f"{target}.{time.time_ns()}.part")
            try:
                part.write_bytes(data)
                part.replace(target)
            except BaseException:
                part.unlink(missing_ok=True)
                raise

    def read(self, path: str) -> bytes:
        """Read a file's bytes; raise `FileNotFoundError` where it is not there."""
        with self._told("read", path):
            return self.fs.cat_file(f"{self.root}/{path}", **whole(self.fs))

    def read_many(self, paths: Sequence[str]) -> list[bytes | None]:
        """Read files that are asked for together; None for each one that is not there."""
        places = [f"{self.root}/{path}" for path in paths]
        # None: from beginning to end. Threads would take longer: the file system asks for all of them from one
        answers = self.fs.cat_ranges(places, None, None, **whole(self.fs))
        for path, answer in zip(paths, answers, strict=True):
            with self._told("read", path):
                if isinstance(answer, Exception) and not isinstance(answer, FileNotFoundError):
                    raise answer
        return [None if isinstance(answer, Exception) else answer for answer in answers]

    @property
    def paged(self) -> bool:
        """Whether `page` lists it: whether it lies in an S3 bucket."""
        return is_s3(self.fs)

    def page(self, folder: str, after: str) -> "Page":
        """List one page of the files below a folder of a bucket, in the order of their paths, in one request.

        Args:
            after: the path, of a file or not, behind which the page begins.
        """
        bucket, root, _ = self.fs.split_path(f"{self.root}/")
        asked = {"Bucket": bucket, "Prefix": f"{root}{folder}/", "StartAfter": f"{root}{after}"}
        with self._told("read", folder):
            try:
                answer = self.fs.call_s3("list_objects_v2", MaxKeys=PAGE, **asked)
            except FileNotFoundError:  # no such bucket
                return Page({}, f"{folder}/{END}")
        entries = answer.get("Contents", ())
        versions = {entry["Key"].removeprefix(root): entry["ETag"] for entry in entries}
        return Page(versions, max(versions) if answer["IsTruncated"] else f"{folder}/{END}")

    def files(self) -> Iterator[tuple[str, int, float]]:
        """Yield path, bytes and time (seconds since 1970) of every file of the workspace, from one paged listing."""
        with self._told("read", ""):
            found = self.fs.find(self.root, detail=True)
        root = self.root.rstrip("/") + "/"
        for path, facts in found.items():
            time_of = facts.get("mtime") or facts.get("LastModified") or facts.get("created")
            modified = time_of.timestamp() if hasattr(time_of, "timestamp") else float(time_of or 0)
            yield path.removeprefix(root), int(facts.get("size") or 0), modified

    def remove(self, path: str) -> None:
        """Remove a file, or a folder with all that is in it; do nothing where it is not there."""
        with self._told("removed", path), contextlib.suppress(FileNotFoundError):
            self.fs.rm(f"{self.root}/{path}", recursive=True)

    def clear(self, address: str, prefix: str) -> None:
        """Remove the files of a folder whose names begin so."""
        paths = [f"{self.root}/{address}/{name}" for name in self.names(address)]
        gone = [path for path in paths if path.rpartition("/")[2].startswith(prefix)]
        if gone:
            with self._told("removed", address), contextlib.suppress(FileNotFoundError):
                self.fs.rm(gone)

    @contextlib.contextmanager
    def _told(self, done: str, path: str) -> Iterator[None]:
        """Tell what the file system or the service answers as a `StoreError`, save that a file is not there.

        fsspec's file systems raise `OSError` for what the service refuses; botocore's own errors, such as an endpoint
        that does not answer, derive from `Exception` alone.
        """
        try:
            yield
        except StoreError:
            raise
        except Exception as error:
            if isinstance(error, FileNotFoundError) and done in ("read", "removed"):
                raise
            if self.local and not isinstance(error, OSError):
                raise  # a fault of ours
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            number = getattr(error, "errno", None)
            remedy = REMEDIES.get(number, "see that the workspace's place is there and reachable")
            raise StoreError(f"{self.place(path)} cannot be {done} ({reason}): {remedy}") from error

    def write_table(self, path: str, table: pa.Table) -> None:
        """Write a Parquet file; equal tables give equal bytes."""
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        self.write(path, sink.getvalue())

    def read_table(self, path: str, columns: list[str] | None = None) -> pa.Table:
        """Read a Parquet file.

        Raises:
            DamagedError: it is not whole.
        """
        try:
            return pq.read_table(pa.BufferReader(self.read(path)), columns=columns)
        except pa.ArrowInvalid as error:
            raise self._damaged(path, f"is not a whole Parquet file ({error})") from error

    def write_json(self, path: str, value: Any) -> None:
        """Write a value as JSON."""
        self.write(path, (json.dumps(value, indent=2, default=str) + "\n").encode())

    def read_json(self, path: str) -> Any:
        """Read a JSON file; return None where it is not there."""
        (data,) = self.read_many([path])
        return self._parsed(path, data)

    def _parsed(self, path: str, data: bytes | None) -> Any:
        if data is None:
            return None
        try:
            return json.loads(data)
        except ValueError as error:
            raise self._damaged(path, f"is not whole JSON ({error})") from error

    def _damaged(self, path: str, words: str) -> DamagedError:
        """Make the error of a damaged file; the remedy is to remove the whole folder, for no part is made alone."""
        folder = self.place(path.rpartition("/")[0])
        return DamagedError(
            f"{self.place(path)} {words}: remove the folder {folder}, and run again"
        )

    def manifest(self, address: str) -> dict | None:
        """Read a complete artefact's manifest; None where it is not complete."""
        return self.read_json(f"{address}/{MANIFEST}")

    def manifests(self, addresses: Iterable[str]) -> list[dict | None]:
        """Read the manifest of each address, as `manifest` gives it, many at a time."""
        paths = [f"{address}/{MANIFEST}" for address in addresses]
        found = zip(paths, self.read_many(paths), strict=True)
        return [self._parsed(path, data) for path, data in found]

    def finish(self, address: str, what: Any, **facts: Any) -> None:
        """Declare an artefact complete.

        Args:
            address: its folder.
            what: the WHAT that its address was made of.
            facts: counts, times and other things that a reader wants to know.
        """
        self.write_json(
            f"{address}/{MANIFEST}",
            {"what": secrets.clean(plain(what)), **facts, **provenance(), "written": _now()},
        )

    def tables(self, address: str, names: list[str], columns: list[str] | None = None) -> pa.Table:
        """Read a complete artefact's Parquet parts as one table, sorted by `image_id`.

        Raises:
            FileNotFoundError: it has no manifest.
            DamagedError: a part is missing or not whole.
        """
        if self.manifest(address) is None:
            raise FileNotFoundError(f"{self.place(address)} is not complete: it has no {MANIFEST}")
        parts = [self._part(f"{address}/{name}", columns) for name in sorted(names)]
        return pa.concat_tables(parts).sort_by("image_id")

    def _part(self, path: str, columns: list[str] | None) -> pa.Table:
        try:
            return self.read_table(path, columns)
        except FileNotFoundError as error:
            raise self._damaged(path, "is not there any more") from error


@functools.cache
def provenance() -> dict:
    """Collect the versions of what computes, the git commit, and whether the tree differs from it."""
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    return {
        "versions": {name: version for name in VERSIONS if (version := _version(name))},
        "commit": commit,
        "dirty": None if commit is None else bool(changes),
    }


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
