"""The sha256 of local files, computed once per content: kept in the process and on disk by path, size and time."""

import functools
import hashlib
import os
import time
from pathlib import Path

from clipray.errors import ConfigError

SETTLED = 2.0  # seconds; a younger file may change again within one tick of its clock


def cache() -> Path:
    """Return the folder of what clipray keeps on a machine: `$CLIPRAY_CACHE`, or `~/.cache/clipray`."""
    return Path(os.environ.get("CLIPRAY_CACHE") or Path.home() / ".cache" / "clipray")


def digest(path: Path) -> str:
    """Return the sha256 of a file in hex; read the file only if its path, size or time is new.

    Raises:
        ConfigError: there is no such file, or it cannot be read.
    """
    try:
        real = path.resolve(strict=True)
        state = real.stat()
        if time.time() - state.st_mtime < SETTLED:
            return _sha256(real)
        return _settled(str(real), state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


@functools.lru_cache(maxsize=4096)
def _settled(path: str, size: int, mtime_ns: int) -> str:
    key = hashlib.sha256(f"{path} {size} {mtime_ns}".encode()).hexdigest()[:32]
    kept = cache() / "digests" / key
    try:
        text = kept.read_text()
    except OSError:
        text = ""
    if len(text) == 64:
        return text
    value = _sha256(Path(path))
    remember(kept, value)
    return value


def remember(path: Path, text: str) -> None:
    """Write a small file of the cache atomically; a cache that cannot be written is no error."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
