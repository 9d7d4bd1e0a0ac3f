"""What is no labelled image becomes a row with a reason; what is missing is said with a remedy."""

import bz2
import gzip
import io
import lzma
import re
import shutil
import tarfile
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipray import catalog, sources
from clipray.config import Dataset
from clipray.errors import ConfigError
from clipray.sources import tars
from tests.sources.made import MAKERS, dataset, make_parquet, make_wds, picture, whole, write_tar


def test_parquet_rows_that_are_no_labelled_image(tmp_path):
    rows = [
        {"path": "gone.png", "label": 0},
        {"path": None, "label": 0},
        {"path": "here.png", "label": None},
    ]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "here.png").write_bytes(picture(1))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "set" / "test.parquet")
    (chunk,) = sources.listing(dataset("parquet", splits=["test"]), "test", str(tmp_path))
    assert [s.error for s in sources.scan(chunk)] == [
        f"cannot be read: gone.png (looked for {tmp_path}/set/gone.png)",
        "no image bytes",
        "no label",
    ]


def test_tar_members_that_are_no_labelled_image(tmp_path):
    members = [
        *(("a.jpg", picture(1)), ("a.png", picture(2)), ("a.cls", b"0")),
        *(("b.jpg", picture(3)), ("c.cls", b"1"), ("d.jpg", picture(4)), ("d.cls", b"dog")),
        *(("e.txt", b"neither"), ("f.png", picture(5)), ("f.cls", b" 2\n")),
    ]
    write_tar(tmp_path / "set" / "test" / "0.tar", members)
    (chunk,) = sources.listing(dataset("wds", splits=["test"]), "test", str(tmp_path))
    found = list(sources.scan(chunk))
    assert [(sample.key, sample.label) for sample in found] == [
        *(
            ("0.tar/a", None),
            ("0.tar/b", None),
            ("0.tar/c", None),
            ("0.tar/d", None),
            ("0.tar/f", 2),
        )
    ]
    reasons = ["2 images", "0 .cls", "0 images", "'dog', not a number", None]
    assert all(
        (reason in sample.error) if reason else not sample.error
        for reason, sample in zip(reasons, found, strict=True)
    )
    table = whole([chunk])
    assert len(set(table["image_id"].to_pylist())) == 5
    good = table.filter(pa.compute.is_null(table["error"]))
    assert list(sources.fetch(chunk, good)) == [picture(5)]


def test_a_tar_that_breaks_off_keeps_what_came_before(tmp_path):
    pairs = [
        (f"{n}.{suffix}", data)
        for n in range(4)
        for suffix, data in (("png", picture(n)), ("cls", b"1"))
    ]
    path = tmp_path / "set" / "test" / "0.tar"
    write_tar(path, pairs)
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        third = tar.getmembers()[4]
    for end in range(third.offset - 512, third.offset_data + third.size + 1, 97):
        path.write_bytes(data[:end])
        (chunk,) = sources.listing(dataset("wds", splits=["test"]), "test", str(tmp_path))
        found = list(sources.scan(chunk))
        assert [s.data for s in found if not s.error] == [picture(0), picture(1)][
            : sum(not s.error for s in found)
        ]
        assert sum(not s.error for s in found) >= 1
        assert any("breaks off" in s.error for s in found if s.error), end
    path.write_bytes(data[:600] + b"\xff" * 4000)
    (chunk,) = sources.listing(dataset("wds", splits=["test"]), "test", str(tmp_path))
    assert all(sample.error for sample in sources.scan(chunk))
    path.write_bytes(b"")
    (chunk,) = sources.listing(dataset("wds", splits=["test"]), "test", str(tmp_path))
    assert ["not a readable tar" in sample.error for sample in sources.scan(chunk)] == [True]


def test_a_file_that_shrank_after_listing_is_an_error_of_its_rows(tmp_path):
    make_wds(tmp_path / "set")
    chunk = sources.listing(dataset("wds"), "test", str(tmp_path))[0]
    rows = sources.index(0, chunk)
    rows = rows.set_column(4, "offset", pa.array([10**6] * rows.num_rows, pa.int64()))
    assert all(isinstance(found, EOFError) for found in sources.fetch(chunk, rows))


def tar_of(tmp_path, members: list[tuple[str, bytes]]) -> tuple[list, Counter]:
    write_tar(tmp_path / "set" / "test" / "0.tar", members)
    left: Counter[str] = Counter()
    (chunk,) = sources.listing(dataset("wds", splits=["test"]), "test", str(tmp_path))
    return list(sources.scan(chunk, left)), left


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("a.v1.png a.v1.cls", {"a": ""}),
        ("a.png a.v1.cls", {"a": ""}),
        ("a.b.c.JPG a.b.c.CLS", {"a": ""}),
        ("d/a.v1.png d/a.v1.cls d/a.v2.png d/a.v2.cls", {"d/a.v1": "", "d/a.v2": ""}),
        ("a.seg.png a.jpg a.cls", {"a": ""}),
        ("a.v1.png a.v2.png a.cls", {"a.v1": "0 .cls", "a.v2": "0 .cls", "a": "0 images"}),
        ("a.v1.png a.v1.cls b.v1.png b.v1.cls", {"a": "", "b": ""}),
        ("a.png b.png a.cls b.cls", {"a": "side by side", "b": "side by side"}),
        ("a.heic a.cls", {"a": ""}),
        ("d.x/a.png d.x/a.cls", {"d.x/a": ""}),
        ("../../a.png ../../a.cls", {"../../a": ""}),
        ("/etc/a.png /etc/a.cls", {"/etc/a": ""}),
    ],
)
def test_members_of_a_tar_form_samples_as_webdataset_groups_them(tmp_path, names, expected):
    members = [(name, b"1" if name.lower().endswith("cls") else b"x") for name in names.split()]
    found, _ = tar_of(tmp_path, members)
    keys = {sample.key.removeprefix("0.tar/") for sample in found}
    assert keys == set(expected)
    for sample in found:
        reason = expected[sample.key.removeprefix("0.tar/")]
        assert reason in (sample.error or "")
        assert bool(sample.error) == bool(reason)
    assert sum(sample.data is not None for sample in found) == sum(not r for r in expected.values())


def test_webdataset_itself_finds_the_same_keys(tmp_path):
    """The grouping of the webdataset package, written down: `base_plus_ext` of webdataset/tariterators.py."""
    convention = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
    names = ["a.v1.png", "x/y.z/b.tar.jpg", "c.cls", "./d.e.f.PNG", "é.png", "x.y/g.h.cls"]
    write_tar(tmp_path / "0.tar", [(name, b"x") for name in names])
    with open(tmp_path / "0.tar", "rb") as file:
        members = list(tars.members(file, [], Counter()))
    theirs = [convention.match(name) for name in names]
    assert [(m.key, m.suffix) for m in members] == [(t[1], t[2].lower()) for t in theirs]


def test_what_is_in_a_tar_beside_samples_is_counted(tmp_path):
    found, left = tar_of(
        tmp_path,
        [
            *(("a.png", picture(1)), ("a.cls", b"0"), ("a.json", b"{}"), ("b.txt", b"x")),
            *(("._a.png", b"x"), ("__MACOSX/a.png", b"x"), ("d/.DS_Store", b"x")),
        ],
    )
    assert [sample.error for sample in found] == [None]
    assert left == {"*.json": 1, "*.txt": 1, "._*": 1, "__MACOSX": 1, ".DS_Store": 1}


def test_tars_that_were_appended_to_one_another_are_read_whole(tmp_path):
    parts = []
    for number in range(3):
        pair = [(f"{number}.png", picture(number)), (f"{number}.cls", b"%d" % number)]
        write_tar(tmp_path / "part.tar", pair)
        parts.append((tmp_path / "part.tar").read_bytes())
    path = tmp_path / "set" / "test" / "0.tar"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"".join(parts))
    (chunk,) = sources.listing(dataset("wds", splits=["test"]), "test", str(tmp_path))
    found = list(sources.scan(chunk))
    assert [(s.data, s.label, s.error) for s in found] == [(picture(n), n, None) for n in range(3)]
    assert list(sources.fetch(chunk, whole([chunk]))) == [picture(n) for n in range(3)]
    path.write_bytes(parts[0] + parts[1][:700])
    assert [bool(s.error) for s in sources.scan(chunk)][:1] == [False]
    assert "breaks off" in list(sources.scan(chunk))[-1].error
    path.write_bytes(parts[0] + b"no tar at all")
    assert [bool(s.error) for s in sources.scan(chunk)] == [False, True]


def test_links_sparse_files_and_long_names_in_a_tar(tmp_path):
    path = tmp_path / "set" / "test" / "0.tar"
    path.parent.mkdir(parents=True)
    long = "./dir/" + "é" * 120
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x"}) as tar:
        folder = tarfile.TarInfo("./dir")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in [(f"{long}.png", picture(1)), (f"{long}.cls", b"1")]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for kind, name in [(tarfile.LNKTYPE, "hard"), (tarfile.SYMTYPE, "soft")]:
            link = tarfile.TarInfo(f"{name}.png")
            link.type, link.linkname = kind, f"{long}.png"
            tar.addfile(link)
            info = tarfile.TarInfo(f"{name}.cls")
            info.size = 1
            tar.addfile(info, io.BytesIO(b"1"))
    (chunk,) = sources.listing(dataset("wds", splits=["test"]), "test", str(tmp_path))
    found = list(sources.scan(chunk))
    assert [(s.key, s.data, s.label) for s in found[:1]] == [(f"0.tar/{long}", picture(1), 1)]
    assert ["a link" in sample.error for sample in found[1:]] == [True, True]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        *((b"1", 1), (b" 1\r\n", 1), (b"\xef\xbb\xbf1", 1), (b"+1", 1), (b"-1", -1)),
        *((b"1.0", None), (b"[1]", None), (b"", None), (b"1" * 30, None), (b"\xff", None)),
    ],
)
def test_labels_of_a_tar(tmp_path, text, label):
    (sample,), _ = tar_of(tmp_path, [("a.png", picture(1)), ("a.cls", text)])
    assert sample.label == label
    assert bool(sample.error) == (label is None)


def test_compressed_tars_are_told(tmp_path):
    write_tar(tmp_path / "set" / "test" / "0.tar", [("a.png", picture(1)), ("a.cls", b"0")])
    plain = (tmp_path / "set" / "test" / "0.tar").read_bytes()
    for pack, name in [(gzip, "gzip"), (bz2, "bzip2"), (lzma, "xz")]:
        (tmp_path / "set" / "test" / "0.tar").write_bytes(pack.compress(plain))
        (chunk,) = sources.listing(dataset("wds", splits=["test"]), "test", str(tmp_path))
        (sample,) = sources.scan(chunk)
        assert f"compressed ({name})" in sample.error
    (tmp_path / "set" / "test" / "0.tar").rename(tmp_path / "set" / "test" / "0.tar.xz")
    assert catalog.detect("set", str(tmp_path)).format == "wds"
    with pytest.raises(ConfigError, match=r"1 compressed tars \(0\.tar\.xz"):
        sources.listing(dataset("wds", splits=["test"]), "test", str(tmp_path))


@pytest.mark.parametrize("layout", MAKERS)
def test_what_is_missing_is_said_with_a_remedy(tmp_path, layout):
    def complaint(split: str, **more) -> str:
        with pytest.raises(ConfigError) as caught:
            sources.listing(dataset(layout, **more), split, str(tmp_path))
        return str(caught.value)

    assert "there is no such folder" in complaint("test")
    MAKERS[layout](tmp_path / "set")
    for file in sorted((tmp_path / "set").glob("train*")):
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    text = complaint("train")
    assert "train" in text
    assert "splits: [test]" in text
    assert "test" in text.split("there is:")[1]
    assert "validation" in complaint("test", splits={"test": "validation"})
    assert "has no train split" in complaint("train", splits=["test"])


def test_complaints_about_names_templates_formats_and_columns(tmp_path):
    make_parquet(tmp_path / "set")
    root = str(tmp_path)
    for given, text in [
        (dataset("parquet", classnames=["one"]), "1 class names, but .* has 3 classes"),
        (dataset("parquets"), "known: folder, parquet, wds, drawn, sklearn"),
        (
            dataset("parquet", options={"lable": "x"}),
            "options.lable is unknown; known: image, label, labels",
        ),
        (
            dataset("parquet", options={"label": "kind"}),
            "no label column .looked for kind; there is: image, label",
        ),
        (dataset("parquet", options={"label": "image"}), "holds struct.*not integers"),
        (dataset("parquet", options={"image": "label"}), "holds int64, not image bytes"),
    ]:
        with pytest.raises(ConfigError, match=text):
            _ = sources.listing(given, "test", root), sources.classnames(given, root)
    with pytest.raises(
        ConfigError, match=r"no prompt templates.*zeroshot_classification_templates\.txt"
    ):
        sources.templates(Dataset(name="set", format="parquet", uri="set"), root)
    with pytest.raises(ConfigError, match=r"has no \{c\}"):
        sources.templates(
            Dataset(name="set", format="parquet", uri="set", templates=["a photo"]), root
        )
    (tmp_path / "set" / "zeroshot_classification_templates.txt").write_text("a {c}.\n\nthe {}\n")
    assert sources.templates(Dataset(name="set", format="parquet", uri="set"), root) == [
        "a {c}.",
        "the {c}",
    ]
    (tmp_path / "set" / "test-00001-of-00002.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(ConfigError, match="not a complete parquet file"):
        sources.listing(dataset("parquet"), "test", root)
    make_wds(tmp_path / "tars")
    (tmp_path / "tars" / "test" / "2.tar").unlink()
    with pytest.raises(ConfigError, match="promises 3 tars, there are 2"):
        sources.listing(Dataset(name="t", format="wds", uri="tars"), "test", root)
    (tmp_path / "tars" / "test" / "nshards.txt").write_text("2")
    (tmp_path / "tars" / "classnames.txt").unlink()
    with pytest.raises(ConfigError, match="no class names"):
        sources.classnames(Dataset(name="t", format="wds", uri="tars"), root)
