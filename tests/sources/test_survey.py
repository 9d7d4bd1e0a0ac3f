"""A survey reads no image, and finds the samples that a scan finds; reading them tells the rest."""

import os
import tarfile
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipray import sources
from clipray.config import Dataset
from clipray.errors import ConfigError
from clipray.sources import Chunk
from tests.sources.made import MAKERS, dataset, picture, write_tar

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "odd" / "cases.tar.gz"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0f\nsize 9\n"


def agree(chunk: Chunk) -> list[sources.Sample]:
    """Compare a chunk's survey with its scan, and give back the survey."""
    counts, left = Counter(), Counter()
    scanned = list(sources.scan(chunk, counts))
    seen = list(sources.survey(chunk, left))
    assert left == counts
    assert all(sample.data is None for sample in seen)
    assert [sample[:2] for sample in seen] == [sample[:2] for sample in scanned]
    # what it tells is true; the bytes tell the rest, word for word
    assert all(a.error in (None, b.error) for a, b in zip(seen, scanned, strict=True))
    outline = sources.outline(7, chunk)
    read, whole = sources.identified({7: chunk}, outline), sources.index(7, chunk)
    good = pa.compute.is_null(outline["error"])  # others are not looked at
    assert read.filter(good).equals(whole.replace_schema_metadata(None).filter(good))
    assert read["error"].equals(whole["error"])
    assert read["label"].equals(whole["label"])
    return seen


@pytest.mark.parametrize("place", ["local", "s3"])
@pytest.mark.parametrize("layout", MAKERS)
def test_every_layout_is_surveyed_as_it_is_scanned(tmp_path, layout, place, request):
    samples = MAKERS[layout](tmp_path / "set")
    root = str(tmp_path)
    if place == "s3":
        bucket = request.getfixturevalue("bucket")
        root = f"{bucket}/survey-{layout}"
        fsspec.filesystem("s3").put(f"{tmp_path}/set", f"{root}/", recursive=True)
    found = [s for chunk in sources.listing(dataset(layout), "test", root) for s in agree(chunk)]
    labels = Counter(label for _, label in samples.values())
    assert Counter(sample.label for sample in found) == labels


def test_drawn_bundled_and_unlabelled_sets_too(tmp_path):
    drawn = Dataset(name="g", format="drawn", uri="glyph-digits", options={"test": 30})
    digits = Dataset(name="d", format="sklearn", uri="digits")
    for each in (drawn, digits):
        labels = [s.label for chunk in sources.listing(each, "test", "") for s in agree(chunk)]
        assert sorted(set(labels)) == list(range(len(sources.classnames(each, ""))))
    (tmp_path / "a.png").write_bytes(picture(0))
    (tmp_path / "b.png").write_bytes(POINTER)
    (tmp_path / "all.txt").write_text(f"a.png\ngone.png\nhttps://x.org/a.png\n{tmp_path}/b.png\n")
    flat = Dataset(name="f", format="flat", uri=str(tmp_path), splits={"test": "."})
    text = flat.model_copy(update={"format": "listed", "uri": str(tmp_path / "all.txt")})
    for each in (flat, text):
        assert all(agree(chunk) for chunk in sources.listing(each, "test", ""))


def folder(root: Path) -> None:
    for name, data in {"a/1.png": picture(1), "a/2.png": POINTER, "b/3.png": b""}.items():
        (root / "test" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "test" / name).write_bytes(data)
    os.mkfifo(root / "test" / "b" / "pipe.png")
    (root / "test" / "b" / "gone.png").symlink_to("nowhere")
    (root / "test" / "b" / "notes.txt").write_text("left out")


def paths(root: Path) -> None:
    rows = [
        {"path": "here.png", "label": 0},
        {"path": "gone.png", "label": 1},
        {"path": None, "label": 2},
        {"path": "https://x.org/a.png", "label": None},
        {"path": "here.png", "label": None},
    ]
    root.mkdir()
    (root / "here.png").write_bytes(picture(1))
    pq.write_table(pa.Table.from_pylist(rows), root / "test.parquet", row_group_size=3)


def structs(root: Path) -> None:
    images = [picture(0), None, POINTER, b"no image"]
    rows = [{"image": {"bytes": data, "path": None}, "label": 0} for data in images]
    rows.append({"image": None, "label": 1})
    root.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), root / "test.parquet")


def members(root: Path) -> None:
    pairs = [
        *(("a.jpg", picture(1)), ("a.png", picture(2)), ("a.cls", b"0")),
        *(("b.jpg", picture(3)), ("c.cls", b"1"), ("d.jpg", picture(4)), ("d.cls", b"dog")),
        *(("e.txt", b"neither"), ("f.png", picture(5)), ("f.cls", b" 2\n"), (".f.png", b"x")),
        *(("g.one.png", picture(6)), ("g.one.cls", b"1"), ("g.two.png", picture(7))),
        *(("g.two.cls", b"2"), ("h.png", POINTER), ("h.cls", b"0"), ("i.png", b"")),
        *(("i.cls", b"1"), ("f.png", picture(8)), ("f.cls", b"0"), ("j.cls", b"")),
    ]
    write_tar(root / "test" / "0.tar", pairs)
    with tarfile.open(root / "test" / "0.tar", "a") as tar:
        link = tarfile.TarInfo("k.png")
        link.type, link.linkname = tarfile.SYMTYPE, "a.png"
        tar.addfile(link)
    write_tar(
        root / "test" / "1.tar", [("x" * 150 + ".png", picture(9)), ("x" * 150 + ".cls", b"1")]
    )
    twice = (root / "test" / "0.tar").read_bytes() + (root / "test" / "1.tar").read_bytes()
    (root / "test" / "2.tar").write_bytes(twice)
    (root / "test" / "3.tar").write_bytes(b"")
    (root / "test" / "4.tar").write_bytes(b"\x1f\x8bpacked")


@pytest.mark.parametrize(
    ("layout", "make"),
    [("folder", folder), ("parquet", paths), ("parquet", structs), ("wds", members)],
)
def test_what_is_no_labelled_image_is_the_same_to_both(tmp_path, layout, make):
    make(tmp_path / "set")
    chunks = sources.listing(dataset(layout, splits=["test"]), "test", str(tmp_path))
    assert sum(len(agree(chunk)) for chunk in chunks) > 4


def test_samples_of_one_name_have_names_of_their_own(tmp_path):
    members(tmp_path / "set")
    chunk = sources.listing(dataset("wds", splits=["test"]), "test", str(tmp_path))[0]
    keys = sources.outline(0, chunk)["key"].to_pylist()
    assert len(set(keys)) == len(keys)
    assert {"0.tar/f", "0.tar/f (2)"} <= set(keys)


def test_a_tar_that_breaks_off_anywhere_is_the_same_to_both(tmp_path):
    pairs = [
        (f"{n}.{suffix}", data)
        for n in range(3)
        for suffix, data in (("png", picture(n)), ("cls", b"1"))
    ]
    path = tmp_path / "set" / "test" / "0.tar"
    write_tar(path, pairs)
    data = path.read_bytes()
    for end in [*range(0, len(data), 131), len(data) - 1024]:
        path.write_bytes(data[:end])
        (chunk,) = sources.listing(dataset("wds", splits=["test"]), "test", str(tmp_path))
        agree(chunk)


def test_a_damaged_image_column_is_told_when_its_images_are_read(tmp_path):
    table = pa.table({"image": [picture(n) * 50 for n in range(20)], "label": list(range(20))})
    (tmp_path / "set").mkdir()
    path = tmp_path / "set" / "test.parquet"
    pq.write_table(table, path, compression="zstd", use_dictionary=False)
    start = pq.read_metadata(path).row_group(0).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 200] = b"\xff" * 200
    path.write_bytes(bytes(data))
    (chunk,) = sources.listing(dataset("parquet", splits=["test"]), "test", str(tmp_path))
    rows = sources.outline(0, chunk)
    assert rows["label"].to_pylist() == list(range(20))
    read = sources.identified({0: chunk}, rows)
    assert read["error"].to_pylist() == sources.index(0, chunk)["error"].to_pylist()
    assert "damaged" in read["error"][0].as_py()


def bytes_read() -> int:
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="no /proc/self/io")
@pytest.mark.parametrize(("layout", "each"), [("folder", 0), ("parquet", 1024), ("wds", 3072)])
def test_images_are_not_read_where_they_lie_here(tmp_path, layout, each):
    """At most `each` bytes an image, of images of 40 kB."""
    images = [np.random.default_rng(n).bytes(40_000) for n in range(200)]
    root = tmp_path / "set"
    if layout == "folder":
        for number, data in enumerate(images):
            place = root / "test" / f"c{number % 4}" / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
    elif layout == "parquet":
        root.mkdir()
        labels = [number % 4 for number in range(len(images))]
        table = pa.table({"image": images, "label": labels})
        pq.write_table(table, root / "test.parquet", row_group_size=100, use_dictionary=["label"])
    else:
        pairs = [
            (f"{n}.{suffix}", data)
            for n, image in enumerate(images)
            for suffix, data in (("png", image), ("cls", b"%d" % (n % 4)))
        ]
        write_tar(root / "test" / "0.tar", pairs)
    chunks = sources.listing(dataset(layout, splits=["test"]), "test", str(tmp_path))
    before = bytes_read()
    found = [sample.label for chunk in chunks for sample in sources.survey(chunk)]
    read = bytes_read() - before
    assert sorted(found) == sorted(n % 4 for n in range(200))
    assert read <= each * len(images) + 20_000


def test_a_tar_in_a_bucket_costs_a_small_request_a_sample(tmp_path, bucket, monkeypatch):
    pairs = [
        (f"{n}.{suffix}", data)
        for n in range(20)
        for suffix, data in (("png", np.random.default_rng(n).bytes(90_000)), ("cls", b"1"))
    ]
    write_tar(tmp_path / "set" / "test" / "0.tar", pairs)
    fsspec.filesystem("s3").put(f"{tmp_path}/set", f"{bucket}/small/", recursive=True)
    (chunk,) = sources.listing(dataset("wds", splits=["test"]), "test", f"{bucket}/small")
    from s3fs.core import S3File

    asked, fetch = [], S3File._fetch_range

    def counted(self, start, end):
        asked.append(end - start)
        return fetch(self, start, end)

    monkeypatch.setattr(S3File, "_fetch_range", counted)
    assert len(list(sources.survey(chunk))) == 20
    assert len(asked) <= 20 + 3
    assert sum(asked) < 0.3 * 20 * 90_000


def test_the_odd_cases_that_people_have(tmp_path):
    if not SHARED.exists():
        pytest.skip("the shared odd cases are not here")
    with tarfile.open(SHARED) as tar:
        tar.extractall(tmp_path, filter="fully_trusted")
    seen = 0
    for case in sorted(tmp_path.iterdir()):
        for layout in MAKERS:
            for split in ("train", "test"):
                given = Dataset(name="odd", format=layout, uri=str(case), splits=["train", "test"])
                try:
                    chunks = sources.listing(given, split, "")
                except ConfigError:
                    continue
                seen += sum(len(agree(chunk)) for chunk in chunks)
    assert seen > 100
