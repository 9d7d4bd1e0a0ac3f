"""The images of a train split that support sets may hold: only they are read and embedded.

Labels and names are known before an image is read, so the support sets are drawn from a list of the split, by the
function that draws them for the evaluation. What is drawn makes a pool, and is read when it is embedded. What then
turns out to be unreadable, or to stand in the test split too, is drawn by no support set, and others take its place:
these are read before they join the pool, for where some images cannot be used often many cannot. More shots or seeds,
and images that have no embedding in the end, add parts to the pool; none is ever taken away. A support set drawn from
the pool is that drawn from the whole split: in each seed's order a pool holds the first images of every class that can
be used, and further ones do not move them.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from clipray import sources
from clipray.artefacts import found, usable
from clipray.artefacts.index import Index
from clipray.fingerprint import code, fingerprint
from clipray.numerics import draws
from clipray.steps import identify
from clipray.steps.index import grow
from clipray.steps.index.grow import Outcast, outcast
from clipray.steps.mappers import Mapper
from clipray.store import Store

# Images a class beyond the shots: two, or a quarter of the shots where that is more.
SPARE, SHARE = 2, 4


class Wanted(NamedTuple):
    """What support sets may hold.

    Attributes:
        most: images a class. seeds: number of draws. classes: C.
        unusable: sorted ids of images of the pool that have no embedding.
    """

    most: int
    seeds: int
    classes: int
    unusable: list[str]

    @property
    def key(self) -> list[Any]:
        """What a manifest tells of it."""
        return [*self[:3], fingerprint(self.unusable)]

    @property
    def spare(self) -> int:
        """Images of each class beyond these that are taken with them."""
        return max(SPARE, -(-self.most // SHARE))

    def with_spare(self, spare: int) -> tuple[Any, ...]:
        """Return what `grow.choose` wants to know."""
        return (self.most, self.most + spare), self.seeds, self.classes, self.unusable


def pool(
    store: Store,
    train: Index,
    test: Index,
    classes: int,
    shots: Sequence[int],
    seeds: int,
    mapper: Mapper,
    unusable: Collection[str] = (),
    read: bool = True,
) -> Index:
    """Return the pool of a train split, grown until it holds every image that a support set may hold.

    Args:
        train: the split, listed. test: the test split, no image of which is drawn from the pool once it has ids.
        classes: C. shots: images a class. seeds: number of draws.
        mapper: how images are read, where the pool does not hold enough.
        unusable: ids of images of the pool that have no embedding.
        read: whether images are read before they join the pool; else they are to be embedded now, and `settled`.

    Raises:
        ConfigError: none of the split's images can be read.
    """
    address = place(store, train, test)
    known = store.manifest(address) or _nothing()
    wanted = Wanted(max(shots), seeds, classes, sorted(unusable))
    if not any(_holds(drawn, wanted.key) for drawn in known["drawn"]):
        unknown = test.listed or known["unread"]
        grow_by = _grown if (read or _seldom(known)) and not unknown else _joined
        known = grow_by(store, train, test, known, wanted, mapper)
        known["drawn"].append(wanted.key)
        _finish(store, train, test, known)
    return _index(train, test, address, known)


def settled(store: Store, index: Index, mapper: Mapper) -> tuple[Index, identify.Errors]:
    """Give the images of a pool their ids, once they have been embedded, and put those apart that cannot be drawn.

    Args:
        index: the pool; the test split `apart` has ids.

    Returns:
        the pool, and the errors of repeated images under their new ids.
    """
    train, test = (replace(split, labels={}) for split in (index.of, index.apart))
    known = store.manifest(index.address)
    unread = [own for own in found.by_part(index) if own[0].part in known["unread"]]
    list(mapper(found.merged, [(store, index.place, own) for own in unread]))
    errors = identify.number(store, index, mapper)
    before = known["out"]["files"]
    (known,) = mapper(grow.settle_joined, [(store, test, index.address, known)])
    if known["out"]["files"] != before:  # what was drawn before has to be drawn again
        known["drawn"] = []
    _finish(store, train, test, known)
    found.clear(store, index.address)
    return _index(index.of, index.apart, index.address, known), errors


def _finish(store: Store, train: Index, test: Index, known: dict[str, Any]) -> None:
    facts = {key: known[key] for key in _nothing()}
    store.finish(place(store, train, test), what(train, test), **facts)


def _index(train: Index, test: Index, address: str, known: dict[str, Any]) -> Index:
    out, rows = outcast(known), sum(known["parts"])
    if rows == out.inside and out.unread and out.unread == sum(out.labels.values()):
        raise usable.unusable(train.dataset, train.split, out.first)
    return replace(
        train,
        address=address,
        parts=tuple(known["parts"]),
        chunk_parts=tuple(known["chunk_parts"]),
        content=known["content"],
        known_as=address,
        of=train,
        apart=test,
        listed=bool(known["unread"]),
        row_groups=(),
        labels={label: n - out.labels.get(label, 0) for label, n in train.labels.items()},
        remarks=_remarks(out, rows - out.inside),
    )


def _joined(
    store: Store, train: Index, test: Index, known: dict[str, Any], wanted: Wanted, mapper: Mapper
) -> dict[str, Any]:
    """Add what a pool lacks, unread; return what its manifest has to tell."""
    address, train = place(store, train, test), replace(train, labels={})
    item = (store, train, address, known, *wanted.with_spare(wanted.spare))
    (lacking,) = mapper(grow.choose, [item])
    return grow.join(store, train, address, known, lacking)


def _grown(
    store: Store, train: Index, test: Index, known: dict[str, Any], wanted: Wanted, mapper: Mapper
) -> dict[str, Any]:
    """Read and add what a pool lacks; return what its manifest has to tell.

    A spare of each class is read with the others, so that few images that cannot be used cost no second round; each
    further round takes a spare twice as large.
    """
    address, spare = place(store, train, test), wanted.spare
    train, test = (replace(split, labels={}) for split in (train, test))  # no worker looks at them
    while True:
        item = (store, train, address, known, *wanted.with_spare(spare))
        (lacking,) = mapper(grow.choose, [item])
        if not lacking:
            return known
        list(mapper(grow.read, [(store, train, address, *own) for own in lacking]))
        before, changed = known["out"]["files"], [part for part, _ in lacking]
        (known,) = mapper(grow.settle, [(store, train, test, address, known, changed)])
        list(mapper(grow.clear, [(store, address, changed)]))
        if known["out"]["files"] == before:  # all that was drawn can be used
            return known
        spare *= 2


def _seldom(known: dict[str, Any]) -> bool:
    """Tell whether fewer than half of the images that were drawn so far can be used."""
    out = outcast(known)
    unusable = sum(out.labels.values())
    return unusable > sum(known["parts"]) - out.inside


def what(train: Index, test: Index) -> dict[str, Any]:
    """Return the WHAT of a pool: the rows that it is drawn from, not how many are drawn."""
    made_by = code(draws.draws, draws.apart, sources.identified)
    return {"train": train.address, "test": test.address, "code": made_by}


def place(store: Store, train: Index, test: Index) -> str:
    """Return the address of a pool."""
    return store.address("index", train.dataset, "pool", what=what(train, test))


def _nothing() -> dict[str, Any]:
    """Return what the manifest of a pool without an image would tell."""
    nothing = {"parts": [], "chunk_parts": [], "unread": [], "content": f"{0:032x}", "drawn": []}
    return nothing | {"out": Outcast(0, {}, 0, "", 0)._asdict()}


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
