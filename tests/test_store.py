"""Artefacts are written whole, complete only with a manifest, and read sorted."""

import pickle

import pyarrow as pa
import pytest

from clipray.store import Store


def test_tables_come_back_sorted_whatever_the_parts(tmp_path):
    store = Store(str(tmp_path))
    for name, ids in (("b.parquet", ["c", "a"]), ("a.parquet", ["d", "b"])):
        store.write_table(f"x/{name}", pa.table({"image_id": ids}))
    store.finish("x", {"made": "of"}, images=4)
    assert store.tables("x", ["a.parquet", "b.parquet"])["image_id"].to_pylist() == [
        "a",
        "b",
        "c",
        "d",
    ]
    assert store.tables("x", ["b.parquet", "a.parquet"])["image_id"].to_pylist() == [
        "a",
        "b",
        "c",
        "d",
    ]


def test_without_a_manifest_nothing_is_complete(tmp_path):
    store = Store(str(tmp_path))
    store.write_table("x/a.parquet", pa.table({"image_id": ["a"]}))
    assert store.manifest("x") is None
    with pytest.raises(FileNotFoundError, match="not complete"):
        store.tables("x", ["a.parquet"])
    store.finish("x", {"made": "of"}, images=1)
    manifest = store.manifest("x")
    assert manifest["what"] == {"made": "of"}
    assert manifest["images"] == 1
    assert {"versions", "commit", "dirty", "written"} <= set(manifest)


def test_equal_tables_give_equal_bytes(tmp_path):
    store = Store(str(tmp_path))
    for name in "ab":
        store.write_table(f"{name}.parquet", pa.table({"image_id": ["a"], "x": [1.5]}))
    assert store.read("a.parquet") == store.read("b.parquet")


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    store.write("x/file", b"before")

    def broken(self, target):
        raise OSError("no space left")

    monkeypatch.setattr("pathlib.Path.replace", broken)
    with pytest.raises(OSError, match="no space"):
        store.write("x/file", b"after")
    assert store.read("x/file") == b"before"
    assert store.names("x") >= {"file"}


def test_addresses_change_with_what_and_move_with_nothing(tmp_path):
    one, other = Store(str(tmp_path / "a")), Store(str(tmp_path / "b"))
    assert one.address("kind", "n", what={"x": 1}) == other.address("kind", "n", what={"x": 1})
    assert one.address("kind", "n", what={"x": 1}) != one.address("kind", "n", what={"x": 2})


def test_a_store_travels_to_workers_and_knows_what_is_not_there(tmp_path):
    store = pickle.loads(pickle.dumps(Store(str(tmp_path))))
    assert store.names("nothing") == set()
    assert store.read_json("nothing.json") is None
    assert not store.exists("nothing")
