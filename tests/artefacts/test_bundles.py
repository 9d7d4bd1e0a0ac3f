"""Bundles of shards: each row group is in one of them, or few are in two."""

import os
import pickle
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipray import sources
from clipray.artefacts import bundles
from clipray.artefacts import index as parts
from clipray.artefacts.index import Index
from clipray.config import Dataset
from clipray.sources import parquet
from clipray.steps.indices import listed, source
from clipray.steps.mappers import in_threads
from clipray.store import Store
from tests.sources.made import bytes_read


def split(row_groups: list[int], rows: int = parts.PART_ROWS) -> Index:
    """An index of row groups whose parts have at least so many rows."""
    lengths, length = [], 0
    for group in row_groups:
        length += group
        if length >= rows:
            lengths.append(length)
            length = 0
    lengths += [length] if length else []
    numbers = tuple(range(len(lengths)))
    index = Index("set", "test", "", "", "", tuple(lengths), numbers, "")
    return replace(index, row_groups=tuple(row_groups))


def reads(index: Index, made: list) -> np.ndarray:
    """How many bundles have rows of each row group."""
    ends = np.cumsum(index.row_groups)
    count = np.zeros(len(ends), int)
    for bundle in made:
        first = int(bundle[0].name.partition(".")[0])
        last = first + sum(shard.rows for shard in bundle) - 1
        count[np.searchsorted(ends, first, "right") : np.searchsorted(ends, last, "right") + 1] += 1
    return count


@pytest.mark.parametrize("group", [1, 20, 64, 100, 200, 256, 300, 500, 1000, 3000, 5000, 9000])
def test_row_groups_are_read_once_or_few_of_them_twice(group):
    index = split([group] * (40_000 // group) + [7])
    shards = list(index.shards(256))
    made = list(bundles.bundles(index, shards))
    assert [shard for bundle in made for shard in bundle] == shards
    assert max(sum(shard.rows for shard in bundle) for bundle in made) <= bundles.MOST
    count = reads(index, made)
    assert count.min() == 1
    if group <= bundles.MOST:
        assert count.sum() <= 1.2 * len(count) + 1
    if 256 <= group <= bundles.MOST:  # no shard is of two of them
        assert count.max() == 1
    assert count.max() <= max(2, -(-group // bundles.MOST))


@pytest.mark.parametrize("rows", [64, 256])
def test_shards_cover_every_row_and_none_is_of_two_large_row_groups(rows):
    random = np.random.default_rng(rows)
    index = split(random.integers(1, 1500, 60).tolist(), 3000)
    shards = list(index.shards(rows))
    places = [int(shard.name.partition(".")[0]) for shard in shards]
    assert places == np.cumsum([0, *(shard.rows for shard in shards)])[:-1].tolist()
    assert sum(shard.rows for shard in shards) == len(index)
    starts = np.cumsum([0, *index.parts])
    assert [starts[shard.part] + shard.start for shard in shards] == places
    assert all(1 <= shard.rows <= rows for shard in shards)
    ends = np.cumsum(index.row_groups)
    large = ends[np.array(index.row_groups) >= rows]
    for place, shard in zip(places, shards, strict=True):
        assert not np.any((large > place) & (large < place + shard.rows))


def test_other_layouts_and_what_is_done_already_have_bundles_of_their_own():
    index = split([1000] * 10)
    alone = replace(index, row_groups=())
    shards = list(index.shards(256))
    assert [len(bundle) for bundle in bundles.bundles(alone, shards)] == [1] * len(shards)
    some = [*shards[:3], *shards[5:7]]  # of the first row group, and of the second one
    assert [len(bundle) for bundle in bundles.bundles(index, some)] == [3, 2]
    assert list(bundles.bundles(index, [])) == []


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="no /proc/self/io")
def test_a_row_group_that_is_too_large_to_hold_passes_once(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "KEPT", 2**20)
    monkeypatch.setattr(parquet, "_kept", {})
    cells = [np.random.default_rng(number).bytes(20_000) for number in range(600)]
    cells[5] = cells[300] = None
    table = pa.table({"image": cells, "label": [number % 3 for number in range(600)]})
    pq.write_table(table, tmp_path / "test.parquet", row_group_size=500)
    names = ("x", "y", "z")
    dataset = Dataset(name="set", format="parquet", uri=str(tmp_path), classnames=names)
    store = Store(str(tmp_path / "w"))
    index = listed(source(store, dataset, "test", ""), in_threads)
    assert index.row_groups == (500, 100)
    before = bytes_read()
    found = []
    for bundle in bundles.bundles(index, index.shards(64)):
        place = pickle.loads(pickle.dumps(index.place))
        for finder, data in bundles.read(store, place, [shard[1:] for shard in bundle]):
            assert len(finder.rows) <= 64
            found += data
    assert bytes_read() - before <= 1.1 * 600 * 20_000
    assert [one if isinstance(one, bytes) else None for one in found] == cells
    assert parquet._kept == {}
    # few rows of it, as a pool has them
    rows = index.table(store, ["chunk", "row", "error"]).take(pa.array([3, 5, 444, 500, 599]))
    chunks = dict(enumerate(sources.listing(dataset, "test", "")))
    few = list(sources.contents(chunks, rows))
    assert [few[0], *few[2:]] == [cells[row] for row in (3, 444, 500, 599)]
    assert isinstance(few[1], Exception)
