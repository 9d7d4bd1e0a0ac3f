"""Pools: what support sets may hold, and no more; a draw from a pool is that from the whole split."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from clipray.artefacts import index as parts
from clipray.artefacts.index import Index
from clipray.config import Dataset
from clipray.numerics import draws
from clipray.steps import campaign as run
from clipray.steps.index.pool import pool
from clipray.steps.indices import index
from clipray.steps.mappers import in_threads
from clipray.steps.todo import Plan
from clipray.store import Store

CLASSES = 10


def tars(root: Path, images: int, each: int = 1000) -> None:
    """A WebDataset of ten classes: tiny files that are no images, for no step here decodes them."""
    for split, count in (("train", images), ("test", 50)):
        (root / split).mkdir(parents=True)
        for shard, first in enumerate(range(0, count, each)):
            with tarfile.open(root / split / f"{shard}.tar", "w") as tar:
                for number in range(first, min(first + each, count)):
                    # some images of the test split stand in the train split too
                    unlike = number if split == "train" or number < 20 else images + number
                    for name, data in (("png", b"%d" % unlike), ("cls", b"%d" % (number % 10))):
                        info = tarfile.TarInfo(f"s{number}.{name}")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
    (root / "classnames.txt").write_text("\n".join(f"class {n}" for n in range(CLASSES)))
    (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")


@pytest.fixture(scope="module")
def splits(tmp_path_factory) -> tuple[Store, Index, Index]:
    """A store, and the indices of a train split of 600 images and of its test split."""
    root = tmp_path_factory.mktemp("pool")
    tars(root / "set", 600, each=100)
    dataset = Dataset(name="set", format="wds", uri=str(root / "set"))
    store = Store(str(root / "w"))
    return store, *(index(store, dataset, s, "", in_threads) for s in ("train", "test"))


def drawn(store: Store, rows: Index, test: Index, shots: list[int], seeds: int, without=()):
    """Support sets as sets of ids, drawn from an index."""
    table = rows.table(store, ["image_id", "key", "label"])
    ids = np.array(table["image_id"].to_pylist())
    kept = ~np.isin(ids, list(without))
    names = np.array(table["key"].to_pylist())[kept]
    ids, labels_N = ids[kept], table["label"].to_numpy()[kept]
    tested = test.table(store, ["image_id"])["image_id"].to_pylist()
    free_N = draws.apart(ids.tolist(), tested)
    found = draws.draws(names, labels_N, CLASSES, shots, range(seeds), free_N)
    return {(one.shots, one.seed): set(ids[one.rows_K]) for one in found}


def test_a_draw_from_a_pool_is_that_from_the_whole_split(splits):
    store, train, test = splits
    for shots, seeds in (([1], 1), ([1, 4], 2), ([16], 1), ([2], 5), ([100], 1)):
        some = pool(store, train, test, CLASSES, shots, seeds, in_threads)
        assert len(some) <= len(train)
        assert drawn(store, some, test, shots, seeds) == drawn(store, train, test, shots, seeds)
    assert len(some) == 600 - 20  # all that do not stand in the test split too


def test_images_that_cannot_be_used_are_replaced(splits, tmp_path):
    store, train, test = splits
    own = Store(str(tmp_path))
    for name in store.names(train.address):
        own.write(f"{train.address}/{name}", store.read(f"{train.address}/{name}"))
    for name in store.names(test.address):
        own.write(f"{test.address}/{name}", store.read(f"{test.address}/{name}"))
    some = pool(own, train, test, CLASSES, [4], 2, in_threads)
    first = some.table(own, ["image_id"])["image_id"].to_pylist()
    # half of the pool turns out to be no images, and so on with what takes their place
    bad = set(first[::2])
    more = pool(own, train, test, CLASSES, [4], 2, in_threads, bad)
    assert more.table(own, ["image_id"])["image_id"].to_pylist()[: len(first)] == first
    assert drawn(own, more, test, [4], 2, bad) == drawn(own, train, test, [4], 2, bad)
    assert more.identity == some.identity


def test_a_pool_is_drawn_once_and_its_rows_lie_where_its_chunks_say(splits):
    store, train, test = splits
    some = pool(store, train, test, CLASSES, [3], 1, in_threads)

    def forbidden(function, items):
        raise AssertionError("the splits were read again")

    assert pool(store, train, test, CLASSES, [1, 2], 1, forbidden) == some
    from clipray import sources

    for shard in some.shards(7):
        rows, chunks = parts.read(store, some.place, *shard[1:])
        for row, data in zip(rows.to_pylist(), sources.contents(chunks, rows), strict=True):
            assert sources.image_id(data) == row["image_id"]
            assert int(data) % CLASSES == row["label"]


def embedded(todo: Plan) -> int:
    """Declare all that a plan lacks as done; returns the number of train images that it lacked."""
    train = todo.works["set", "train"]
    for work in todo.works.values():
        for name, place in work.addresses.items():
            shards = [shard.name for shard in work.shards()]
            todo.store.finish(place, work.whats[name], shards=shards, errors={}, keys={})
            for shard in shards:
                todo.store.write(f"{place}/{shard}", b"")
    return train.images


def test_ten_thousand_images_and_one_shot_are_sixty_at_most(tmp_path, campaign):
    """And a later run with more shots embeds only the rest of what it needs."""
    tars(tmp_path / "set", 10_000)
    (tmp_path / "set.yaml").write_text(f"name: set\nformat: wds\nuri: {tmp_path / 'set'}\n")
    given = {"datasets": [str(tmp_path / "set.yaml")], "seeds": 1}
    one = run.plan(campaign(**given, shots=[1]))
    assert len(one.works["set", "test"].index) == 50
    first = embedded(one)
    assert CLASSES <= first <= 60
    assert run.plan(campaign(**given, shots=[1])).images == 0

    four = run.plan(campaign(**given, shots=[1, 4]))
    whole = len(four.works["set", "train"].index)
    second = embedded(four)
    assert second == whole - first
    assert 4 * CLASSES <= whole <= 7 * CLASSES
    # fewer shots are there already; a method that looks at the whole split has it embedded
    assert run.plan(campaign(**given, shots=[2])).images == 0
    meta = run.plan(campaign(**given, shots=[1], fusers=["log_avg", "nlc_meta"]))
    assert meta.works["set", "train"].images == 10_000
    every = run.plan(campaign(**given, shots=[1, "all"]))
    assert every.works["set", "train"].images == 10_000
    assert not any("fewer images than shots" in remark for remark in every.remarks)
