"""All artefacts of a workspace, from one listing: which are whole, how large they are, which of them are still used."""

import json
import time
from collections.abc import Iterable
from typing import NamedTuple

from clipray.artefacts import history
from clipray.store import MANIFEST, Store

REPORTS = "reports"
# Kinds that the retention may take; cards and indexes are small, and searches are a memory of fits.
TAKEN = ("classifiers", "embeddings", "evaluations", "support_sets")
DAY = 86400.0


class Artefact(NamedTuple):
    """One folder of a workspace.

    Attributes:
        address: relative to the workspace.
        whole: it has its manifest.
        bytes, files: sizes and number of its files.
        modified: time of its newest file, in seconds since 1970.
    """

    address: str
    whole: bool
    bytes: int
    files: int
    modified: float

    @property
    def kind(self) -> str:
        """The first part of its address."""
        return self.address.partition("/")[0]


def read(store: Store) -> list[Artefact]:
    """List a workspace once, whatever its size, and group the files by their folder; sorted by address."""
    groups: dict[str, list[tuple[str, int, float]]] = {}
    for path, size, modified in store.files():
        folder, _, name = path.rpartition("/")
        groups.setdefault(folder, []).append((name, size, modified))
    return [
        Artefact(
            folder,
            MANIFEST in {name for name, _, _ in files},
            sum(size for _, size, _ in files),
            len(files),
            max(modified for _, _, modified in files),
        )
        for folder, files in sorted(groups.items())
        if folder
    ]


def used(store: Store, artefacts: Iterable[Artefact], keep: int) -> set[str]:
    """Find the addresses that the last `keep` publications of every campaign were made of, through all manifests."""
    known = {one.address for one in artefacts}
    todo = {place for place in _published(store, keep) if place in known}
    found = set(todo)
    while todo:
        texts = [json.dumps(manifest) for manifest in store.manifests(sorted(todo))]
        named = set().union(*(_named(text) for text in texts))
        todo = named & known - found
        found |= todo
    return found


def _published(store: Store, keep: int) -> Iterable[str]:
    """Yield the evaluations of the publications that are kept."""
    for name in store.names(REPORTS):
        folder = f"{REPORTS}/{name}"
        for stamp in _kept(store, folder, keep):
            entry = store.read_json(f"{folder}/{history.FOLDER}/{stamp}.json")
            yield from entry["outcomes"].values()


def _kept(store: Store, folder: str, keep: int) -> set[str]:
    """Return the last publications of a campaign, and the last good one, which the next is compared with."""
    good = history.last_good(store, folder)
    return {*history.entries(store, folder)[-keep:], *([good.stamp] if good else [])}


def _named(text: str) -> set[str]:
    """Find everything in a manifest's JSON that could be an address: its strings with a slash."""
    return {part for part in text.split('"') if "/" in part}


def unused(store: Store, keep: int, days: float) -> list[Artefact]:
    """List what retention takes: artefacts of `TAKEN` that no kept publication needs and that are older than `days`.

    What is younger may belong to a run that goes on, or to one that never published.
    """
    artefacts = read(store)
    kept = used(store, artefacts, keep)
    old = time.time() - days * DAY
    return [
        one
        for one in artefacts
        if one.kind in TAKEN
        and one.modified < old
        and not any(one.address == place or one.address.startswith(f"{place}/") for place in kept)
    ]


def forget(store: Store, keep: int) -> int:
    """Remove the entries of each campaign's history that are not kept; return how many were removed."""
    gone = 0
    for name in store.names(REPORTS):
        folder = f"{REPORTS}/{name}"
        for stamp in sorted(set(history.entries(store, folder)) - _kept(store, folder, keep)):
            store.remove(f"{folder}/{history.FOLDER}/{stamp}.json")
            store.remove(f"{folder}/{history.FOLDER}/{stamp}.parquet")
            gone += 1
    return gone
