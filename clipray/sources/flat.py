"""A folder of images without labels, however deep: every file that is no known junk is a sample."""

from collections import Counter

from clipray.config import Dataset
from clipray.sources import folder
from clipray.sources.chunks import Chunk, nothing_for
from clipray.sources.storage import everything, state

KNOWN_OPTIONS = ()
scan, survey, fetch = folder.scan, folder.survey, folder.fetch


def classes(dataset: Dataset, uri: str) -> None:
    """There are no labels."""


def listing(dataset: Dataset, split: str, uri: str) -> list[Chunk]:
    """Chunks of up to 1024 consecutive files, ordered by path."""
    left: Counter[str] = Counter()
    found = folder.files_below(uri, {}, left) if everything(uri) else []
    if not found:
        raise nothing_for(dataset, split, uri, "images, in any folder below it")
    chunks = []
    for start in range(0, len(found), folder.CHUNK):
        part = found[start : start + folder.CHUNK]
        files = tuple((path, None) for path, _ in part)
        version = state(info for _, info in part)
        counted = () if start else tuple(sorted(left.items()))
        chunks.append(Chunk("flat", uri, start, len(part), files, {}, version, counted))
    return chunks
