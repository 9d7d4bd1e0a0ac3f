"""Ids that are found while images are embedded: those that reading them beforehand gives, for half of the bytes."""

import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipray.artefacts import embeddings
from clipray.artefacts import index as parts
from clipray.artefacts.embeddings import Work
from clipray.artefacts.index import Index
from clipray.config import Dataset
from clipray.errors import ConfigError
from clipray.numerics import draws
from clipray.sources import folder as layout
from clipray.steps import campaign as run
from clipray.steps import campaign_ids, failures, identify
from clipray.steps.indices import index, listed, source
from clipray.steps.mappers import in_threads
from clipray.store import Store
from tests.sources.made import bytes_read, picture
from tests.steps import workers

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0f\nsize 9\n"
BACKBONES = ("one", "two")


def folder(root: Path, split: str = "test", images: int = 90, first: int = 0, unlike=25) -> Dataset:
    """Three classes with repeats, and with what cannot be read, or not be decoded.

    Args:
        first: the picture that they begin with. unlike: how many pictures there are.
    """
    for number in range(images):
        place = root / split / f"class {number % 3}" / f"{number:03d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        if number % 20 == 7:
            place.symlink_to("nowhere")
        elif number % 20 == 11:
            place.write_bytes(POINTER)
        elif number % 20 == 13:
            place.write_bytes(b"no image")
        else:
            place.write_bytes(picture(first + number % unlike))
    return Dataset(name="set", format="folder", uri=str(root), splits=("test",))


def work_of(store: Store, found: Index) -> Work:
    return embeddings.work(store, found, {name: {name: found.identity} for name in BACKBONES})


def listed_of(store: Store, dataset: Dataset, limit: int = 0) -> Index:
    return listed(source(store, dataset, "test", ""), in_threads, limit)


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of a few chunks, and shards that are smaller than these."""
    monkeypatch.setattr(layout, "CHUNK", 8)
    monkeypatch.setattr(parts, "PART_ROWS", 24)
    monkeypatch.setattr(parts, "FEW_SHARD_ROWS", 10)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("limit", [0, 40])
def test_ids_found_while_embedding_are_those_of_reading_beforehand(tmp_path, limit):
    dataset, store, other = (
        folder(tmp_path / "set"),
        *map(Store, (f"{tmp_path}/a", f"{tmp_path}/b")),
    )
    before = index(other, dataset, "test", "", in_threads, limit)
    bare = listed_of(store, dataset, limit)
    assert bare.listed
    assert len(bare.parts) > 3
    work = work_of(store, bare)
    told = workers.embed(store, work)
    found, errors = identify.embedded(store, bare, in_threads)
    assert found.table(store).equals(before.table(other))
    assert found.content == before.content
    assert (found.labels, found.remarks, found.parts) == (
        before.labels,
        before.remarks,
        before.parts,
    )
    assert not any(name.startswith("found-") for name in store.names(found.address))
    # it is the same index, which has ids from now on
    assert listed_of(store, dataset, limit) == found
    assert index(store, dataset, "test", "", in_threads, limit) == found
    # and embeddings are known by what they were made as
    assert work_of(store, found).addresses == work.addresses
    for name, tally in told.items():
        tally.errors |= errors[work.addresses[name]]
    rows = failures.finish(store, replace(work, index=found), 100, {}, told)
    assert all(row["image_id"] for row in rows)
    ids = before.table(other)["image_id"].to_pylist()
    unread = before.table(other)["error"]
    for place in work.addresses.values():
        table = embeddings.read(store, place)
        assert table["image_id"].to_pylist() == sorted(ids)
        failed = table.filter(table["error"].is_valid())["image_id"].to_pylist()
        assert set(store.manifest(place)["errors"]) == set(failed)
        assert len(failed) > len(unread) - unread.null_count > 0


@pytest.mark.usefixtures("small_parts")
def test_a_run_that_ends_anywhere_is_taken_up_by_another(tmp_path):
    dataset = folder(tmp_path / "set")
    wanted = index(Store(f"{tmp_path}/b"), dataset, "test", "", in_threads)
    rows = wanted.table(Store(f"{tmp_path}/b"))
    store = Store(f"{tmp_path}/a")
    bare = listed_of(store, dataset)
    work = work_of(store, bare)
    workers.embed(store, work, range(4))
    # an image that another run could read keeps its id, whatever becomes of it
    first = store.read_table(f"{bare.address}/{parts.part_name(0)}")["key"][0].as_py()
    (tmp_path / "set" / "test" / first).rename(tmp_path / "away")
    workers.embed(store, work_of(store, bare).without({"two"}))
    (tmp_path / "away").rename(tmp_path / "set" / "test" / first)
    # repeats have their numbers in some files, and the manifest is not there yet
    (repeated,) = in_threads(parts.number_repeats, [(store, _merged(store, bare), len(bare.parts))])
    assert repeated
    workers.embed(store, work_of(store, bare))
    kept = sorted(name for name in store.names(bare.address) if name.startswith("found-"))
    for name in random.Random(0).sample(kept, 3):
        store.remove(f"{bare.address}/{name}")
    found, _ = identify.embedded(store, bare, in_threads)
    assert found.table(store).equals(rows)
    for place in work.addresses.values():
        names = sorted(store.names(place))
        assert len(names) == len(work.todo)
        tables = [store.read_table(f"{place}/{name}", ["image_id"]) for name in names]
        assert pa.concat_tables(tables)["image_id"].equals(rows["image_id"])


def _merged(store: Store, bare: Index) -> str:
    """Give the rows of an index the ids that were found so far, as a run does that ends right after."""
    list(in_threads(identify.found.merged, identify._items(store, bare)))
    return bare.address


def test_files_that_were_only_touched_are_not_embedded_again(tmp_path):
    dataset, store = folder(tmp_path / "set"), Store(f"{tmp_path}/w")
    bare = listed_of(store, dataset)
    work = work_of(store, bare)
    told = workers.embed(store, work)
    found, errors = identify.embedded(store, bare, in_threads)
    for name, tally in told.items():
        tally.errors |= errors[work.addresses[name]]
    failures.finish(store, replace(work, index=found), 100, {}, told)
    for place in (tmp_path / "set" / "test").rglob("*.png"):
        if place.exists():
            os.utime(place, (1, 1))
    again = listed_of(store, dataset)
    assert again.address != found.address
    assert not again.listed  # it was read
    assert again.identity == found.identity
    assert work_of(store, again).images == 0
    (tmp_path / "set" / "test" / "class 0" / "new.png").write_bytes(picture(99))
    assert work_of(store, listed_of(store, dataset)).images == 91


def test_a_split_of_which_nothing_can_be_read_is_an_error_before_anything_else(tmp_path):
    for number in range(30):
        place = tmp_path / "set" / "test" / f"class {number % 3}" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(POINTER)
    dataset = Dataset(name="set", format="folder", uri=str(tmp_path / "set"), splits=("test",))
    with pytest.raises(ConfigError, match=r"a Git LFS pointer.*git lfs pull"):
        listed_of(Store(f"{tmp_path}/w"), dataset)


def usable_set(root: Path, images: int) -> None:
    """Train and test images of three classes; some cannot be read, some stand in both splits, some repeat others."""
    folder(root, "train", images, unlike=60)
    folder(root, "test", 30, first=20, unlike=30)
    (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")
    (root.parent / "set.yaml").write_text(f"name: set\nformat: folder\nuri: {root}\n")


def test_a_pool_that_was_read_while_embedded_draws_as_the_whole_split_does(tmp_path, campaign):
    usable_set(tmp_path / "set", 300)
    given = {"datasets": [str(tmp_path / "set.yaml")], "shots": [1, 4], "seeds": 2}
    given |= {"compute": {"error_budget": 0.5}}
    rounds = _embedded(run.plan(campaign(**given | {"shots": [1]})))
    todo = run.plan(campaign(**given))  # which grows
    rounds += _embedded(todo)
    assert rounds > 2  # some images are replaced
    train, test = (todo.works["set", split].index for split in ("train", "test"))
    ids = sorted(train.table(todo.store)["image_id"].to_pylist())
    assert any("." in image_id for image_id in ids)
    assert len(set(ids)) == len(ids)
    for place in todo.works["set", "train"].addresses.values():
        assert embeddings.read(todo.store, place)["image_id"].to_pylist() == ids
    whole = run.plan(campaign(**given, workspace=str(tmp_path / "other")), whole=True)
    _embedded(whole)
    every = whole.works["set", "train"].index
    assert train.of
    assert len(train) < len(every)
    assert _drawn(todo.store, train, test) == _drawn(whole.store, every, test, todo.store)
    # there is nothing left to do, to read or to draw
    again = run.plan(campaign(**given))
    assert (again.images, again.works["set", "train"].index) == (0, train)
    assert sum(work.images for work in again.works.values()) == 0


def test_files_of_which_nobody_has_told_are_found(tmp_path, campaign, monkeypatch):
    monkeypatch.setattr(parts, "FEW_SHARD_ROWS", 10)
    usable_set(tmp_path / "set", 60)
    given = {"datasets": [str(tmp_path / "set.yaml")], "shots": [1], "seeds": 1}
    given |= {"compute": {"error_budget": 0.5}}
    todo = run.plan(campaign(**given))
    test = todo.works["set", "test"]
    told = workers.embed_all(todo)
    assert all(len(tally.shards) > 2 for tally in told["set", "test"].values())
    # the others were on their way when the cluster was shared out anew
    told["set", "test"] = workers.embed(todo.store, test, range(2))
    campaign_ids.found(todo, told)
    run._settle(todo, {}, told)
    assert not todo.failed
    assert not any(work.index.listed for work in todo.works.values())
    assert run.plan(campaign(**given)).works["set", "test"].images == 0


def _embedded(todo) -> int:
    """Embed all of a plan as the campaign does; the number of its rounds."""
    rounds = 0
    while True:
        rounds += 1
        todo.failures = []
        told = workers.embed_all(todo)
        changed = campaign_ids.found(todo, told)
        run._settle(todo, {}, told)
        assert not todo.failed
        if not run._grow(todo, changed):
            return rounds


def _drawn(store: Store, train: Index, test: Index, tests: Store | None = None) -> dict:
    """Support sets as sets of hashes and labels, drawn from the rows of a split that can be used."""
    table = train.table(store)
    own = embeddings_errors(store, train)
    table = table.filter(
        pa.array([image_id not in own for image_id in table["image_id"].to_pylist()])
    )
    tested = test.table(tests or store, ["image_id"])["image_id"].to_pylist()
    free_N = draws.apart(table["image_id"].to_pylist(), tested)
    names, labels_N = table["key"].to_pylist(), table["label"].to_numpy()
    found = draws.draws(names, labels_N, 3, [1, 4], range(2), free_N)
    return {(one.shots, one.seed): sorted(names[row] for row in one.rows_K) for one in found}


def embeddings_errors(store: Store, index: Index) -> set[str]:
    """The ids of images of a split that have no embedding."""
    above = f"embeddings/{index.dataset}/{index.split}"
    manifests = [store.manifest(f"{above}/{name}") for name in store.names(above)]
    return {image_id for manifest in manifests for image_id in manifest["errors"]}


def test_a_train_split_of_which_nothing_can_be_read_fails_alone(tmp_path, campaign):
    for split, cells in (("train", [POINTER] * 9), ("test", [picture(n) for n in range(6)])):
        table = pa.table({"image": cells, "label": [n % 3 for n in range(len(cells))]})
        pq.write_table(table, tmp_path / f"{split}.parquet")
    entry = f"name: set\nformat: parquet\nuri: {tmp_path}\nclassnames: [x, y, z]\n"
    (tmp_path / "set.yaml").write_text(entry + 'templates: ["a {c}"]\n')
    given = {"datasets": [str(tmp_path / "set.yaml")], "shots": [1], "seeds": 1}
    todo = run.plan(campaign(**given))
    told = workers.embed_all(todo)
    changed = campaign_ids.found(todo, told)
    run._settle(todo, {}, told)
    assert not run._grow(todo, changed)
    (row,) = todo.failed
    assert (row["dataset"], row["split"], row["backbone"]) == ("set", "train", None)
    assert "its train split holds no image that can be used" in row["error"]
    assert "git lfs pull" in row["error"]
    assert todo.usable("set") == []
    with pytest.raises(ConfigError, match="its train split holds no image that can be used"):
        run.plan(campaign(**given))  # which is known from now on


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="no /proc/self/io")
@pytest.mark.parametrize("kind", ["folder", "parquet", "wds"])
def test_each_image_is_read_once(tmp_path, campaign, kind):
    from tests.steps.index.test_pool import large

    dataset = large(kind, tmp_path / "set", 600, 40_000)
    entry = f"name: set\nformat: {kind}\nuri: {tmp_path / 'set'}\n"
    names = "".join(f"- {name}\n" for name in dataset.classnames)
    (tmp_path / "set.yaml").write_text(f'{entry}templates: ["a {{c}}"]\nclassnames:\n{names}')
    given = {"datasets": [str(tmp_path / "set.yaml")], "shots": [1, "all"], "seeds": 1}
    given |= {"compute": {"error_budget": 1000}}
    before = bytes_read()
    todo = run.plan(campaign(**given))
    told = workers.embed_all(todo)
    campaign_ids.found(todo, told)
    read = bytes_read() - before
    assert not any(work.index.listed for work in todo.works.values())
    images = 610 * 40_000
    assert images <= read <= 1.2 * images
    assert np.sum([work.images for work in todo.works.values()]) == 610


def test_parquet_with_images_has_nothing_read_before(tmp_path):
    """A row group is the least that can be read: looking at one image of it would read all of them twice."""
    table = pa.table({"image": [picture(n) for n in range(6)], "label": [0, 1, 2] * 2})
    pq.write_table(table, tmp_path / "test.parquet")
    names = ("x", "y", "z")
    dataset = Dataset(name="p", format="parquet", uri=str(tmp_path), classnames=names)
    assert listed_of(Store(f"{tmp_path}/w"), dataset).listed
