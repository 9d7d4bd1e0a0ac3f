"""Every layout gives the samples that another reader of it finds, from a folder and from s3:// alike."""

import csv
import json
import os
import pickle
import shutil
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipray import catalog, sources
from clipray.config import Dataset
from clipray.schema import INDEX
from clipray.sources import Chunk
from tests.sources.made import CLASSES, MAKERS, dataset, make_folder, picture, whole

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="module", params=MAKERS)
def made(request, tmp_path_factory):
    """(format, data root, samples of the test split by key)."""
    root = tmp_path_factory.mktemp(request.param)
    return request.param, root, MAKERS[request.param](root / "set")


@pytest.mark.parametrize("place", ["local", "s3"])
def test_samples_are_those_that_were_written(made, place, request):
    layout, root, samples = made
    root = str(root)
    if place == "s3":
        bucket = request.getfixturevalue("bucket")
        fsspec.filesystem("s3").put(f"{root}/set", f"{bucket}/{layout}/", recursive=True)
        root = f"{bucket}/{layout}"
    assert [each.format for each in catalog.datasets(["*"], root)] == [layout]
    chunks = sources.listing(dataset(layout), "test", root)
    seen = [sample for chunk in chunks for sample in sources.scan(chunk)]
    order = (
        sorted(samples, key=lambda path: (samples[path][1], path.split("/")))
        if layout == "folder"
        else samples
    )
    assert [sample.key for sample in seen] == [key.replace("tar/d", "tar/./d") for key in order]
    assert [(sample.data, sample.label) for sample in seen] == [samples[key] for key in order]
    assert all(sample.error is None for sample in seen)
    names = {"folder": ["Bee", "ant", "cat"]}.get(layout, CLASSES)
    assert sources.classnames(dataset(layout), root) == names

    table = whole(chunks)
    assert table.schema == INDEX
    assert table["size"].to_pylist() == [len(sample.data) for sample in seen]
    for number, chunk in enumerate(chunks):
        again = Chunk(*json.loads(json.dumps(pickle.loads(pickle.dumps(chunk)))))
        rows = table.filter(pa.compute.equal(table["chunk"], number))
        rows = rows.take(list(range(rows.num_rows))[::-2])  # some rows, in another order
        wanted = [samples[key.replace("tar/./d", "tar/d")][0] for key in rows["key"].to_pylist()]
        assert list(sources.fetch(again, rows)) == wanted


def test_the_digest_of_a_listing_follows_the_files(made, tmp_path):
    layout, root, _ = made
    copy = tmp_path / "copy"
    shutil.copytree(root, copy, copy_function=shutil.copy2)
    before = sources.digest(sources.listing(dataset(layout), "test", str(root)))
    assert sources.digest(sources.listing(dataset(layout), "test", str(copy))) == before
    touched = {
        "folder": "test/ant/2.png",
        "parquet": "test-00001-of-00002.parquet",
        "wds": "test/10.tar",
    }[layout]
    os.utime(copy / "set" / touched, (1, 1))
    assert sources.digest(sources.listing(dataset(layout), "test", str(copy))) != before


def test_folders_agree_with_torchvision(tmp_path):
    from torchvision.datasets import ImageFolder

    for path in ("b/1.png", "b/10.png", "b/2.png", "A/x.png", "a b/y.jpg", "a/z/w.png", "a/a.png"):
        file = tmp_path / "set" / "test" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(len(path)))
    (tmp_path / "set" / "test" / "linked").symlink_to(tmp_path / "set" / "test" / "b")
    theirs = ImageFolder(tmp_path / "set" / "test")
    ours = [
        s
        for c in sources.listing(dataset("folder", splits=["test"]), "test", str(tmp_path))
        for s in sources.scan(c)
    ]
    assert sources.classnames(dataset("folder", splits=["test"]), str(tmp_path)) == theirs.classes
    assert [
        (str(tmp_path / "set" / "test" / sample.key), sample.label) for sample in ours
    ] == theirs.samples


def test_a_class_that_one_split_lacks_does_not_shift_labels(tmp_path):
    make_folder(tmp_path / "set")
    shutil.rmtree(tmp_path / "set" / "test" / "ant")
    table = whole(sources.listing(dataset("folder"), "test", str(tmp_path)))
    assert set(table["label"].to_pylist()) == {0, 2}


def test_chunks_hold_1024_files(tmp_path):
    for number in range(1030):
        file = tmp_path / "set" / "test" / "cat" / f"{number:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"%d" % number)
    chunks = sources.listing(dataset("folder", splits=["test"]), "test", str(tmp_path))
    assert [(chunk.start, chunk.count) for chunk in chunks] == [(0, 1024), (1024, 6)]
    (tmp_path / "set" / "test" / "cat" / "0003.png").unlink()
    table = sources.index(0, chunks[0])
    assert [error for error in table["error"].to_pylist() if error] == [
        "cannot be read: FileNotFoundError"
    ]
    assert table["image_id"][3].as_py()
    assert table["size"][3].as_py() is None


def test_equal_images_are_numbered_in_order():
    chunk = Chunk("drawn", "colours", 0, 3, (), {"split": "test", "seed": 0}, "")
    table = whole([chunk, chunk._replace(start=2), chunk])
    ids = table["image_id"].to_pylist()
    assert len(set(ids)) == 9
    assert ids[3] == f"{ids[2]}.1"
    assert ids[6:8] == [f"{ids[0]}.1", f"{ids[1]}.1"]
    assert ids[8] == f"{ids[2]}.2"


@pytest.mark.parametrize(
    ("column", "options"),
    [
        ("struct", {}),
        ("bytes", {}),
        ("path", {}),
        ("large", {"image": "pixels", "label": "kind", "labels": ["x", "y"]}),
    ],
)
def test_parquet_columns(tmp_path, column, options):
    root = tmp_path / "set"
    (root / "data").mkdir(parents=True)
    for number in range(2):
        (root / f"{number}.png").write_bytes(picture(number))
    made = {
        "struct": {
            "image": [{"bytes": picture(0), "path": None}, {"bytes": None, "path": "1.png"}],
            "label": [0, 1],
        },
        "bytes": {"bytes": [picture(0), picture(1)], "cls": pa.array([0, 1], pa.uint8())},
        "path": {"path": ["0.png", "1.png"], "label": [0, 1]},
        "large": {
            "pixels": pa.array([picture(0), picture(1)], pa.large_binary()),
            "kind": ["x", "y"],
        },
    }[column]
    pq.write_table(pa.table(made), root / "data" / "test.parquet")
    given = dataset("parquet", splits=["test"], classnames=["x", "y"], options=options)
    (chunk,) = sources.listing(given, "test", str(tmp_path))
    assert [(s.data, s.label, s.error) for s in sources.scan(chunk)] == [
        (picture(0), 0, None),
        (picture(1), 1, None),
    ]


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data here")
def test_shared_sets_hold_what_their_list_says():
    """Every set's count is the one its README states, and its class names are those of its file."""
    counts = {}
    for line in (SHARED / "README.md").read_text().splitlines():
        if line.startswith("## "):
            name = line[3:]
        elif line.startswith("- cut:"):
            words = line.replace(",", "").split()
            counts[name] = (
                int(words[2]),
                int(words[words.index("train") - 1]),
                int(words[words.index("test") - 1]),
            )
    assert len(counts) == 21
    for name, (n_classes, n_train, n_test) in counts.items():
        splits = ["train", "test"] if n_train else ["test"]
        given = Dataset(name="x", format=name.split("/")[0], uri=name, splits=splits)
        with open(SHARED / name / "classnames.txt") as file:
            assert sources.classnames(given, str(SHARED)) == [
                row[0] for row in csv.reader(file, delimiter="\0")
            ]
        assert len(sources.classnames(given, str(SHARED))) == n_classes
        assert sources.templates(given, str(SHARED))
        for split, expected in zip(splits[::-1], (n_test, n_train), strict=False):
            counted = [chunk.count for chunk in sources.listing(given, split, str(SHARED))]
            if None not in counted:
                assert sum(counted) == expected, (name, split)
            elif split == "test":
                assert len(whole(sources.listing(given, split, str(SHARED)))) == expected, (
                    name,
                    split,
                )
