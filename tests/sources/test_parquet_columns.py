"""Parquet columns of every type: read right, or told in one sentence; images by path are part of the state."""

import json
import os
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipray import sources
from clipray.config import Dataset
from clipray.errors import ConfigError
from clipray.sources import parquet
from tests.sources.made import dataset, picture, whole

PAIR = [picture(0), picture(1)]
STRUCTS = [{"bytes": data, "path": f"{n}.png"} for n, data in enumerate(PAIR)]


def write(root: Path, image: object = None, label: object = None, meta: object = None) -> Dataset:
    """A set of two rows in a file `test.parquet`."""
    (root / "set").mkdir(exist_ok=True)
    table = pa.table(
        {
            "image": pa.array(STRUCTS) if image is None else image,
            "label": pa.array([0, 1]) if label is None else label,
        }
    )
    if meta is not None:
        table = table.replace_schema_metadata({"huggingface": meta})
    pq.write_table(table, root / "set" / "test.parquet")
    return dataset("parquet", splits=["test"])


def read(given: Dataset, root: Path) -> list:
    chunks = sources.listing(given, "test", str(root))
    return [sample for chunk in chunks for sample in sources.scan(chunk)]


@pytest.mark.parametrize(
    ("column", "options"),
    [
        *(
            (pa.array([0, 1], kind), {})
            for kind in (pa.int8(), pa.uint8(), pa.int32(), pa.uint64())
        ),
        (pa.array([0, 1]).dictionary_encode(), {}),
        (pa.array(["x", "y"]), {"labels": ["x", "y"]}),
        (pa.array(["x", "y"], pa.large_string()), {"labels": ["x", "y"]}),
        (pa.array(["x", "y"]).dictionary_encode(), {"labels": ["x", "y"]}),
    ],
)
def test_labels_of_these_types_are_read(tmp_path, column, options):
    given = write(tmp_path, label=column).model_copy(update={"options": options})
    found = read(given, tmp_path)
    assert [(s.data, s.label, s.error) for s in found] == [(PAIR[0], 0, None), (PAIR[1], 1, None)]


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pa.array([0.0, 1.0]), "holds double, not integers"),
        (pa.array([False, True]), "holds bool"),
        (pa.array(["x", "y"]), r"holds string.*\n.*options: \{labels"),
        (pa.array(["x", "y"]).dictionary_encode(), "holds dictionary"),
        (pa.array([[0], [1]]), "several labels an image"),
        (pa.array([None, None]), "the split has no labels"),
    ],
)
def test_labels_of_other_types_are_told(tmp_path, column, words):
    given = write(tmp_path, label=column)
    for call in (sources.listing, lambda d, _, root: sources.classnames(d, root)):
        with pytest.raises(ConfigError, match=words):
            call(given, "test", str(tmp_path))


def test_labels_that_are_missing_or_too_large_are_rows_with_a_reason(tmp_path):
    given = write(tmp_path, label=pa.array([None, 2**63 + 1], pa.uint64()))
    table = whole(sources.listing(given, "test", str(tmp_path)))
    assert [text.split(" 9")[0] for text in table["error"].to_pylist()] == ["no label", "label"]


@pytest.mark.parametrize("labels", ["xy", ["x", "x"], [True, False], 3])
def test_a_list_of_labels_that_is_none_is_told(tmp_path, labels):
    given = write(tmp_path, label=pa.array(["x", "y"]))
    given = given.model_copy(update={"options": {"labels": labels}})
    with pytest.raises(ConfigError, match=r"options\.labels"):
        sources.listing(given, "test", str(tmp_path))


def test_strings_in_label_order_are_compared_with_class_names(tmp_path):
    given = write(tmp_path, label=pa.array(["x", "y"]))
    given = given.model_copy(update={"options": {"labels": ["x", "y"]}})
    assert sources.classnames(given, str(tmp_path)) == ["x", "y"]
    with pytest.raises(ConfigError, match="in another order"):
        sources.classnames(given.model_copy(update={"classnames": ("y", "x")}), str(tmp_path))


NO_IMAGES = [
    pa.array([list(data) for data in PAIR], pa.list_(pa.uint8())),
    pa.array([[each] for each in STRUCTS]),
    pa.array([{"data": data, "format": "png"} for data in PAIR]),
    pa.array([b"x" * 64] * 2, pa.binary(64)),
    pa.array([1, 2]),
    pa.array([None, None]),
]


@pytest.mark.parametrize("column", NO_IMAGES, ids=lambda column: str(column.type))
def test_images_of_other_types_are_told(tmp_path, column):
    with pytest.raises(ConfigError, match="not image bytes"):
        sources.listing(write(tmp_path, image=column), "test", str(tmp_path))


def features(label: object) -> bytes:
    return json.dumps({"info": {"features": {"label": label}}}).encode()


@pytest.mark.parametrize(
    ("meta", "names"),
    [
        (features({"_type": "ClassLabel", "names": ["ant", "bee"]}), ["ant", "bee"]),
        (features([{"dtype": "int64", "_type": "Value"}]), None),
        (features({"_type": "Sequence", "feature": {"names": ["ant", "bee"]}}), None),
        (features({"_type": "Value", "dtype": "int64"}), None),
        (features({"_type": "ClassLabel", "names": None}), None),
        (features({"_type": "ClassLabel", "num_classes": 2, "names": [0, 1]}), None),
        (features(None), None),
        (b"[]", None),
        (b'{"info": []}', None),
        (b'{"info": {"features": []}}', None),
        (b"no json", None),
        (b"\xff", None),
    ],
)
def test_metadata_of_any_make(tmp_path, meta, names):
    given = write(tmp_path, meta=meta)
    if names:
        assert sources.classnames(given, str(tmp_path)) == names
        return
    with pytest.raises(ConfigError, match="no class names"):
        sources.classnames(given, str(tmp_path))
    named = given.model_copy(update={"classnames": ("ant", "bee")})
    assert sources.classnames(named, str(tmp_path)) == ["ant", "bee"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty .0 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n", "git lfs pull"),
        (b"<html>not found</html>", "not a complete parquet file"),
    ],
)
def test_files_that_are_no_parquet_are_told(tmp_path, data, words):
    given = write(tmp_path)
    (tmp_path / "set" / "test.parquet").write_bytes(data)
    for call in (sources.listing, lambda d, _, root: sources.classnames(d, root)):
        with pytest.raises(ConfigError, match=words):
            call(given, "test", str(tmp_path))


def test_a_damaged_page_makes_rows_with_a_reason(tmp_path):
    given = write(tmp_path)
    path = tmp_path / "set" / "test.parquet"
    data = bytearray(path.read_bytes())
    data[4:200] = b"\xff" * 196
    path.write_bytes(bytes(data))
    found = read(given, tmp_path)
    assert len(found) == 2
    assert all("damaged" in sample.error for sample in found)


def test_a_file_without_rows_has_none(tmp_path):
    given = write(tmp_path, image=pa.array([], pa.binary()), label=pa.array([], pa.int64()))
    assert len(whole(sources.listing(given, "test", str(tmp_path)))) == 0


def test_paths_are_read_where_they_say(tmp_path):
    (tmp_path / "pics").mkdir()
    (tmp_path / "set").mkdir()
    (tmp_path / "pics" / "a::b [1].png").write_bytes(PAIR[0])
    (tmp_path / "set" / "b.png").write_bytes(PAIR[1])
    absolute = str(tmp_path / "pics" / "a::b [1].png")
    for paths in (["b.png", absolute], ["../pics/a::b [1].png", f"file://{absolute}"]):
        for image in (paths, [{"bytes": None, "path": path} for path in paths]):
            found = read(write(tmp_path, image=pa.array(image)), tmp_path)
            expected = PAIR[::-1] if paths[0] == "b.png" else [PAIR[0], PAIR[0]]
            assert [sample.data for sample in found] == expected
    found = read(write(tmp_path, image=pa.array(["c.png", "http://host/d.png"])), tmp_path)
    assert found[0].error == f"cannot be read: c.png (looked for {tmp_path}/set/c.png)"
    assert "web addresses" in found[1].error


@pytest.mark.parametrize("place", ["local", "s3"])
@pytest.mark.parametrize("kind", ["text", "struct"])
def test_files_that_rows_name_are_part_of_the_state(tmp_path, request, place, kind):
    paths = ["img/0.png", "img/1.png"]
    image = paths if kind == "text" else [{"bytes": None, "path": path} for path in paths]
    given = write(tmp_path, image=pa.array(image))
    root = str(tmp_path)
    if place == "s3":
        root = f"{request.getfixturevalue('bucket')}/{kind}"
        fsspec.filesystem("s3").put(f"{tmp_path}/set", f"{root}/", recursive=True)

    def put(path: str, data: bytes | None) -> None:
        if place == "s3":
            fs, where = fsspec.filesystem("s3"), f"{root}/set/{path}"
            fs.rm(where) if data is None else fs.pipe_file(where, data)
            return
        file = tmp_path / "set" / path
        file.parent.mkdir(exist_ok=True)
        file.unlink() if data is None else file.write_bytes(data)

    def digest() -> str:
        return sources.digest(sources.listing(given, "test", root))

    seen = [digest()]
    for data in (PAIR[0], PAIR[1][:50], PAIR[1], None):
        put("img/1.png", data)
        seen.append(digest())
        assert digest() == seen[-1]
    assert seen[-1] == seen[0]
    assert len(set(seen)) == 4


def test_files_that_no_row_reads_are_no_part_of_the_state(tmp_path):
    given = write(tmp_path)  # every row has its bytes, and a path that the hub wrote
    before = sources.digest(sources.listing(given, "test", str(tmp_path)))
    (tmp_path / "set" / "1.png").write_bytes(b"another image")
    assert sources.digest(sources.listing(given, "test", str(tmp_path))) == before


def test_a_link_beside_a_parquet_file_that_leads_elsewhere_is_noticed(tmp_path):
    for name in ("x.png", "y.png"):
        (tmp_path / name).write_bytes(PAIR[0])
        os.utime(tmp_path / name, (1, 1))
    given = write(tmp_path, image=pa.array(["l.png", "l.png"]))
    link = tmp_path / "set" / "l.png"
    link.symlink_to("../x.png")
    before = sources.digest(sources.listing(given, "test", str(tmp_path)))
    link.unlink()
    link.symlink_to("../y.png")
    assert sources.digest(sources.listing(given, "test", str(tmp_path))) != before


def test_two_columns_of_one_name_are_told(tmp_path):
    (tmp_path / "set").mkdir()
    columns = [pa.array(PAIR), pa.array([0, 1]), pa.array([1, 0])]
    table = pa.Table.from_arrays(columns, names=["image", "label", "label"])
    pq.write_table(table, tmp_path / "set" / "test.parquet")
    with pytest.raises(ConfigError, match="2 columns named 'label'"):
        sources.listing(dataset("parquet", splits=["test"]), "test", str(tmp_path))


@pytest.mark.parametrize(
    "name", ["TEST.parquet", "Test-0.parquet", "test_0.PARQUET", "Test/x.parquet"]
)
def test_files_of_a_split_in_any_case(tmp_path, name):
    given = write(tmp_path)
    target = tmp_path / "set" / name
    target.parent.mkdir(exist_ok=True)
    (tmp_path / "set" / "test.parquet").rename(target)
    assert len(read(given, tmp_path)) == 2


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ("test-00000-of-00002 test-00001-of-00002", ""),
        ("test-00000-of-00002-0123456789abcdef test-00001-of-00002-fedcba9876543210", ""),
        ("test_0 test_1 test_10", ""),
        ("test-part.0 test-part.1", ""),
        ("test-00000-of-00003 test-00002-of-00003", "promise 3 files, there are 2"),
        ("test-00000-of-00001 test-00000-of-00002 test-00001-of-00002", "promise 1 and 2 files"),
        ("test-00000-of-00001 test_labels", "files of several kinds"),
        ("test test-extra-0", "files of several kinds"),
    ],
)
def test_files_of_a_split_are_complete_and_of_one_kind(tmp_path, files, words):
    given = write(tmp_path)
    data = (tmp_path / "set" / "test.parquet").read_bytes()
    (tmp_path / "set" / "test.parquet").unlink()
    for name in files.split():
        (tmp_path / "set" / f"{name}.parquet").write_bytes(data)
    if not words:
        assert len(read(given, tmp_path)) == 2 * len(files.split())
        return
    with pytest.raises(ConfigError, match=words):
        sources.listing(given, "test", str(tmp_path))
    one = given.model_copy(update={"splits": {"test": f"{files.split()[0]}.parquet"}})
    assert len(read(one, tmp_path)) == 2


def test_neighbouring_shards_read_their_row_group_once(tmp_path, monkeypatch):
    cells = [b"image %d" % number for number in range(100)]
    table = pa.table({"image": cells, "label": [0] * 100})
    pq.write_table(table, tmp_path / "test.parquet", row_group_size=50)
    given = Dataset(
        name="set", format="parquet", uri=str(tmp_path), splits=["test"], classnames=["a"]
    )
    opened = []
    original = parquet.opened
    monkeypatch.setattr(parquet, "opened", lambda uri: opened.append(uri) or original(uri))
    chunks = sources.listing(given, "test", "")
    rows = pa.concat_tables([sources.index(number, chunk) for number, chunk in enumerate(chunks)])
    opened.clear()
    found = []
    for start in range(0, 100, 10):
        found += sources.contents(dict(enumerate(chunks)), rows.slice(start, 10))
    assert found == cells
    assert len(opened) == len(chunks) == 2
