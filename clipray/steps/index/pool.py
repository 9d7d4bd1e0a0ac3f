"""The images of a train split that support sets may hold: only they are read and embedded.

Labels and names are known before an image is read, so the support sets are drawn from a list of the split, by the
function that draws them for the evaluation. What is drawn is read and makes a pool; what turns out to be unreadable, or
to stand in the test split too, is kept apart, and others take its place. More shots or seeds, and images that have no
embedding in the end, add parts to the pool; none is ever taken away. A support set drawn from the pool is that drawn
from the whole split: in each seed's order a pool holds the first images of every class that can be used, and further
ones do not move them.

The bytes of a pool are read twice: here for the ids, which decide what is drawn, and when they are embedded. To keep
them in between would be a second copy of the pool in the workspace.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from clipray import sources
from clipray.artefacts import usable
from clipray.artefacts.index import Index
from clipray.fingerprint import code, fingerprint
from clipray.numerics import draws
from clipray.steps.index import grow
from clipray.steps.index.grow import Outcast, outcast
from clipray.steps.mappers import Mapper
from clipray.store import Store

# Images a class beyond the shots: two, or a quarter of the shots where that is more.
SPARE, SHARE = 2, 4


def pool(
    store: Store,
    train: Index,
    test: Index,
    classes: int,
    shots: Sequence[int],
    seeds: int,
    mapper: Mapper,
    unusable: Collection[str] = (),
) -> Index:
    """Return the pool of a train split, grown until it holds every image that a support set may hold.

    Args:
        train: the split, listed. test: the test split; no image of it is in the pool.
        classes: C. shots: images a class. seeds: number of draws.
        mapper: how images are read, where the pool does not hold enough.
        unusable: ids of images of the pool that have no embedding.

    Raises:
        ConfigError: none of the split's images can be read.
    """
    address = place(store, train, test)
    known = store.manifest(address) or _nothing()
    wanted = [max(shots), seeds, classes, fingerprint(sorted(unusable))]
    if not any(_holds(drawn, wanted) for drawn in known["drawn"]):
        known = _grown(store, train, test, known, max(shots), seeds, classes, mapper, unusable)
        known["drawn"].append(wanted)
        made_of = what(train, test)
        store.finish(address, made_of, **{key: known[key] for key in _nothing()})
    out = outcast(known)
    if not known["parts"] and out.unread and out.unread == sum(out.labels.values()):
        raise usable.unusable(train.dataset, train.split, out.first)
    return replace(
        train,
        address=address,
        parts=tuple(known["parts"]),
        chunk_parts=tuple(known["chunk_parts"]),
        content=known["content"],
        pool=address,
        of=train,
        apart=test,
        listed=False,
        labels={label: n - out.labels.get(label, 0) for label, n in train.labels.items()},
        remarks=_remarks(out, sum(known["parts"])),
    )


def _grown(
    store: Store,
    train: Index,
    test: Index,
    known: dict[str, Any],
    most: int,
    seeds: int,
    classes: int,
    mapper: Mapper,
    unusable: Collection[str],
) -> dict[str, Any]:
    """Read and add what a pool lacks; return what its manifest has to tell.

    A spare of each class is read with the others, so that few images that cannot be used cost no second round; each
    further round takes a spare twice as large.
    """
    address, spare = place(store, train, test), max(SPARE, -(-most // SHARE))
    train, test = (replace(split, labels={}) for split in (train, test))  # no worker looks at them
    while True:
        item = (store, train, address, known, (most, most + spare), seeds, classes)
        (lacking,) = mapper(grow.choose, [(*item, sorted(unusable))])
        if not lacking:
            return known
        list(mapper(grow.read, [(store, train, address, *own) for own in lacking]))
        before, changed = known["out"]["files"], [part for part, _ in lacking]
        (known,) = mapper(grow.settle, [(store, train, test, address, known, changed)])
        list(mapper(grow.clear, [(store, address, changed)]))
        if known["out"]["files"] == before:  # all that was drawn can be used
            return known
        spare *= 2


def what(train: Index, test: Index) -> dict[str, Any]:
    """Return the WHAT of a pool: the rows that it is drawn from, not how many are drawn."""
    made_by = code(draws.draws, draws.apart, sources.identified)
    return {"train": train.address, "test": test.address, "code": made_by}


def place(store: Store, train: Index, test: Index) -> str:
    """Return the address of a pool."""
    return store.address("index", train.dataset, "pool", what=what(train, test))


def _nothing() -> dict[str, Any]:
    """Return what the manifest of a pool without an image would tell."""
    nothing = {"parts": [], "chunk_parts": [], "content": f"{0:032x}", "drawn": []}
    return nothing | {"out": Outcast(0, {}, 0, "")._asdict()}


def _holds(drawn: Sequence[Any], wanted: Sequence[Any]) -> bool:
    """Tell whether a pool holds what is wanted: as many shots and seeds, with the same unusable images."""
    shots, seeds, *rest = drawn
    return shots >= wanted[0] and seeds >= wanted[1] and rest == wanted[2:]


def _remarks(out: Outcast, kept: int) -> tuple[str, ...]:
    """Tell a person of images that were drawn and cannot be read."""
    if not out.unread:
        return ()
    looked = kept + sum(out.labels.values())
    told = f"{out.unread} of {looked} images that were drawn for support sets cannot be read"
    return (f"train split: {told} ({out.first}, …); others, if there are any, take their place",)
