"""Files that stand for others: what git-lfs and git-annex leave where the content was not fetched."""

from clipray.errors import ConfigError
from clipray.sources.storage import head, shown

LFS = b"version https://git-lfs.github.com/spec/"
ANNEX = b"/annex/objects/"
LONGEST = 1024  # bytes that a pointer has at most


def reason(data: bytes) -> str | None:
    """Why a file's bytes are not its content; None where they may be.

    >>> reason(b"version https://git-lfs.github.com/spec/v1 oid sha256:ab size 12")
    'a Git LFS pointer, not the file itself: fetch it by `git lfs pull`'
    """
    if len(data) > LONGEST:
        return None
    if data.startswith(LFS):
        return "a Git LFS pointer, not the file itself: fetch it by `git lfs pull`"
    if data.startswith(ANNEX):
        return "a git-annex pointer, not the file itself: fetch it by `git annex get`"
    return None


def refuse(uri: str, data: bytes) -> None:
    """Raise `ConfigError` where a file's bytes are a pointer."""
    if (text := reason(data)) is not None:
        raise ConfigError(f"{shown(uri)} is {text}.")


def refuse_small(uri: str, info: dict) -> None:
    """Raise `ConfigError` where a file that is to hold many images is empty or a pointer; opens small ones only."""
    size = info.get("size")
    if size == 0:
        raise ConfigError(
            f"{shown(uri)} is empty (0 bytes).\n  Fetch it again: such a file is left by a download that broke off."
        )
    if size is not None and size <= LONGEST:
        refuse(uri, head(uri, LONGEST + 1))
