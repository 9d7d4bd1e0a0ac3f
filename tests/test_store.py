"""Artefacts are written whole, complete only with a manifest, and read sorted."""

import os
import pickle
import subprocess

import pyarrow as pa
import pytest

from clipray.errors import DamagedError, StoreError
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
    assert store.names("x") == {"file"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")
def test_a_full_disk_is_told_with_its_path_and_leaves_no_part(tmp_path):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        store = Store(str(tmp_path))
        store.write("x/file", b"before")
        with pytest.raises(
            StoreError, match=r"x/file cannot be written \(No space left.*workspace="
        ):
            store.write("x/file", bytes(2**20))
        assert store.read("x/file") == b"before"
        assert store.names("x") == {"file"}
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        with pytest.raises(StoreError, match=r"Read-only file system.*workspace="):
            store.write("x/file", b"after")
        assert store.names("x") == {"file"}
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_workspace_that_is_a_file_and_damaged_files_are_told(tmp_path):
    (tmp_path / "ws").write_text("")
    store = Store(str(tmp_path / "ws"))
    with pytest.raises(StoreError, match="part of that path is a file"):
        store.write("x/file", b"")
    store = Store(str(tmp_path / "other"))
    store.write("x/table.parquet", b"PAR1 and no more")
    store.write("x/manifest.json", b"{")
    words = rf"table.parquet is not a whole Parquet file.*remove the folder {store.uri}/x, and"
    with pytest.raises(DamagedError, match=words):
        store.read_table("x/table.parquet")
    with pytest.raises(DamagedError, match=rf"manifest.json is not whole JSON.*{store.uri}/x, and"):
        store.manifest("x")
    store.finish("x", {})
    with pytest.raises(DamagedError, match=rf"part is not there any more.*{store.uri}/x, and"):
        store.tables("x", ["part"])


def test_addresses_change_with_what_and_move_with_nothing(tmp_path):
    one, other = Store(str(tmp_path / "a")), Store(str(tmp_path / "b"))
    assert one.address("kind", "n", what={"x": 1}) == other.address("kind", "n", what={"x": 1})
    assert one.address("kind", "n", what={"x": 1}) != one.address("kind", "n", what={"x": 2})


def test_a_store_travels_to_workers_and_knows_what_is_not_there(tmp_path):
    store = pickle.loads(pickle.dumps(Store(str(tmp_path))))
    assert store.names("nothing") == set()
    assert store.read_json("nothing.json") is None
    assert not store.exists("nothing")
