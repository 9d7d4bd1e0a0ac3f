"""What lay in some datasets' folders of a bucket at one moment, told by few requests.

A run that has nothing to do looks at every manifest: with 50 backbones at a hundred of each dataset. Asked for one by
one they are most of what such a run takes. A snapshot asks for pages of the listing instead, each of which tells of a
thousand files and so of many small datasets, and for one file a dataset (`manifests/…`), which holds what its manifests
said when they were last read.

A manifest is there where the listing names it, and nowhere else. What is remembered of it counts where the listing
tells the same version. So the file with what is remembered may be old, lost or removed at any time.
"""

import contextlib
import gzip
import json
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from clipray.errors import StoreError
from clipray.store import END, MANIFEST, Page, Store

FOLDER = "manifests"
KINDS = ("embeddings", "index")  # whose manifests are read where nothing is to be done
PAGES = 8  # of one dataset and kind; files behind are asked for one by one
TOGETHER = 32  # datasets that one listing is for
AT_ONCE = 16  # listings
LOSSLESS = "surrogateescape"  # a damaged file need not be UTF-8
UNREADABLE = (OSError, EOFError, ValueError, zlib.error, AttributeError, TypeError)
SHARE = 2000  # addresses that one thread looks up


class Listing(NamedTuple):
    """The files of one kind of artefact of one dataset.

    Attributes:
        versions: by path, see `Page`.
        folder: that holds them; ends in a slash.
        last: no file of the folder is left out up to this path.
    """

    versions: dict[str, str]
    folder: str
    last: str


class Snapshot(Store):
    """A store that knows what lay in the folders of one dataset, and asks for all else.

    It is for looking at one dataset, not longer. What is written through it is asked for again.

    Args:
        store: whose artefacts are meant.
        dataset: the name.
        listings: of the dataset's folders.
        remembered: by path of a file, its version and its text.
    """

    def __init__(
        self,
        store: Store,
        dataset: str,
        listings: Sequence[Listing],
        remembered: dict[str, tuple[str, str]],
    ):
        super().__init__(store.uri)
        self.dataset = dataset
        self.listings = listings
        versions = dict(pair for listing in listings for pair in listing.versions.items())
        self.versions = versions
        self.texts = {
            path: text
            for path, (version, text) in remembered.items()
            if version == versions.get(path)
        }
        self.written: set[str] = set()
        self.learned = False

    def read_many(self, paths: Sequence[str]) -> list[bytes | None]:
        """Read files, as `Store.read_many` does, those that are remembered without asking."""
        asked = [path for path in paths if self._is_open(path)]
        answers = dict(zip(asked, super().read_many(asked), strict=True))
        for path, data in answers.items():
            if data is not None and path in self.versions and path not in self.written:
                self.texts[path] = data.decode(errors=LOSSLESS)
                self.learned = True
        return [answers[path] if path in answers else self._recalled(path) for path in paths]

    def names(self, address: str) -> set[str]:
        """List the names in a folder, as `Store.names` does, those of a listed one without asking."""
        folder = f"{address}/"
        changed = any(path.startswith(folder) for path in self.written)
        if changed or not self._lists(f"{folder}{END}"):
            return super().names(address)
        below = [path for path in self.versions if path.startswith(folder)]
        return {path.removeprefix(folder).partition("/")[0] for path in below}

    def write(self, path: str, data: bytes) -> None:
        """Write a file, as `Store.write` does."""
        self.written.add(path)
        super().write(path, data)

    def _recalled(self, path: str) -> bytes | None:
        text = self.texts.get(path)
        return None if text is None else text.encode(errors=LOSSLESS)

    def _is_open(self, path: str) -> bool:
        """Tell whether only a request can tell what a file holds."""
        if path in self.written or not self._lists(path):
            return True
        return path in self.versions and path not in self.texts

    def _lists(self, path: str) -> bool:
        """Tell whether the listings would name a file if it was there."""
        return any(
            path.startswith(listing.folder) and path <= listing.last for listing in self.listings
        )


def groups(datasets: Iterable[str]) -> list[list[str]]:
    """Put names of datasets together for `take`, neighbours in a listing: a page of it tells of many of them."""
    ordered = sorted(datasets)
    return [ordered[start : start + TOGETHER] for start in range(0, len(ordered), TOGETHER)]


def take(store: Store, datasets: Sequence[str]) -> dict[str, Store]:
    """Take the snapshot of each dataset, by its name; on disk, where asking costs nothing, it is the store itself."""
    if not store.paged:
        return dict.fromkeys(datasets, store)
    listings = [_listings(store, kind, datasets) for kind in KINDS]
    remembered = store.read_many([_place(name) for name in datasets])
    return {
        name: Snapshot(store, name, [kind[name] for kind in listings], _unpacked(data))
        for name, data in zip(datasets, remembered, strict=True)
    }


def remember(store: Store) -> None:
    """Write down what a snapshot has read, for the next one; a workspace that refuses it stays as it is."""
    if not isinstance(store, Snapshot) or not store.learned:
        return
    kept = {path: (store.versions[path], text) for path, text in store.texts.items()}
    data = gzip.compress(json.dumps(kept).encode(), compresslevel=1, mtime=0)
    with contextlib.suppress(StoreError):
        store.write(_place(store.dataset), data)


def refresh(store: Store, datasets: Iterable[str]) -> None:
    """Read what has been finished, and write it down, so that the next run reads one file a dataset."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for _ in threads.map(lambda group: _refresh(store, group), groups(datasets)):
            pass


def _refresh(store: Store, group: Sequence[str]) -> None:
    for seen in take(store, group).values():
        if isinstance(seen, Snapshot):
            seen.read_many([path for path in seen.versions if path.endswith(f"/{MANIFEST}")])
            remember(seen)


def _place(dataset: str) -> str:
    return f"{FOLDER}/{dataset}.json.gz"


def _unpacked(data: bytes | None) -> dict[str, tuple[str, str]]:
    """Read what is remembered; nothing where the file is not what `remember` writes, for nothing depends on it."""
    with contextlib.suppress(*UNREADABLE):
        entries = json.loads(gzip.decompress(data or b""))
        return {path: (str(version), str(text)) for path, (version, text) in entries.items()}
    return {}


def _listings(store: Store, kind: str, datasets: Sequence[str]) -> dict[str, Listing]:
    """List the files of one kind of datasets: a page tells of all datasets that begin on it."""
    found = {}
    page = Page({}, "")
    # in the order of the paths, so that all pages before have begun before a dataset's folder
    for folder, name in sorted((f"{kind}/{name}/", name) for name in datasets):
        versions = _below(folder, page)
        stop = f"{folder}{END}"
        for _ in range(PAGES):
            if page.last >= stop:
                break
            page = store.page(kind, max(folder, page.last))
            versions |= _below(folder, page)
        found[name] = Listing(versions, folder, page.last)
    return found


def _below(folder: str, page: Page) -> dict[str, str]:
    return {path: version for path, version in page.versions.items() if path.startswith(folder)}


def complete(store: Store, addresses: Iterable[str]) -> set[str]:
    """Find which artefacts are complete, at most by one request for each, and by pages of the listing in a bucket."""
    if not store.paged:
        return {address for address in addresses if store.exists(f"{address}/{MANIFEST}")}
    ordered = sorted(addresses, key=lambda address: f"{address}/")
    shares = [ordered[start : start + SHARE] for start in range(0, len(ordered), SHARE)]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return set().union(*threads.map(lambda share: _complete(store, share), shares))


def _complete(store: Store, ordered: Sequence[str]) -> set[str]:
    found = set()
    page = Page({}, "")
    for address in ordered:
        manifest = f"{address}/{MANIFEST}"
        if manifest > page.last:
            page = store.page(address.partition("/")[0], f"{address}/")
        known = manifest <= page.last
        if manifest in page.versions or (not known and store.exists(manifest)):
            found.add(address)
    return found
