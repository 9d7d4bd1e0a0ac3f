"""Small sets in the three layouts, written without the code under test."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from clipray import sources
from clipray.config import Dataset
from clipray.sources import Chunk

CLASSES = ["ant", "Bee", "cat"]


def bytes_read() -> int:
    """Bytes that this process has read so far, from files and caches alike, as /proc/self/io tells."""
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(
        np.random.default_rng(number).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    ).save(file, "PNG")
    return file.getvalue()


def make_folder(root: Path) -> dict[str, tuple[bytes, int]]:
    """Seven images in three classes, one deeper, one with awkward signs in its name; by key."""
    made = {}
    for number, path in enumerate(
        [
            "Bee/b [1]?.png",
            "ant/2.png",
            "ant/10.PNG",
            "ant/sub/x.jpg",
            "cat/ü #1.webp",
            "cat/a.b.png",
            "cat/z",
        ]
    ):
        for split in ("train", "test"):
            file = root / split / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(picture(number + (split == "train") * 100))
        made[path] = (picture(number), sorted(CLASSES).index(path.split("/")[0]))
    (root / "test" / "cat" / ".hidden.png").write_bytes(b"x")
    (root / "test" / "readme.txt").write_text("not in a class folder")
    return made


def make_parquet(root: Path) -> dict[str, tuple[bytes, int]]:
    rows = [{"image": {"bytes": picture(n), "path": f"{n}.png"}, "label": n % 3} for n in range(7)]
    meta = {"info": {"features": {"label": {"names": CLASSES, "_type": "ClassLabel"}}}}
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"huggingface": json.dumps(meta)})
    root.mkdir(parents=True)
    pq.write_table(table.slice(0, 5), root / "test-00000-of-00002.parquet", row_group_size=3)
    pq.write_table(table.slice(5), root / "test-00001-of-00002.parquet")
    pq.write_table(table, root / "train-00000-of-00001.parquet")
    keys = ["0#0/0", "0#0/1", "0#0/2", "0#1/0", "0#1/1", "1#0/0", "1#0/1"]
    names = [f"test-0000{key[0]}-of-00002.parquet{key[1:]}" for key in keys]
    return {
        name: (row["image"]["bytes"], row["label"]) for name, row in zip(names, rows, strict=True)
    }


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def make_wds(root: Path) -> dict[str, tuple[bytes, int]]:
    made = {}
    for split in ("train", "test"):
        for shard in (0, 2, 10):
            members = []
            for number in range(shard, shard + 2):
                suffix = ("jpg", "PNG", "webp")[number % 3]
                pair = [
                    (f"./d/s{number}.{suffix}", picture(number)),
                    (f"./d/s{number}.cls", b"%d\n" % (number % 3)),
                ]
                members += pair if number % 2 else [*pair[::-1], (f"./d/s{number}.json", b"{}")]
                made[f"{shard}.tar/d/s{number}"] = (picture(number), number % 3)
            write_tar(root / split / f"{shard}.tar", members)
        (root / split / "nshards.txt").write_text("3\n")
    (root / "classnames.txt").write_text("\n".join(CLASSES) + "\n")
    return made


def dataset(layout: str, **more) -> Dataset:
    return Dataset(name="set", format=layout, uri="set", templates=["a {c}"], **more)


def whole(found: list[Chunk]) -> pa.Table:
    parts = [sources.index(number, chunk) for number, chunk in enumerate(found)]
    table = pa.concat_tables([part.replace_schema_metadata(None) for part in parts])
    return table.set_column(0, table.schema.field(0), sources.numbered(table["image_id"]))


MAKERS = {"folder": make_folder, "parquet": make_parquet, "wds": make_wds}
