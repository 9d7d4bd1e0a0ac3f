"""The index: equal collections have equal content, a limit is even over classes."""

import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipray import sources
from clipray.artefacts import index as parts
from clipray.artefacts.index import TEXTS, evenly, what
from clipray.config import Compute, Dataset, GivenBackbone, HashSplit, fingerprint
from clipray.errors import ConfigError
from clipray.sources import folder as layout
from clipray.steps.indices import index
from clipray.steps.mappers import in_threads, reader
from clipray.store import Store


def folder(root: Path, names: dict[str, bytes]) -> Dataset:
    for name, data in names.items():
        place = root / "test" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    return Dataset(name="made", format="folder", uri=str(root), splits=["test"])


FILES = {"a/1.png": b"one", "a/2.png": b"two", "b/3.png": b"three", "b/4.png": b"one"}


def test_content_is_that_of_the_images_not_of_their_names_or_places(tmp_path):
    store = Store(str(tmp_path / "w"))
    first = index(store, folder(tmp_path / "x", FILES), "test", "", in_threads)
    renamed = {"a/9.png": b"one", "a/8.png": b"two", "b/7.png": b"three", "b/6.png": b"one"}
    second = index(store, folder(tmp_path / "y", renamed), "test", "", in_threads)
    assert len(first) == 4
    assert first.content == second.content
    relabelled = {"b/1.png": b"one", "a/2.png": b"two", "b/3.png": b"three", "b/4.png": b"one"}
    assert (
        index(store, folder(tmp_path / "z", relabelled), "test", "", in_threads).content
        != first.content
    )


def test_equal_images_are_told_apart(tmp_path):
    store = Store(str(tmp_path / "w"))
    found = index(store, folder(tmp_path / "x", FILES), "test", "", in_threads)
    ids = found.table(store)["image_id"].to_pylist()
    assert len(set(ids)) == 4
    assert ids[3] == ids[0] + ".1"


def test_a_known_source_is_not_read_again_and_a_changed_one_is(tmp_path):
    store, dataset = Store(str(tmp_path / "w")), folder(tmp_path / "x", FILES)
    index(store, dataset, "test", "", in_threads)

    def forbidden(function, items):
        raise AssertionError("the source was read again")

    index(store, dataset, "test", "", forbidden)
    (tmp_path / "x" / "test" / "a" / "5.png").write_bytes(b"five")
    assert len(index(store, dataset, "test", "", in_threads)) == 5
    shutil.rmtree(tmp_path / "x" / "test" / "b")
    assert len(index(store, dataset, "test", "", in_threads)) == 3


def test_a_limit_is_even_over_classes_and_the_same_in_any_order():
    table = pa.table(
        {"place": [f"{i:02d}" for i in range(12)], "label": [0] * 8 + [1] * 3 + [None]}
    )
    chosen = table.take(evenly(table, 5))
    labels = chosen["label"].to_pylist()
    assert len(labels) == 5
    assert labels.count(0) == 2
    assert labels.count(1) == 2
    shuffled = table.take([7, 3, 11, 0, 5, 9, 1, 2, 10, 4, 8, 6])
    again = shuffled.take(evenly(shuffled, 5))
    assert set(again["place"].to_pylist()) == set(chosen["place"].to_pylist())
    assert len(evenly(table, 100)) == 12


def test_a_limited_index_is_that_of_the_chosen_images(tmp_path):
    store, dataset = Store(str(tmp_path / "w")), folder(tmp_path / "x", FILES)
    whole = index(store, dataset, "test", "", in_threads)
    for _ in range(2):
        two = index(store, dataset, "test", "", in_threads, limit=2)
        assert len(two) == 2
        assert two.table(store)["label"].to_pylist() == [0, 1]
    assert two.content != whole.content
    (shard,) = two.shards(256)
    rows, chunks = parts.read(store, two.place, *shard[1:])
    known = {sources.image_id(data) for data in FILES.values()}
    for image_id, data in zip(
        rows["image_id"].to_pylist(), sources.contents(chunks, rows), strict=True
    ):
        assert sources.image_id(data) == image_id.partition(".")[0] in known
    assert index(store, dataset, "test", "", in_threads, limit=4).content == whole.content


def test_an_index_of_many_parts_is_that_of_one(tmp_path, monkeypatch):
    """Repeats are numbered over parts, and the digest is a sum that parts add up to."""
    names = {f"{'ab'[n % 2]}/{n:02d}.png": b"%d" % (n % 11) for n in range(40)}
    dataset = folder(tmp_path / "x", names)
    monkeypatch.setattr(layout, "CHUNK", 3)
    one = Store(str(tmp_path / "one"))
    whole = index(one, dataset, "test", "", in_threads)
    monkeypatch.setattr(parts, "PART_ROWS", 4)
    many = Store(str(tmp_path / "many"))
    apart = index(many, dataset, "test", "", in_threads)
    assert len(whole.parts) == 1
    assert len(apart.parts) == 7
    assert apart.content == whole.content
    assert apart.table(many).equals(whole.table(one))
    seen: Counter[str] = Counter()
    for image_id in whole.table(one)["image_id"].to_pylist():  # the slow way
        first, _, number = image_id.partition(".")
        assert int(number or 0) == seen[first]
        seen[first] += 1
    rows = [parts.read(many, apart.place, *shard[1:])[0] for shard in apart.shards(5)]
    assert pa.concat_tables(rows).equals(whole.table(one))


def test_an_index_serves_its_images_wherever_they_are_moved(tmp_path):
    store, dataset = Store(str(tmp_path / "w")), folder(tmp_path / "x", FILES)
    here = dataset.model_copy(update={"uri": "x"})  # below the data root
    first = index(store, here, "test", str(tmp_path), in_threads)
    (tmp_path / "moved").mkdir()
    (tmp_path / "x").rename(tmp_path / "moved" / "x")
    second = index(store, here, "test", str(tmp_path / "moved"), in_threads)
    assert first.address == second.address
    (shard,) = second.shards(256)
    rows, chunks = parts.read(store, second.place, *shard[1:])
    assert sorted(sources.contents(chunks, rows)) == sorted(FILES.values())


def test_threads_keep_the_order():
    assert list(in_threads(lambda a, b: a * b, [(i, 2) for i in range(50)])) == [
        2 * i for i in range(50)
    ]
    assert list(reader(Compute())(max, [(1, 2), (4, 3)])) == [2, 4]


CHANGES = {  # another value of each field of a dataset
    "name": "other",
    "format": "folder",
    "uri": "elsewhere",
    "splits": {"train": "test", "test": "test"},
    "classnames": ("x", "y"),
    "templates": ("a {c}",),
    "options": {"label": "kind"},
    "backbones": {"a": GivenBackbone(images="a.npy")},
    "labels": "labels.npy",
    "ids": "ids.npy",
    "split": HashSplit(test=0.5),
}


def parquet(root: Path, labels: list, kinds: list | None = None) -> Dataset:
    images = [b"%d" % number for number in range(len(labels))]
    table = pa.table({"image": images, "label": labels, "kind": kinds or labels})
    root.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, root / "test.parquet")
    names = ("a", "b", "c")
    return Dataset(name="made", format="parquet", uri=str(root), splits=["test"], classnames=names)


def test_every_field_that_decides_who_has_which_label_is_in_the_address(tmp_path):
    dataset = parquet(tmp_path / "x", [0, 1, 2])
    chunks = sources.listing(dataset, "test", "")
    before = fingerprint(what(dataset, "test", chunks))
    assert set(CHANGES) == set(Dataset.model_fields)
    for field, value in CHANGES.items():
        changed = dataset.model_copy(update={field: value})
        assert changed != dataset
        same = fingerprint(what(changed, "test", chunks)) == before
        assert same == (field in TEXTS), field
    assert fingerprint(what(dataset, "train", chunks)) != before


def test_another_label_column_or_order_of_labels_is_never_served_the_old_ones(tmp_path):
    store = Store(str(tmp_path / "w"))
    first = parquet(tmp_path / "x", [0, 1, 2], ["z", "y", "x"])

    def labels(**options) -> list[int]:
        given = first.model_copy(update={"options": options, "classnames": ("x", "y", "z")})
        if "labels" in options:
            given = given.model_copy(update={"classnames": tuple(options["labels"])})
        return index(store, given, "test", "", in_threads).table(store)["label"].to_pylist()

    assert labels() == [0, 1, 2]
    assert labels(label="kind", labels=["x", "y", "z"]) == [2, 1, 0]
    assert labels(label="kind", labels=["z", "x", "y"]) == [0, 2, 1]
    assert labels() == [0, 1, 2]


def test_images_that_change_beside_a_parquet_file_are_read_again(tmp_path):
    store, root = Store(str(tmp_path / "w")), tmp_path / "x"
    root.mkdir()
    pq.write_table(pa.table({"image": ["0.png", "1.png"], "label": [0, 1]}), root / "test.parquet")
    dataset = parquet(tmp_path / "y", [0]).model_copy(update={"uri": str(root)})
    contents = []
    for data in (b"one", b"another", None):
        (root / "0.png").write_bytes(b"zero")
        (root / "1.png").write_bytes(data) if data else (root / "1.png").unlink()
        found = index(store, dataset, "test", "", in_threads)
        contents.append(found.content)
    assert len(set(contents)) == 3
    assert [error is None for error in found.table(store)["error"].to_pylist()] == [True, False]
    assert "1 of 2 rows cannot be used, such as test.parquet#0/1" in found.remarks[0]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 1, 3], r"labels from 0 to 3, but there are 3 class names \(labels 0 to 2\); 1 of 3"),
        ([1, 2, 3], "start at 1: subtract 1"),
        ([-1, -1, -1], r"withheld: name a split that has some.*validation"),
        ([0, -1, 1], "write null in place of -1"),
        ([None, None, None], r"holds no image that can be used: test\.parquet#0/0: no label"),
    ],
)
def test_labels_of_no_class_are_an_error_each_time_before_anything_else(tmp_path, labels, words):
    store = Store(str(tmp_path / "w"))
    dataset = parquet(tmp_path / "x", pa.array(labels, pa.int64()))
    for _ in range(2):  # also where the index is there already
        with pytest.raises(ConfigError, match=words):
            index(store, dataset, "test", "", in_threads)


def test_class_names_that_become_too_few_are_noticed(tmp_path):
    store, dataset = Store(str(tmp_path / "w")), parquet(tmp_path / "x", [0, 1, 2])
    index(store, dataset, "test", "", in_threads)
    fewer = dataset.model_copy(update={"classnames": ("a", "b")})
    with pytest.raises(ConfigError, match="labels from 0 to 2, but there are 2 class names"):
        index(store, fewer, "test", "", in_threads)


def test_some_rows_without_a_label_and_absent_classes_are_said(tmp_path):
    store = Store(str(tmp_path / "w"))
    found = index(store, parquet(tmp_path / "x", [0, None, 2, 2]), "test", "", in_threads)
    assert found.table(store)["error"].to_pylist() == [None, "no label", None, None]
    assert found.remarks == (
        "test split: 1 of 4 rows cannot be used, such as test.parquet#0/1: no label",
        "test split: 1 of 3 classes have no image",
    )


def test_what_was_left_out_stands_in_the_manifest(tmp_path):
    store = Store(str(tmp_path / "w"))
    junk = {"a/Thumbs.db": b"x", "a/1.json": b"{}", "b/2.json": b"{}", "stray.png": b"x"}
    dataset = folder(tmp_path / "x", FILES | junk)
    counts = {"*.json": 2, "Thumbs.db": 1, "files outside class folders": 1}
    for _ in range(2):
        found = index(store, dataset, "test", "", in_threads)
        assert len(found) == 4
        assert found.remarks == (
            "test split: left out as no image: 2 *.json, 1 Thumbs.db, 1 files outside class folders",
        )
    chunks = sources.listing(dataset, "test", "")
    address = store.address("index", "made", "test", what=what(dataset, "test", chunks))
    assert store.manifest(address)["left_out"] == counts
    (tmp_path / "x" / "test" / "a" / "desktop.ini").write_bytes(
        b"x"
    )  # junk is no reason to read again
    assert sources.digest(sources.listing(dataset, "test", "")) == sources.digest(chunks)


def test_a_set_of_pointers_is_an_error_that_says_so(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n"
    dataset = folder(tmp_path / "x", dict.fromkeys(FILES, pointer))
    with pytest.raises(ConfigError, match=r"a/1\.png: a Git LFS pointer.*git lfs pull"):
        index(Store(str(tmp_path / "w")), dataset, "test", "", in_threads)
