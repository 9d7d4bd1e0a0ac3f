"""What is known of the shards that a backbone has written: told by the workers of this run, or read from the files."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa

from clipray.artefacts import index
from clipray.store import Store

READERS = 8  # files of earlier runs that are read at once


@dataclass
class Tally:
    """The shards of one backbone on one split: which are counted, and what they hold.

    Attributes:
        content: the sum of the digests of all images and labels in them.
        errors: by image id, why it has no embedding.
    """

    shards: set[str] = field(default_factory=set)
    content: int = 0
    errors: dict[str, str] = field(default_factory=dict)

    def add(self, shard: str, content: int, errors: dict[str, str]) -> None:
        """Count a shard; one that is told twice counts once."""
        if shard in self.shards:
            return
        self.shards.add(shard)
        self.content = (self.content + content) % 2**128
        self.errors |= errors

    def read(self, store: Store, address: str, shards: set[str]) -> None:
        """Count shards from their files, which an earlier run wrote."""
        names = sorted(shards - self.shards)
        with ThreadPoolExecutor(READERS) as pool:
            told = pool.map(lambda name: _told(store, f"{address}/{name}"), names)
            for name, (content, errors) in zip(names, told, strict=True):
                self.add(name, content, errors)


def failures_of(part: pa.Table) -> dict[str, str]:
    """Return, by image id, why a shard's file holds no embedding of the image."""
    failed = part.select(["image_id", "error"]).filter(part["error"].is_valid())
    return dict(zip(failed["image_id"].to_pylist(), failed["error"].to_pylist(), strict=True))


def _told(store: Store, path: str) -> tuple[int, dict[str, str]]:
    table = store.read_table(path, ["image_id", "label", "error"])
    return index.content_sum(table["image_id"], table["label"]), failures_of(table)
