"""The members of a tar in order, as far as it can be read, and why no further."""

import io
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from clipray.sources import junk

COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
}
ZEROS = b"\0" * tarfile.BLOCKSIZE


class Member(NamedTuple):
    """A file in the tar.

    Attributes:
        key: its name up to the first dot of its last part.
        suffix: what follows that dot, in lower case.
        offset: where its bytes start in the tar.
        data: its bytes; None with an error, and where they were not wanted.
        error: None, or why there are no bytes.
        size: of its bytes.
    """

    key: str
    suffix: str
    offset: int
    data: bytes | None
    error: str | None = None
    size: int = 0


def everything(suffix: str) -> bool:
    """Want the bytes of every member."""
    return True


def members(
    file: Any, broken: list[str], left: Counter, wanted: Callable[[str], bool] = everything
) -> Iterator[Member]:
    """Files in order, also of tars that were appended to one another by `cat`.

    Args:
        file: open for reading, at its start.
        broken: gets a reason where the archive ends before its end mark.
        left: counts hidden members and those that systems leave.
        wanted: tells by its suffix whether a member's bytes are read; those of others are skipped.
    """
    end = file.seek(0, io.SEEK_END)
    file.seek(0)
    first = file.read(6)
    for magic, name in COMPRESSED.items():
        if first.startswith(magic):
            broken.append(
                f"not a readable tar: it is compressed ({name}); unpack it to a plain .tar"
            )
            return
    start: int | None = 0
    while start is not None:
        file.seek(start)
        start = yield from _archive(file, end, broken, left, wanted)


def _archive(
    file: Any, end: int, broken: list[str], left: Counter, wanted: Callable[[str], bool]
) -> Iterator[Member]:
    """The files of one archive; returns where the next one starts, if there is one."""
    try:
        tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - closes with the file
    except (tarfile.TarError, EOFError) as error:
        broken.append(f"not a readable tar: {error}")
        return None
    while True:
        try:
            info = tar.next()
        except (tarfile.TarError, EOFError) as error:
            broken.append(f"the tar breaks off at byte {tar.offset}: {error}")
            return None
        if info is None:
            break
        tar.members = []  # or the list of a large tar grows without end
        member = _member(file, end, info, left, wanted)
        if member is None:
            continue
        yield member
        if member.error and info.isreg() and not info.issparse():
            broken.append(member.error)
            return None
    return _after(file, tar.offset, broken)


def _member(
    file: Any, end: int, info: tarfile.TarInfo, left: Counter, wanted: Callable[[str], bool]
) -> Member | None:
    """A file or a link; None for what is neither, or hidden."""
    name = info.name.rpartition("/")[2]
    kinds = [junk.kind(part) for part in info.name.split("/") if part not in ("", ".", "..")]
    kind = next((kind for kind in kinds if kind), "")
    if info.isdir() or kind:
        left.update([] if info.isdir() else [kind])
        return None
    stem, _, suffix = name.partition(".")
    suffix = suffix.lower()
    key = info.name.removesuffix(name) + stem
    if not info.isreg() or info.issparse():
        error = "it is a link or a special file in the tar (pack by `tar --dereference --hard-dereference`)"
        return Member(key, suffix, info.offset_data, None, error)
    data, there = None, min(info.size, max(0, end - info.offset_data))
    if wanted(suffix):
        file.seek(info.offset_data)
        data = file.read(info.size)
        there = len(data)
    if there == info.size:
        return Member(key, suffix, info.offset_data, data, size=info.size)
    error = f"the tar breaks off at byte {info.offset_data + there}"
    return Member(key, suffix, info.offset_data, None, error)


def _after(file: Any, offset: int, broken: list[str]) -> int | None:
    """Where another archive starts behind an end mark. tarfile takes a cut or garbled header for the end as well."""
    file.seek(offset)
    if file.read(tarfile.BLOCKSIZE) != ZEROS:
        broken.append(f"the tar breaks off at byte {offset}: no end mark")
        return None
    while block := file.read(tarfile.BLOCKSIZE):
        if block.strip(b"\0"):
            return file.tell() - len(block)
    return None
