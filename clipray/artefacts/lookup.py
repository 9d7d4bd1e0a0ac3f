"""Images of an index by their ids: where a person finds them, the names that they are drawn by, their bytes."""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from clipray import sources
from clipray.artefacts.index import Index, chunks_of, part_name
from clipray.store import Store


def keys(store: Store, index: Index, image_ids: set[str]) -> dict[str, str]:
    """Return where a person finds some images, by their ids; the index is read part by part until all are found."""
    found: dict[str, str] = {}
    wanted = pa.array(sorted(image_ids), pa.string())
    for part in range(len(index.parts)):
        if len(found) == len(image_ids):
            break
        table = store.read_table(f"{index.address}/{part_name(part)}", ["image_id", "key"])
        own = table.filter(pc.is_in(table["image_id"], value_set=wanted))
        found |= zip(own["image_id"].to_pylist(), own["key"].to_pylist(), strict=True)
    return found


def names(store: Store, address: str, image_ids: Sequence[str]) -> list[str]:
    """Return the names that images are drawn by: where each one lies, as its row in an index at an address says.

    It changes nothing where the whole set is moved, and is known before an image is read.

    Raises:
        ValueError: the index does not hold one of them.
    """
    found: dict[str, str] = {}
    for part in range(len((store.manifest(address) or {"parts": []})["parts"])):
        table = store.read_table(f"{address}/{part_name(part)}", ["image_id", "key"])
        found |= zip(table["image_id"].to_pylist(), table["key"].to_pylist(), strict=True)
    lacking = next((image_id for image_id in image_ids if image_id not in found), None)
    if lacking is not None:
        raise ValueError(f"{store.place(address)} does not hold the image {lacking}")
    return [found[image_id] for image_id in image_ids]


def images(
    store: Store, index: Index, image_ids: set[str]
) -> Iterator[tuple[str, tuple[str, bytes | Exception | None]]]:
    """A few images by their ids: (id, (where a person finds it, its bytes or why they cannot be read))."""
    wanted, left = pa.array(sorted(image_ids), pa.string()), len(image_ids)
    for part, chunk_part in enumerate(index.chunk_parts):
        if not left:
            return
        table = store.read_table(f"{index.address}/{part_name(part)}")
        own = table.filter(pc.is_in(table["image_id"], value_set=wanted)).sort_by("chunk")
        left -= len(own)
        chunks = chunks_of(store.uri, index.chunks_at, chunk_part, index.location)
        numbers = sorted(pc.unique(own["chunk"]).to_pylist())
        data = sources.contents({number: chunks[number] for number in numbers}, own)
        ids, names = (own[column].to_pylist() for column in ("image_id", "key"))
        yield from zip(ids, zip(names, data, strict=True), strict=True)
