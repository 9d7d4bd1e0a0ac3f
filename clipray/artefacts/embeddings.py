"""The embeddings of a split by one backbone: shard by shard a file, and a manifest once all are there."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from clipray import backbones, fingerprint, schema
from clipray.artefacts.index import Index, Shard, shard_rows
from clipray.config import Backbone, Campaign
from clipray.encoding import stored
from clipray.store import Store

DECODE = "clipray.steps.embed.decode:decode"  # that makes crops of images
EMBEDDER = "clipray.steps.embed.encode:Embedder"


@dataclass(frozen=True)
class Work:
    """What one split lacks: for each shard, the backbones whose file is not there."""

    index: Index
    addresses: dict[str, str]  # by backbone
    whats: dict[str, dict]  # by backbone
    todo: dict[str, list[str]]  # by shard name
    done: dict[str, dict]  # by backbone that has embedded all: its manifest

    def shards(self) -> Iterator[Shard]:
        """Yield every shard, in order."""
        return self.index.shards(shard_rows(self.index))

    @property
    def images(self) -> int:
        """Images in shards with something to do."""
        return sum(shard.rows for shard in self.shards() if self.todo[shard.name])

    @property
    def lacking(self) -> int:
        """Shards with something to do."""
        return sum(1 for names in self.todo.values() if names)

    def without(self, names: Collection[str]) -> "Work":
        """Return the same with nothing to do for some backbones."""
        todo = {
            shard: [name for name in wanted if name not in names]
            for shard, wanted in self.todo.items()
        }
        return replace(self, todo=todo)


def what(spec: Backbone, campaign: Campaign, index: Index) -> dict:
    """Return the WHAT of a split's embeddings: the model, the way to its pixels, and the images themselves."""
    return {
        "backbone": backbones.origin(spec),
        "precision": campaign.precision,
        "code": fingerprint.code(DECODE, EMBEDDER),
        "max_pixels": campaign.max_pixels,
        "images": index.identity,
        "shard_rows": shard_rows(index),  # files of other rows must not be taken for these
    }


def plan(store: Store, specs: Sequence[Backbone], campaign: Campaign, index: Index) -> Work:
    """Find what is left to do for a split; of complete artefacts only the manifests are read."""
    return work(store, index, {spec.name: what(spec, campaign, index) for spec in specs})


def work(store: Store, index: Index, whats: dict[str, dict]) -> Work:
    """Find what is left to do for a split, given each backbone's WHAT."""
    addresses = {
        name: store.address("embeddings", index.dataset, index.split, name, what=whats[name])
        for name in whats
    }
    return lacking(store, index, addresses, whats)


def lacking(store: Store, index: Index, addresses: dict[str, str], whats: dict[str, dict]) -> Work:
    """Find what is left to do for images whose embeddings have some addresses, made of `whats`; both by backbone."""
    shards = {shard.name for shard in index.shards(shard_rows(index))}
    manifests = dict(zip(addresses, store.manifests(addresses.values()), strict=True))
    # a pool that has grown since has shards that its manifest does not know
    done = {name: m for name, m in manifests.items() if m and shards <= set(m["shards"])}
    open_ones = [name for name in addresses if name not in done]
    there = {name: store.names(addresses[name]) for name in open_ones}
    todo = {
        shard.name: [name for name in open_ones if shard.name not in there[name]]
        for shard in index.shards(shard_rows(index))
    }
    return Work(index, addresses, whats, todo, done)


def still_lacking(store: Store, work: Work) -> Work:
    """Look again which files of those that a split lacked are not there yet."""
    names = {name for wanted in work.todo.values() for name in wanted}
    there = {name: store.names(work.addresses[name]) for name in names}
    todo = {
        shard: [name for name in wanted if shard not in there[name]]
        for shard, wanted in work.todo.items()
    }
    return replace(work, todo=todo)


def is_embedded(store: Store, specs: Sequence[Backbone], campaign: Campaign, index: Index) -> bool:
    """Tell whether all backbones have embedded a split; after the first one that has not, no other is asked for."""
    for spec in specs:
        names = (index.dataset, index.split, spec.name)
        address = store.address("embeddings", *names, what=what(spec, campaign, index))
        if store.manifest(address) is None:
            return False
    return True


def read(store: Store, place: str) -> pa.Table:
    """Read a complete artefact's embeddings (`schema.embeddings`), sorted by `image_id`."""
    return store.tables(place, store.manifest(place)["shards"])


def embedded(rows: pa.Table, embeddings_ND: np.ndarray, dim: int, precision: str) -> pa.Table:
    """Make the table of a shard's file (`schema.embeddings`): an image with an error has nulls for its embedding.

    Args:
        rows: image_id, label, error of all images of the shard.
        embeddings_ND: embeddings of the images without error, in order.
    """
    layout = schema.embeddings(dim, precision)
    good = rows["error"].is_null().to_numpy(zero_copy_only=False)
    kept_ND, own = stored(embeddings_ND, precision)
    values = np.zeros((len(rows), dim), kept_ND.dtype)
    values[good] = kept_ND
    errors = np.array(rows["error"].to_pylist(), object)
    errors[good] = own
    null_ND = np.repeat(np.array([error is not None for error in errors]), dim)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), mask=null_ND), dim)
    return pa.table(
        [rows["image_id"], rows["label"], column, pa.array(errors, pa.string())], schema=layout
    )
