"""What is no labelled image becomes a row with a reason; what is missing is said with a remedy."""

import shutil
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipray import sources
from clipray.config import Dataset
from clipray.errors import ConfigError
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
        "cannot be read: gone.png",
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
    (tmp_path / "tars" / "classnames.txt").unlink()
    with pytest.raises(ConfigError, match="no class names"):
        sources.classnames(Dataset(name="t", format="wds", uri="tars"), root)
