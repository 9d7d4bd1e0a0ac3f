"""What a snapshot tells is what the store tells when it is asked, and costs few requests: against a real S3 server."""

import gzip
import itertools
import random

import pytest

from clipray import snapshot, store
from clipray.snapshot import complete, take
from clipray.store import Store

# names that begin alike, and ones whose order is not that of their folders
SETS = ["a", "a-b", "a.b", "ab", "b", "é", "z"]
numbers = itertools.count()


@pytest.fixture
def workspace(requests):
    """A store in a place of its own, with requests counted from here."""
    yield Store(f"s3://bucket/{next(numbers)}/ws")
    requests.lines.clear()


def filled(at: Store, seed: int) -> list[str]:
    """Write artefacts, some of them not finished; the addresses, with some that are not there."""
    chance = random.Random(seed)
    addresses = []
    for name, kind, split in itertools.product(SETS, ("embeddings", "index"), ("test", "train")):
        for backbone in range(chance.randrange(4)):
            address = f"{kind}/{name}/{split}/b{backbone}-0f"
            addresses.append(address)
            for shard in range(chance.randrange(4)):
                at.write(f"{address}/shard-{shard}.parquet", b"1")
            if chance.random() < 0.6:
                at.write_json(f"{address}/manifest.json", {"of": address})
    return addresses


def looked(store: Store, addresses: list[str]) -> list:
    return [store.manifests(addresses), [store.names(address) for address in addresses]]


def remembered(at: Store) -> None:
    """Look at all datasets once, as a run does."""
    snapshot.refresh(at, SETS)


def asked_for(requests, addresses: list[str]) -> int:
    """Count the requests for manifests."""
    return sum(requests.count("GET", f"/{address}/manifest.json") for address in addresses)


@pytest.mark.parametrize(("seed", "page", "pages"), [(0, 1000, 8), (1, 7, 2), (2, 3, 1)])
def test_a_snapshot_tells_what_the_store_tells(workspace, monkeypatch, seed, page, pages):
    monkeypatch.setattr(store, "PAGE", page)
    monkeypatch.setattr(snapshot, "PAGES", pages)
    addresses = filled(workspace, seed)
    for _ in ("nothing is remembered", "all is"):
        for name, seen in take(workspace, SETS).items():
            own = [address for address in addresses if address.split("/")[1] == name]
            assert looked(seen, own) == looked(workspace, own)
            snapshot.remember(seen)


def test_small_datasets_cost_a_request_each(workspace, requests):
    addresses = filled(workspace, 3)
    remembered(workspace)
    requests.lines.clear()
    seen = take(workspace, SETS)
    for address in addresses:
        looked(seen[address.split("/")[1]], [address])
    assert len(requests.lines) == len(SETS) + len(snapshot.KINDS)


def test_what_is_remembered_counts_only_while_it_is_so(workspace, requests):
    addresses = [f"embeddings/a/test/b{number}-0f" for number in range(4)]
    for address in addresses:
        workspace.write_json(f"{address}/manifest.json", {"first": True})
    remembered(workspace)
    workspace.remove(f"{addresses[0]}/manifest.json")
    workspace.write_json(f"{addresses[1]}/manifest.json", {"first": False})
    workspace.write(f"{addresses[2]}/shard.parquet", b"1")
    requests.lines.clear()
    seen = take(workspace, ["a"])["a"]
    assert seen.manifests(addresses) == [None, {"first": False}, {"first": True}, {"first": True}]
    assert asked_for(requests, addresses) == 1
    snapshot.remember(seen)
    requests.lines.clear()
    assert take(workspace, ["a"])["a"].manifest(addresses[1]) == {"first": False}
    assert asked_for(requests, addresses) == 0


def test_two_campaigns_remember_for_each_other(workspace, requests):
    first, second = "embeddings/a/test/b0-0f", "embeddings/a/test/b1-0f"
    for address in (first, second):
        workspace.finish(address, {})
    for address in (first, second):
        seen = take(workspace, ["a"])["a"]
        assert seen.manifest(address)
        snapshot.remember(seen)
    requests.lines.clear()
    for address in (first, second):
        assert take(workspace, ["a"])["a"].manifest(address)
    assert asked_for(requests, [first, second]) == 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no gzip",
        b"\x1f\x8b\x08\x00 cut off",
        *(gzip.compress(text) for text in (b"{", b"[1]", b'{"a": 1}', b'{"a": [1]}')),
    ],
)
def test_a_damaged_memory_is_none(workspace, data):
    addresses = filled(workspace, 4)
    remembered(workspace)
    workspace.write(f"{snapshot.FOLDER}/a.json.gz", data)
    own = [address for address in addresses if address.split("/")[1] == "a"]
    assert own
    assert looked(take(workspace, ["a"])["a"], own) == looked(workspace, own)


def test_what_is_written_through_a_snapshot_is_seen(workspace):
    seen = take(workspace, ["a"])["a"]
    assert seen.manifest("index/a/test-0f") is None
    seen.write("index/a/test-0f/part-0.parquet", b"1")
    seen.finish("index/a/test-0f", {}, images=3)
    assert seen.manifest("index/a/test-0f")["images"] == 3
    assert seen.names("index/a/test-0f") == {"part-0.parquet", "manifest.json"}
    snapshot.remember(seen)
    assert looked(take(workspace, ["a"])["a"], ["index/a/test-0f"]) == looked(
        workspace, ["index/a/test-0f"]
    )


@pytest.mark.parametrize("page", [1000, 5, 1])
def test_complete_is_what_has_a_manifest(workspace, requests, monkeypatch, page):
    monkeypatch.setattr(store, "PAGE", page)
    addresses = filled(workspace, 5)
    wanted = {address for address in addresses if workspace.manifest(address)}
    requests.lines.clear()
    asked = [address for address in addresses if address.startswith("embeddings/")]
    assert complete(workspace, asked) == wanted & set(asked)
    if page == 1000:
        assert len(requests.lines) == 1
    assert complete(workspace, addresses) == wanted


def test_on_disk_the_store_itself_is_asked(tmp_path):
    here = Store(str(tmp_path))
    here.finish("index/a/test-0f", {})
    assert take(here, ["a"])["a"] is here
    assert complete(here, ["index/a/test-0f", "index/a/test-1f"]) == {"index/a/test-0f"}
    snapshot.refresh(here, ["a"])
    assert not (tmp_path / snapshot.FOLDER).exists()
