"""Images that end the process which decodes them: found one by one in a child process, so that they end no other.

A fault in a library's C code, or the kernel's OOM killer, leaves no exception to catch. The worker is gone, and whoever
runs its work again would lose that worker too. So work that runs again tries its images here first. A child costs a
third of a second to start and decodes every image a second time, which is why the first attempt does without.

    python -m clipray.deadly      the child: length and bytes of an image and its limit on stdin, one sign back for each
"""

import contextlib
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterable, Sequence

from clipray import images

HEAD = struct.Struct("<QQ")  # bytes of an image, and the most pixels that it may have
SIGN = b"."


def sifted(
    data: Iterable[bytes | Exception | None], known: Sequence[str | None], max_pixels: int
) -> tuple[list[bytes | Exception | None], list[str | None]]:
    """Decode each image in a child process, and name those that end it.

    Args:
        data: each image's bytes, or why there are none. known: each image's error, where it has one already.
        max_pixels: larger images are refused before they are decoded.

    Returns:
        the data as they came, and each image's error: a deadly one has a new one.
    """
    every, errors = list(data), list(known)
    child = None
    for place, one in enumerate(every):
        if errors[place] or not isinstance(one, bytes):
            continue
        child = child or _child()
        if not _survives(child, one, max_pixels):
            errors[place] = f"decoding it ends the process ({_end(child)})"
            child = None
    if child:
        _end(child)
    return every, errors


def _child() -> subprocess.Popen:
    """Start a child that imports what this process does."""
    return subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def _survives(child: subprocess.Popen, data: bytes, max_pixels: int) -> bool:
    try:
        child.stdin.write(HEAD.pack(len(data), max_pixels) + data)
        child.stdin.flush()
    except BrokenPipeError:
        return False
    return child.stdout.read(len(SIGN)) == SIGN


def _end(child: subprocess.Popen) -> str:
    """Let a child end; what ended it."""
    with contextlib.suppress(BrokenPipeError):  # it has ended in the middle of an image
        child.stdin.close()
    child.stdout.close()
    code = child.wait()
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _main() -> None:
    """Decode what comes on stdin, until its end."""
    source, answers = sys.stdin.buffer, sys.stdout.buffer
    while head := source.read(HEAD.size):
        size, max_pixels = HEAD.unpack(head)
        with contextlib.suppress(images.ImageError):  # no death: whoever asked will see it, too
            images.decode(source.read(size), max_pixels)
        answers.write(SIGN)
        answers.flush()


if __name__ == "__main__":
    _main()
