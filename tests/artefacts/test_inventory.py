"""What retention may take, on workspaces made by hand."""

import os
import time

import pyarrow as pa
import pytest

from clipray import schema
from clipray.artefacts import history, inventory
from clipray.store import Store

FOLDER = "reports/nightly"


def artefact(store: Store, address: str, what=None, days: float = 30.0) -> str:
    store.write(f"{address}/part.parquet", b"1234")
    store.finish(address, what or {})
    for path in os.scandir(store.place(address)):
        os.utime(path, (0, time.time() - days * inventory.DAY))
    return address


def publication(store: Store, number: int, good: bool = True) -> None:
    """One evaluation on one embedding and one classifier of its own."""
    e = artefact(store, f"embeddings/a/test/b-{number}")
    c = artefact(store, f"classifiers/a/b-{number}")
    task = {"embeddings": {"test": [e]}, "classifiers": [c]}
    place = artefact(store, f"evaluations/a-{number}", {"task": task})
    artefact(store, f"{place}/fusers")
    scores = schema.SCORES.empty_table()
    history.write(store, FOLDER, scores, {"a": place}, good=good, commit=None)
    time.sleep(0.002)  # stamps are milliseconds


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


def gone(store, keep, days=7.0):
    return {one.address for one in inventory.unused(store, keep, days)}


def test_what_the_last_publications_stand_on_stays(store):
    for number in range(4):
        publication(store, number)
    numbers = {address.partition("/fusers")[0][-1] for address in gone(store, keep=2)}
    assert numbers == {"0", "1"}
    assert gone(store, keep=4) == set()


def test_the_last_good_publication_stays_however_old(store):
    publication(store, 0, good=True)
    publication(store, 1, good=False)
    publication(store, 2, good=False)
    assert {address.partition("/fusers")[0][-1] for address in gone(store, keep=1)} == {"1"}
    assert inventory.forget(store, keep=1) == 1
    assert len(history.entries(store, FOLDER)) == 2


def test_what_is_young_and_what_is_no_result_stays(store):
    artefact(store, "embeddings/a/test/young-1", days=1)
    artefact(store, "embeddings/a/test/old-1", days=8)
    for kind in ("backbones", "index", "tune", "reports", "models"):
        artefact(store, f"{kind}/x", days=100)
    assert gone(store, keep=1) == {"embeddings/a/test/old-1"}


def test_an_unfinished_artefact_goes_when_it_is_old(store):
    store.write("embeddings/a/test/half-1/000.parquet", b"12")
    os.utime(store.place("embeddings/a/test/half-1/000.parquet"), (1, 1))
    (one,) = inventory.unused(store, 1, 7)
    assert (one.address, one.whole, one.bytes) == ("embeddings/a/test/half-1", False, 2)


def test_a_listing_has_every_file_once(store):
    store.write_table("a/b/c.parquet", pa.table({"x": [1]}))
    store.write("d.json", b"{}")
    assert {path: size for path, size, _ in store.files()}["d.json"] == 2
    assert {path for path, _, _ in store.files()} == {"a/b/c.parquet", "d.json"}
