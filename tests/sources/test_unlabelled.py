"""Images without labels: a folder of them, a list of paths, Parquet with a column of them."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipray import sources
from clipray.config import Dataset
from clipray.errors import ConfigError


def png(seed: int) -> bytes:
    sink = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture
def images(tmp_path) -> dict[str, bytes]:
    """Six files in folders of different depth, and what is none."""
    found = {f"{'deep/er/' * (n % 2)}{n}.png": png(n) for n in range(6)}
    for name, data in found.items():
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "photos" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "photos" / "0.json").write_text("{}")
    return found


def read(layout: str, uri: str, split: str = ".") -> list[sources.Sample]:
    dataset = Dataset(name="x", format=layout, uri=uri, splits={"test": split})
    chunks = sources.lenient(sources.listing(dataset, "test", ""))
    samples = [sample for chunk in chunks for sample in sources.scan(chunk)]
    index = pa.concat_tables([sources.index(n, c) for n, c in enumerate(chunks)])
    fetched = list(sources.contents(dict(enumerate(chunks)), index))
    assert fetched == [sample.data for sample in samples]
    assert all(sample.label is None for sample in samples)
    return samples


def test_a_folder(tmp_path, images):
    found = read("flat", str(tmp_path / "photos"))
    assert {sample.key: sample.data for sample in found} == images
    with pytest.raises(ConfigError, match=r"looked in .*nowhere"):
        read("flat", str(tmp_path / "nowhere"))


def test_a_text_of_paths(tmp_path, images):
    lines = [f"photos/{name}" for name in images]
    lines += [
        str(tmp_path / "photos" / "0.png"),
        "photos/gone.png",
        "https://example.org/a.png",
        "photos",
    ]
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
    found = read("listed", str(tmp_path / "list.txt"))
    assert [sample.data for sample in found[:7]] == [*images.values(), images["0.png"]]
    assert [bool(sample.error) for sample in found] == [False] * 7 + [True] * 3
    assert "not fetched" in found[8].error
    for text, words in (("", "no line"), (None, "no such file")):
        if text is not None:
            (tmp_path / "none.txt").write_text(text)
        name = "none.txt" if text is not None else "missing.txt"
        with pytest.raises(ConfigError, match=words):
            read("listed", str(tmp_path / name))


def test_a_list_notices_that_a_file_has_changed(tmp_path, images):
    (tmp_path / "list.txt").write_text("photos/0.png\n")
    dataset = Dataset(
        name="x", format="listed", uri=str(tmp_path / "list.txt"), splits={"test": "."}
    )
    before = sources.digest(sources.listing(dataset, "test", ""))
    assert sources.digest(sources.listing(dataset, "test", "")) == before
    (tmp_path / "photos" / "0.png").write_bytes(png(77) + b" ")
    assert sources.digest(sources.listing(dataset, "test", "")) != before


@pytest.mark.parametrize("column", ["uri", "image", "path"])
def test_parquet_of_paths_or_bytes(tmp_path, images, column):
    cells = list(images.values()) if column == "image" else [f"photos/{name}" for name in images]
    cells[2] = None
    pq.write_table(pa.table({column: cells, "other": range(6)}), tmp_path / "list.parquet")
    found = read("listed", str(tmp_path / "list.parquet"))
    data = list(images.values())
    assert [sample.data for sample in found] == [*data[:2], None, *data[3:]]
    assert [bool(sample.error) for sample in found] == [False, False, True, False, False, False]


def test_tars_without_labels(tmp_path, images):
    (tmp_path / "set" / "test").mkdir(parents=True)
    with tarfile.open(Path(tmp_path, "set", "test", "0.tar"), "w") as tar:
        for number, data in enumerate(images.values()):
            info = tarfile.TarInfo(f"s{number}.png")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    found = read("wds", str(tmp_path / "set"), "test")
    assert [sample.data for sample in found] == list(images.values())
    dataset = Dataset(name="x", format="wds", uri=str(tmp_path / "set"), splits={"test": "test"})
    (strict,) = sources.listing(dataset, "test", "")
    assert all(sample.error for sample in sources.scan(strict))
