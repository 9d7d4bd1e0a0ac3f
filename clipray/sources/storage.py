"""Storage as the layouts touch it: what lies in a folder, what state it is in, and its bytes.

A local path is taken as it is, whatever signs it holds; only what begins with a protocol (`s3://…`) goes through
fsspec, so that a folder and a prefix of a bucket behave alike. Endpoint and credentials come from the usual environment
variables.
"""

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import fsspec

from clipray.errors import ConfigError, StoreError
from clipray.patience import patient, whole
from clipray.sources import junk

READ_AT_ONCE = 32  # files or ranges asked for together of an object store
# Bytes that are read at a time of a file of which little is wanted: two headers of a tar and a label between them, and
# more of an object store, where a request takes as long as some 100 kB.
PIECE, FAR_PIECE = 2**11, 2**14
GONE = (FileNotFoundError, IsADirectoryError, PermissionError)
ONE_FILES_FAULT = frozenset(  # a network error is no file's fault and raises
    [
        *(errno.ENOENT, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR),
        *(errno.ENAMETOOLONG, errno.EINVAL, errno.EIO, errno.ENXIO),
    ]
)
_PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::[A-Za-z][A-Za-z0-9+.-]*)*://")
_VERSIONS = ("ETag", "etag", "mtime", "LastModified", "created")


def is_remote(uri: str) -> bool:
    """Tell whether a URI names a protocol other than `file`.

    >>> is_remote("s3://bucket/a"), is_remote("/data/a::b"), is_remote("file:///data")
    (True, False, False)
    """
    return bool(_PROTOCOL.match(uri)) and not uri.startswith("file://")


def resolve(uri: str, data_root: str) -> str:
    """Return a dataset's URI as it is used: a relative one lies below the data root.

    >>> resolve("wds/cars", "s3://bucket/data/"), resolve("/mnt/cars", "s3://bucket")
    ('s3://bucket/data/wds/cars', '/mnt/cars')
    """
    uri = os.path.expanduser(uri)
    if not data_root or _PROTOCOL.match(uri) or uri.startswith("/"):
        return uri
    return join(os.path.expanduser(data_root), uri)


def join(*parts: str) -> str:
    """Join a path or URI with parts below it; empty parts and "." leave it as it is."""
    first, *rest = parts
    below = [part.strip("/") for part in rest if part not in ("", ".")]
    return "/".join([first.rstrip("/"), *below]) if below else first.rstrip("/") or "/"


def shown(path: str) -> str:
    r"""Write a path as it is stored and printed: what is not UTF-8 or would act on a terminal becomes an escape.

    >>> shown("caf\udce9/a b.png"), shown("é\n")
    ('caf\\udce9/a b.png', 'é\\n')
    """
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in path
    )


def everything(uri: str) -> dict[str, dict]:
    """List the entries of a folder by name in sorted order; empty where there is no such folder.

    Each has `name` (its path), `type` ("directory", "file", or "other" for what cannot be read as either), `size`, a
    version (`mtime`, `ETag`, …), and `link` where it is one. Links are followed.

    Raises:
        ConfigError: the storage refuses to list it, or there is no such protocol.
    """
    try:
        infos = _remote_entries(uri) if is_remote(uri) else _local_entries(uri)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ConfigError:
        raise
    except Exception as error:  # every storage has errors of its own; all of them mean this
        raise _unlisted(uri, error) from error
    return {name: infos[name] for name in sorted(infos)}


def below(uri: str) -> dict[str, dict]:
    """List every file below a remote folder, however deep, by its path below it; raise as `everything` does."""
    try:
        fs, root = remote(uri)
        root = root.rstrip("/") + "/"
        fs.invalidate_cache(root)
        found = fs.find(root, detail=True).values()
    except ConfigError:
        raise
    except Exception as error:
        raise _unlisted(uri, error) from error
    paths = {info["name"].removeprefix(root): info for info in found}
    # a path that ends in "/" is the mark of an empty folder
    return {path: info for path, info in paths.items() if path and not path.endswith("/")}


def entries(uri: str) -> dict[str, dict]:
    """List the entries of a folder by name, without hidden ones and known junk."""
    return {name: info for name, info in everything(uri).items() if not junk.kind(name)}


def is_folder(info: dict) -> bool:
    """Tell whether an entry is a folder or a link to one."""
    return info["type"] == "directory"


def identities(uri: str) -> tuple[tuple[int, int], ...]:
    """Identify a local folder and each one above it, whatever links lead there."""
    path = local(uri)
    found = []
    while True:
        status = os.stat(path)
        found.append((status.st_dev, status.st_ino))
        if path == os.path.dirname(path):
            return tuple(found)
        path = os.path.dirname(path)


def state(infos: Iterable[dict]) -> str:
    """Compute a digest of files' names, sizes, times (or etags) and links: equal means unchanged."""
    digest = hashlib.blake2b(digest_size=8)
    for info in infos:
        version = next((info[key] for key in _VERSIONS if key in info), "")
        name = os.path.basename(info["name"])
        text = f"{name}\0{info['size']}\0{version}\0{info.get('link', '')}\0"
        digest.update(text.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def targets(uris: Sequence[str]) -> list[dict]:
    """Collect what `state` needs to know of files that lie anywhere; a file that is gone has size None."""
    from concurrent.futures import ThreadPoolExecutor

    listed: dict[str, dict] = {}
    for folder in sorted({uri.rpartition("/")[0] for uri in uris if is_remote(uri)}):
        listed[folder] = everything(folder)  # one request a thousand files, not one a file

    def info(uri: str) -> dict:
        folder, _, name = uri.rpartition("/")
        gone = {"name": uri, "size": None}
        return listed[folder].get(name, gone) if is_remote(uri) else _local_info(uri, name) or gone

    if len(uris) < READ_AT_ONCE:
        return [info(uri) for uri in uris]
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(info, uris, chunksize=256))


def opened(uri: str) -> Any:
    """Open a file to read and seek in."""
    if not is_remote(uri):
        return open(local(uri), "rb")
    fs, path = remote(uri)
    return fs.open(path, "rb", block_size=2**23)


def skimmed(uri: str) -> Any:
    """Open a file of which only small pieces are read, far apart."""
    if is_remote(uri):
        fs, path = remote(uri)
        return fs.open(path, "rb", block_size=FAR_PIECE)
    file = open(local(uri), "rb", buffering=PIECE)  # noqa: SIM115 - the caller closes it
    if hasattr(os, "posix_fadvise"):  # or the system reads on beyond each piece
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
    return file


def content(uri: str) -> bytes:
    """Read all bytes of a file."""
    if not is_remote(uri):
        with opened(uri) as file:
            return file.read()
    fs, path = remote(uri)
    try:
        return fs.cat_file(path)
    except GONE:
        raise
    except Exception as error:  # every storage has errors of its own
        raise _unread(uri, error) from error


def why(error: Exception) -> str:
    """Write why an image cannot be read; the system's own words would name the place that it lies at."""
    if not isinstance(error, OSError):
        return str(error)
    return f"cannot be read: {error if error.errno is None else type(error).__name__}"


def head(uri: str, count: int) -> bytes:
    """Read the first bytes of a file."""
    with opened(uri) as file:
        return file.read(count)


def local(uri: str) -> str:
    """Return the path of a local URI."""
    return os.path.abspath(os.path.expanduser(uri.removeprefix("file://")))


def remote(uri: str) -> tuple[Any, str]:
    """Return the file system of a URI with a protocol, and the path in it.

    Raises:
        ConfigError: the protocol is unknown, or a package that it needs is missing.
    """
    protocol = uri.partition("://")[0]
    try:
        if "::" in protocol:  # a chain, such as simplecache::s3://
            fs, path = fsspec.core.url_to_fs(uri)
            return patient(fs), path
        kind = fsspec.get_filesystem_class(protocol)
        # not url_to_fs: it takes "::" in a path for a chain of protocols
        fs = patient(fsspec.filesystem(protocol, **kind._get_kwargs_from_urls(uri)))
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{shown(uri)}: the protocol {protocol}:// cannot be used ({error}).\n"
            "  Correct it (a local path has none; s3:// is a bucket), or install what it needs."
        ) from error
    return fs, fs._strip_protocol(uri)


def read_files(uris: Sequence[str]) -> Iterator[bytes | Exception]:
    """Yield the bytes of each file in order; where one is gone or forbidden, that error instead."""
    for first in range(0, len(uris), READ_AT_ONCE):
        part = uris[first : first + READ_AT_ONCE]
        far = [uri for uri in part if is_remote(uri)]
        fetched = iter(_remote_ranges(far, None, None)) if far else iter(())
        for uri in part:
            yield next(fetched) if is_remote(uri) else _local_file(uri)


def read_ranges(
    uri: str, offsets: Sequence[int], sizes: Sequence[int]
) -> Iterator[bytes | Exception]:
    """Yield the bytes at each (offset, size) of one file in order; an `EOFError` where the file ends before them."""
    for first in range(0, len(offsets), READ_AT_ONCE):
        part = slice(first, first + READ_AT_ONCE)
        for data, size in zip(_ranges(uri, offsets[part], sizes[part]), sizes[part], strict=True):
            short = isinstance(data, bytes) and len(data) != size
            text = (
                f"the file ends before this image does ({len(data)} of {size} bytes)"
                if short
                else ""
            )
            yield EOFError(text) if short else data


def _ranges(uri: str, offsets: Sequence[int], sizes: Sequence[int]) -> list[bytes | Exception]:
    if is_remote(uri):
        ends = [offset + size for offset, size in zip(offsets, sizes, strict=True)]
        return _remote_ranges([uri] * len(ends), list(offsets), ends)
    try:
        with open(local(uri), "rb") as file:
            found = []
            for offset, size in zip(offsets, sizes, strict=True):
                file.seek(offset)
                found.append(file.read(size))
            return found
    except OSError as error:
        if error.errno not in ONE_FILES_FAULT:
            raise
        return [error] * len(offsets)


def _remote_ranges(
    uris: Sequence[str], starts: list[int] | None, ends: list[int] | None
) -> list[bytes | Exception]:
    fs, _ = remote(uris[0])
    paths = [remote(uri)[1] for uri in uris]
    how = whole(fs) if starts is None else {}
    found = fs.cat_ranges(paths, starts, ends, on_error="return", **how)
    for uri, data in zip(uris, found, strict=True):
        if isinstance(data, Exception) and not isinstance(data, GONE):
            raise _unread(uri, data) from data
    return [data if isinstance(data, Exception) else bytes(data) for data in found]


def _local_file(uri: str) -> bytes | Exception:
    path = local(uri)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # to open a pipe would wait for ever
            return OSError("a folder, pipe or device, not a file")
        with open(path, "rb") as file:
            return file.read()
    except ValueError as error:  # a NUL in a path
        return FileNotFoundError(str(error))
    except OSError as error:
        if error.errno not in ONE_FILES_FAULT:
            raise
        return error


def _local_entries(uri: str) -> dict[str, dict]:
    with os.scandir(local(uri)) as found:
        infos = {entry.name: _entry_info(entry) for entry in found}
    return {name: info for name, info in infos.items() if info}


def _entry_info(entry: os.DirEntry) -> dict | None:
    """Describe an entry as `everything` does; a plain file, the usual case, costs one system call."""
    try:
        if entry.is_file(follow_symlinks=False):
            status = entry.stat(follow_symlinks=False)
            info = {"name": entry.path, "type": "file", "size": status.st_size}
            return info | {"mtime": status.st_mtime_ns}
    except OSError:
        pass  # gone meanwhile, or not to be looked at: the slow way says which
    return _local_info(entry.path, entry.name)


def _local_info(uri: str, name: str) -> dict | None:
    """Describe a local entry as `everything` does; None where it is gone."""
    path = local(uri)
    try:
        own = os.lstat(path)
    except (OSError, ValueError):
        return None
    info = {"name": path, "type": "other", "size": 0, "mtime": own.st_mtime_ns}
    if stat.S_ISLNK(own.st_mode):
        info["link"] = os.readlink(path)
    try:
        target = os.stat(path)
    except OSError:
        return info  # a link to nothing, or to itself
    kinds = {stat.S_IFDIR: "directory", stat.S_IFREG: "file"}
    info["type"] = kinds.get(stat.S_IFMT(target.st_mode), "other")
    info |= {"size": target.st_size, "mtime": target.st_mtime_ns}
    return info | {"ino": (target.st_dev, target.st_ino)}


def _remote_entries(uri: str) -> dict[str, dict]:
    fs, path = remote(uri)
    fs.invalidate_cache(path)
    found = {}
    for info in fs.ls(path, detail=True):
        place = info["name"].rstrip("/")
        if place != path.rstrip("/") and os.path.basename(place):
            found[os.path.basename(place)] = info
    return found


def _unlisted(uri: str, error: Exception) -> ConfigError:
    reason = "permission denied" if isinstance(error, PermissionError) else str(error)
    remedy = "Check the path and its rights"
    if is_remote(uri):
        remedy = "Check the address, the endpoint (AWS_ENDPOINT_URL) and the credentials"
    return ConfigError(f"cannot list {shown(uri)}: {type(error).__name__}: {reason}.\n  {remedy}.")


def _unread(uri: str, error: Exception) -> StoreError:
    """What is no file's fault: the storage does not serve, or refuses who asks."""
    reason = f"{type(error).__name__}: {error}"
    return StoreError(
        f"{shown(uri)} cannot be read ({reason}): see that its place is reachable, and run again"
    )
