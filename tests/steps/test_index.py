"""The index: equal collections have equal content, a limit is even over classes."""

import shutil
from pathlib import Path

import pyarrow as pa

from clipray.config import Compute, Dataset
from clipray.steps.index import evenly, in_threads, index, reader
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
    found = index(Store(str(tmp_path / "w")), folder(tmp_path / "x", FILES), "test", "", in_threads)
    ids = found.table["image_id"].to_pylist()
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
        {"image_id": [f"{i:02d}" for i in range(12)], "label": [0] * 8 + [1] * 3 + [None]}
    )
    chosen = evenly(table, 5)
    labels = chosen["label"].to_pylist()
    assert len(labels) == 5
    assert labels.count(0) == 2
    assert labels.count(1) == 2
    shuffled = table.take([7, 3, 11, 0, 5, 9, 1, 2, 10, 4, 8, 6])
    assert set(evenly(shuffled, 5)["image_id"].to_pylist()) == set(chosen["image_id"].to_pylist())
    assert len(evenly(table, 100)) == 12


def test_threads_keep_the_order():
    assert list(in_threads(lambda a, b: a * b, [(i, 2) for i in range(50)])) == [
        2 * i for i in range(50)
    ]
    assert list(reader(Compute())(max, [(1, 2), (4, 3)])) == [2, 4]
