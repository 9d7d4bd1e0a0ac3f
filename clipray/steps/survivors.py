"""Work that runs again because a worker died: perhaps one of its images ends whatever process decodes it."""

from collections.abc import Iterable, Sequence

from clipray import deadly
from clipray.steps import cluster


def survivors(
    data: Iterable[bytes | Exception | None], known: Sequence[str | None], max_pixels: int
) -> tuple[Iterable[bytes | Exception | None], Sequence[str | None]]:
    """Return what comes in, in a task that runs again with an error for each image that ends a process.

    Args:
        data: each image's bytes, or why there are none. known: each image's error, where it has one already.
        max_pixels: larger images are refused before they are decoded.
    """
    if not cluster.attempt():
        return data, known
    return deadly.sifted(data, known, max_pixels)
