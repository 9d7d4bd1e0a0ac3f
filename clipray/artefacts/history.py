"""Earlier results of a campaign: its scores as they were, and where the outcomes lay, one entry a publication."""

import time
from typing import Any, NamedTuple

import pyarrow as pa

from clipray.store import Store

FOLDER = "history"


class Entry(NamedTuple):
    """One publication.

    Attributes:
        stamp: its time in UTC, to the millisecond; entries sort by it.
        outcomes: by dataset, the address of its evaluation, relative to the workspace.
        good: nothing failed, and nothing got worse where that was not allowed.
        commit: of the code, or None.
    """

    stamp: str
    outcomes: dict[str, str]
    good: bool
    commit: str | None


def write(
    store: Store, folder: str, scores: pa.Table, outcomes: dict[str, str], **facts: Any
) -> None:
    """Write a publication below the folder of a campaign's report; the JSON comes last, so an entry is whole or absent.

    Args:
        folder: `reports/<campaign>`.
        scores: `schema.SCORES`.
        outcomes: see `Entry`.
        facts: `good` and `commit`, see `Entry`.
    """
    now = time.time()
    day = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now))
    stamp = f"{day}{int(now * 1000) % 1000:03d}Z"
    place = f"{folder}/{FOLDER}/{stamp}"
    store.write_table(f"{place}.parquet", scores)
    store.write_json(f"{place}.json", {"outcomes": outcomes, **facts})


def entries(store: Store, folder: str) -> list[str]:
    """List the stamps of a campaign's publications, the oldest first."""
    names = store.names(f"{folder}/{FOLDER}")
    return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))


def last_good(store: Store, folder: str) -> Entry | None:
    """Return the last good publication; None where there is none."""
    for stamp in reversed(entries(store, folder)):
        entry = Entry(stamp, **store.read_json(f"{folder}/{FOLDER}/{stamp}.json"))
        if entry.good:
            return entry
    return None


def accept_last(store: Store, folder: str) -> None:
    """Mark the last publication as good: its scores are the new level, even where they got worse."""
    for stamp in entries(store, folder)[-1:]:
        place = f"{folder}/{FOLDER}/{stamp}.json"
        told = store.read_json(place)
        if not told["good"]:
            store.write_json(place, {**told, "good": True})


def scores(store: Store, folder: str, entry: Entry) -> pa.Table:
    """Read the scores of a publication (`schema.SCORES` of the code that wrote it)."""
    return store.read_table(f"{folder}/{FOLDER}/{entry.stamp}.parquet")
