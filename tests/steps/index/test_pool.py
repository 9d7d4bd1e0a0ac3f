"""Pools: what support sets may hold, and no more; a draw from a pool is that from the whole split."""

import io
import os
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipray import sources
from clipray.artefacts import index as parts
from clipray.artefacts.index import Index
from clipray.config import Dataset
from clipray.errors import ConfigError
from clipray.numerics import draws
from clipray.steps import campaign as run
from clipray.steps import campaign_ids, indices
from clipray.steps.index import grow
from clipray.steps.index.pool import pool
from clipray.steps.indices import index, source
from clipray.steps.mappers import in_threads
from clipray.steps.tally import Tally
from clipray.steps.todo import Plan
from clipray.store import Store
from tests.sources.made import bytes_read

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


def listed(store: Store, dataset: Dataset, limit: int = 0) -> Index:
    """The list of a train split, of which no image is read."""
    return indices.listed(source(store, dataset, "train", ""), in_threads, limit, drawn=True)


@pytest.fixture(scope="module")
def splits(tmp_path_factory) -> tuple[Store, Index, Index, Index]:
    """A store, the list of a train split of 600 images, the index of its test split, and that of all train images."""
    root = tmp_path_factory.mktemp("pool")
    tars(root / "set", 600, each=100)
    dataset = Dataset(name="set", format="wds", uri=str(root / "set"))
    store = Store(str(root / "w"))
    test, whole = (index(store, dataset, split, "", in_threads) for split in ("test", "train"))
    return store, listed(store, dataset), test, whole


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
    store, train, test, whole = splits
    for shots, seeds in (([1], 1), ([1, 4], 2), ([16], 1), ([2], 5), ([100], 1)):
        some = pool(store, train, test, CLASSES, shots, seeds, in_threads)
        assert len(some) <= len(train)
        assert drawn(store, some, test, shots, seeds) == drawn(store, whole, test, shots, seeds)
    assert len(some) == 600 - 20  # all that do not stand in the test split too


def test_images_that_cannot_be_used_are_replaced(splits, tmp_path):
    store, train, test, whole = splits
    own = Store(str(tmp_path))
    for made_at in (train.address, test.address, whole.address):
        for name in store.names(made_at):
            own.write(f"{made_at}/{name}", store.read(f"{made_at}/{name}"))
    some = pool(own, train, test, CLASSES, [4], 2, in_threads)
    first = some.table(own, ["image_id"])["image_id"].to_pylist()
    # half of the pool turns out to be no images, and so on with what takes their place
    bad = set(first[::2])
    more = pool(own, train, test, CLASSES, [4], 2, in_threads, bad)
    assert more.table(own, ["image_id"])["image_id"].to_pylist()[: len(first)] == first
    assert drawn(own, more, test, [4], 2, bad) == drawn(own, whole, test, [4], 2, bad)
    assert more.identity == some.identity


def test_a_pool_is_drawn_once_and_its_rows_lie_where_its_chunks_say(splits):
    store, train, test, _ = splits
    some = pool(store, train, test, CLASSES, [3], 1, in_threads)

    def forbidden(function, items):
        raise AssertionError("the splits were read again")

    assert pool(store, train, test, CLASSES, [1, 2], 1, forbidden) == some
    for shard in some.shards(7):
        rows, chunks = parts.read(store, some.place, *shard[1:])
        for row, data in zip(rows.to_pylist(), sources.contents(chunks, rows), strict=True):
            assert sources.image_id(data) == row["image_id"]
            assert int(data) % CLASSES == row["label"]


def folder(root: Path, images: int, broken: int = 0) -> Dataset:
    """Ten classes, whose first `broken` train images are links to nothing; 20 test images stand in train too."""
    for split, count in (("train", images), ("test", 50)):
        for number in range(count):
            place = root / split / f"class {number % CLASSES}" / f"{number:04d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            if split == "train" and number < broken * CLASSES:
                place.symlink_to("nowhere")
                continue
            unlike = number if split == "train" or number >= 20 else images - 1 - number
            kind = "" if split == "train" or number < 20 else "test"
            place.write_bytes(b"%d%s" % (unlike, kind.encode()))
    return Dataset(name="set", format="folder", uri=str(root))


def test_what_cannot_be_read_is_replaced_told_and_never_read_again(tmp_path, monkeypatch):
    store, dataset = Store(str(tmp_path / "w")), folder(tmp_path / "set", 400, broken=30)
    train, test = listed(store, dataset), index(store, dataset, "test", "", in_threads)
    assert train.remarks == ()  # no image was looked at
    asked: Counter[str] = Counter()
    read = grow.read

    def counted(store, train, address, part, rows):
        table = store.read_table(f"{train.address}/{parts.part_name(part)}", ["key"])
        asked.update(table["key"].take(pa.array(rows)).to_pylist())
        return read(store, train, address, part, rows)

    monkeypatch.setattr(grow, "read", counted)
    some = pool(store, train, test, CLASSES, [4], 2, in_threads)
    rows = some.table(store)
    assert rows["error"].null_count == len(rows)
    assert all(len(own) == 4 * CLASSES for own in drawn(store, some, test, [4], 2).values())
    (told,) = some.remarks
    assert "cannot be read" in told
    assert f"{len(asked)} images" in told
    assert "cannot be read: FileNotFoundError" in told
    # 8 of 40 images of a class stand there, and 2 of all in the test split
    more = pool(store, train, test, CLASSES, [100], 2, in_threads)
    assert len(more) == 100 - 20
    assert set(asked.values()) == {1}
    assert not any(name.startswith("read-") for name in store.names(more.address))
    assert len(asked) == 400
    assert sum(more.labels.values()) == 80
    assert more.table(store).slice(0, len(rows)).equals(rows)
    whole = index(store, dataset, "train", "", in_threads)
    assert drawn(store, more, test, [4, 100], 2) == drawn(
        store, usable_of(store, whole), test, [4, 100], 2
    )


def test_a_split_of_which_nothing_can_be_read_is_an_error_and_one_that_is_tested_is_none(tmp_path):
    store, dataset = Store(str(tmp_path / "w")), folder(tmp_path / "set", 40, broken=4)
    test = index(store, dataset, "test", "", in_threads)
    words = r"its train split holds no image that can be used"
    for _ in range(2):  # and where it is known already
        with pytest.raises(ConfigError, match=words):
            listed(store, dataset)
    # of a row group no single image is looked at
    table = pa.table(
        {"image": [f"{n}.png" for n in range(40)], "label": [n % 10 for n in range(40)]}
    )
    pq.write_table(table, tmp_path / "train.parquet")
    names = tuple(f"class {n}" for n in range(CLASSES))
    paths = Dataset(name="paths", format="parquet", uri=str(tmp_path), classnames=names)
    for _ in range(2):
        with pytest.raises(ConfigError, match=words):
            pool(store, listed(store, paths), test, CLASSES, [1], 1, in_threads)
    both = dataset.model_copy(update={"splits": {"train": "test", "test": "test"}})
    some = pool(store, listed(store, both), test, CLASSES, [1], 1, in_threads)
    assert (len(some), some.remarks) == (0, ())
    assert set(some.labels.values()) == {0}


def test_equal_images_are_numbered_and_keep_their_numbers(tmp_path):
    store, dataset = Store(str(tmp_path / "w")), folder(tmp_path / "set", 300)
    for place in sorted((tmp_path / "set" / "train").rglob("*.png"))[::2]:
        place.write_bytes(b"the same")
    train, test = listed(store, dataset), index(store, dataset, "test", "", in_threads)
    seen: list[str] = []
    for shots in (1, 5, 100):
        some = pool(store, train, test, CLASSES, [shots], 1, in_threads)
        ids = some.table(store)["image_id"].to_pylist()
        assert ids[: len(seen)] == seen
        assert len(set(ids)) == len(ids)
        seen = ids
    assert sum("." in one for one in seen) == 150 - 1


def test_a_set_that_is_moved_or_limited_gives_the_same_support_sets(tmp_path):
    store, dataset = Store(str(tmp_path / "w")), folder(tmp_path / "set", 300)
    test = index(store, dataset, "test", "", in_threads)
    first = pool(store, listed(store, dataset), test, CLASSES, [3], 2, in_threads)
    few = pool(store, listed(store, dataset, 100), test, CLASSES, [3], 2, in_threads)
    whole = index(store, dataset, "train", "", in_threads, limit=100)
    assert drawn(store, few, test, [3], 2) == drawn(store, whole, test, [3], 2)
    assert drawn(store, few, test, [3], 2) != drawn(store, first, test, [3], 2)
    (tmp_path / "set").rename(tmp_path / "moved")
    moved = dataset.model_copy(update={"uri": str(tmp_path / "moved")})
    other = Store(str(tmp_path / "other"))
    tests = index(other, moved, "test", "", in_threads)
    again = pool(other, listed(other, moved), tests, CLASSES, [3], 2, in_threads)
    assert drawn(other, again, tests, [3], 2) == drawn(store, first, test, [3], 2)


def test_classes_with_fewer_images_than_shots_are_told_as_far_as_images_were_read(
    tmp_path, campaign, capsys
):
    folder(tmp_path / "set", 400, broken=30)
    (tmp_path / "set.yaml").write_text(f"name: set\nformat: folder\nuri: {tmp_path / 'set'}\n")
    (tmp_path / "set" / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")
    given = {"datasets": [str(tmp_path / "set.yaml")], "seeds": 1}
    for shots, words in ((4, "cannot be read"), (16, "10 at 16 shots")):
        todo = run.plan(campaign(**given, shots=[shots], workspace=str(tmp_path / f"w{shots}")))
        # by the list a class has 40 images; 10 can be read, and of these 2 stand in the test split too
        assert todo.remarks == []
        while todo.images:
            changed = as_if_embedded(todo)
            run._grow(todo, changed)
        said = capsys.readouterr().err
        assert "images that were drawn for support sets cannot be read" in said
        assert words in said
        assert ("fewer images than shots" in said) == (shots == 16)


def as_if_embedded(todo: Plan) -> set[str]:
    """Tell a plan that workers have embedded all, which finds the ids of the images; see `campaign_ids.found`."""
    told = {}
    for place, work in todo.works.items():
        told[place] = {name: Tally(set(work.todo)) for name in work.addresses}
        todo.works[place] = replace(work, todo={shard: [] for shard in work.todo})
    return campaign_ids.found(todo, told)


def usable_of(store: Store, whole: Index) -> Index:
    """The same without the rows that cannot be used, which have no embedding."""
    table = whole.table(store)
    good = table.filter(pa.compute.is_null(table["error"]))
    store.write_table(f"usable/{parts.part_name(0)}", good)
    return replace(whole, address="usable", parts=(len(good),))


def large(layout: str, root: Path, images: int, size: int) -> Dataset:
    """Train and test images of random bytes in ten classes, a row group of each 20."""
    for split, count in (("train", images), ("test", 10)):
        data = [np.random.default_rng([count, n]).bytes(size) for n in range(count)]
        labels = [n % CLASSES for n in range(count)]
        if layout == "folder":
            for number, one in enumerate(data):
                place = root / split / f"class {labels[number]}" / f"{number:05d}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(one)
            continue
        if layout == "parquet":
            root.mkdir(parents=True, exist_ok=True)
            # as sets are often sorted: a class lies together, so that few row groups hold what is drawn of it
            table = pa.table({"image": data, "label": labels}).sort_by("label")
            pq.write_table(table, root / f"{split}.parquet", row_group_size=20)
            continue
        (root / split).mkdir(parents=True)
        with tarfile.open(root / split / "0.tar", "w") as tar:
            for number, one in enumerate(data):
                for name, part in (("png", one), ("cls", b"%d" % labels[number])):
                    info = tarfile.TarInfo(f"s{number}.{name}")
                    info.size = len(part)
                    tar.addfile(info, io.BytesIO(part))
    names = tuple(f"class {n}" for n in range(CLASSES))
    return Dataset(name="set", format=layout, uri=str(root), classnames=names)


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="no /proc/self/io")
@pytest.mark.parametrize("layout", ["folder", "parquet", "wds"])
def test_of_a_train_split_only_what_support_sets_may_hold_is_read(tmp_path, layout):
    dataset = large(layout, tmp_path / "set", 2000, 15_000)
    store = Store(str(tmp_path / "w"))
    test = index(store, dataset, "test", "", in_threads)
    before = bytes_read()
    train = listed(store, dataset)
    some = pool(store, train, test, CLASSES, [1], 1, in_threads)
    for shard in some.shards(64):  # and once more, for their pixels
        rows, chunks = parts.read(store, some.place, *shard[1:])
        assert all(isinstance(one, bytes) for one in sources.contents(chunks, rows))
    read = bytes_read() - before
    assert len(some) == 3 * CLASSES
    groups = len(set(some.table(store)["chunk"].to_pylist()))
    if (
        layout == "parquet"
    ):  # of 100 row groups those with a drawn row, and the label column and the footer of each
        assert read <= 2 * groups * (20 * 15_000 + 70_000) + 100 * 70_000 + 200_000
        assert groups <= 30
    else:  # of a tar the headers and labels, too
        assert read <= 2 * 30 * 15_000 + (2000 * 2100 if layout == "wds" else 0) + 200_000


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
