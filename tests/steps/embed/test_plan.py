"""Embedding: right rows whatever the source, the cluster or the interruption."""

import io
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from clipray import backbones, catalog, images, sources
from clipray.artefacts import embeddings
from clipray.artefacts import index as parts
from clipray.config import Campaign, Dataset
from clipray.errors import ErrorBudget
from clipray.steps import campaign as run
from clipray.steps import evaluations
from clipray.steps.embed import encode
from clipray.steps.embed import plan as embed
from clipray.steps.embed.decode import decode, tasks_of
from clipray.steps.indices import index
from clipray.steps.mappers import in_threads
from clipray.steps.publish import publish
from clipray.store import Store


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).resize((60, 50)).save(sink, "PNG")
    return sink.getvalue()


def folder(root: Path, per_class: int = 3) -> Path:
    """An image folder of two classes, two damaged files, and one image twice."""
    seed = 0
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(per_class):
                (root / split / name / f"{number}.png").write_bytes(png(seed))
                seed += 1
    (root / "test" / "cat" / "empty.jpg").write_bytes(b"")
    (root / "test" / "dog" / "cut.png").write_bytes(png(99)[:80])
    (root / "test" / "dog" / "twice.png").write_bytes(
        (root / "test" / "dog" / "0.png").read_bytes()
    )
    (root / "classnames.txt").write_text("cat\ndog\n")
    (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")
    return root


def test_a_campaign_keeps_every_row_and_counts_the_failures(tmp_path, campaign, local_ray):
    folder(tmp_path / "pets")
    small = campaign(datasets=["pets"], compute={"error_budget": 2})
    todo = run.plan(small)
    assert todo.images == 6 + 9
    run.prepare(todo)
    run.embed_images(todo)

    work = todo.works["pets", "test"]
    table = embeddings.read(todo.store, work.addresses["vit-p6-36"])
    assert len(table) == 9
    assert table["image_id"].to_pylist() == sorted(table["image_id"].to_pylist())
    table_of_index = work.index.table(todo.store)
    assert sorted(table["image_id"].to_pylist()) == sorted(table_of_index["image_id"].to_pylist())
    failed = table.filter(table["error"].is_valid())
    assert len(failed) == 2
    assert table["embedding"].type == pa.list_(pa.float32(), 128)
    matrix = (
        table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(9, 128)
    )
    assert (np.isnan(matrix).all(axis=1) == table["error"].is_valid().to_numpy()).all()
    assert {row["key"].rsplit("/", 1)[-1] for row in todo.failures} == {"empty.jpg", "cut.png"}

    # each image is read once for its pixels; an empty file and equal bytes count too
    files = [path for path in (tmp_path / "pets").glob("t*/*/*") if path.is_file()]
    assert todo.spent["bytes_read"] == sum(path.stat().st_size for path in files)
    assert todo.spent["bytes_written"] >= (6 + 9 - 2) * 128 * 4
    assert set(todo.spent["worked_seconds"]) == {"decoding", "vit-p6-36"}
    assert 0 < todo.spent["busy"]["vit-p6-36"] <= 1

    # every embedding is that of its own image: compared with open_clip's door image by image, joined by id
    encoder = backbones.load(catalog.backbones(["vit-p6-36"])[0])
    by_id = {row["image_id"]: row for row in table.to_pylist()}
    chunks = sources.listing(todo.datasets[0], "test", small.data_root)
    rows = table_of_index.filter(table_of_index["error"].is_null())
    read = sources.contents(dict(enumerate(chunks)), rows)
    for row, data in zip(rows.to_pylist(), read, strict=True):
        if by_id[row["image_id"]]["error"]:
            continue
        crop = images.crop(images.decode(data), encoder.preprocess)
        ours = np.array(by_id[row["image_id"]]["embedding"])
        theirs = encoder.images(crop[None], 1)[0]
        assert ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs) > 0.9999
        assert by_id[row["image_id"]]["label"] == row["label"]

    # the same again has nothing to do; another backbone has only its own images to do; another template no image
    assert run.plan(small).images == 0
    more = run.plan(campaign(datasets=["pets"], backbones=["vit-p6-36", "vit-p8-40"]))
    assert more.busy == ["vit-p8-40"]
    (tmp_path / "pets" / "zeroshot_classification_templates.txt").write_text(
        "a drawing of a {c}.\n"
    )
    reworded = run.plan(small)
    assert reworded.images == 0
    assert list(reworded.classifiers) == ["vit-p6-36"]

    result = publish.publish(todo, evaluations.evaluate_datasets(todo))
    scores = Store(result["workspace"]).read_table("reports/small/scores.parquet").to_pandas()
    assert set(scores["n_expected"]) == {9}
    assert set(scores["n_scored"]) == {7}
    assert result["headline"]["failed_images"] == 2

    # a changed image is another collection: nothing stale is served
    (tmp_path / "pets" / "test" / "cat" / "0.png").write_bytes(png(77))
    assert run.plan(small).works["pets", "test"].images == 9


def test_too_many_failures_are_recorded_whichever_run_wrote_the_shards(
    tmp_path, campaign, local_ray
):
    folder(tmp_path / "pets")
    for _ in range(2):  # the second run finds all shards there
        todo = run.plan(campaign(datasets=["pets"], compute={"error_budget": 1}))
        run.prepare(todo)
        run.embed_images(todo)
        (row,) = todo.failed
        assert (row["dataset"], row["split"], row["backbone"]) == ("pets", "test", None)
        assert "2 of 9 images cannot be read" in row["error"]
        assert "compute.error_budget" in row["error"]
        assert todo.store.manifest(todo.works["pets", "test"].addresses["vit-p6-36"]) is None
        with pytest.raises(ErrorBudget, match="no dataset could be evaluated"):
            evaluations.evaluate_datasets(todo)
    assert todo.images == 0


def test_decode_crops_once_per_group_and_reports_errors(tmp_path, campaign):
    folder(tmp_path / "pets")
    todo = run.plan(campaign(datasets=["pets"]))
    (item,) = embed.items(todo.works["pets", "test"])
    groups = {"vit-p6-36": images.Preprocess((36, 36), "bicubic", "shortest", 0)}
    (table,) = decode(pa.table({"task": [item["task"]]}), todo.store, groups, max_pixels=10**6)
    task = pickle.loads(table["task"][0].as_py())
    errors = task["rows"]["error"].to_pylist()
    assert sum(error is not None for error in errors) == 2
    crops = np.frombuffer(table[table.column_names[1]][0].as_py(), np.uint8).reshape(-1, 36, 36, 3)
    assert len(crops) == 7


def test_a_task_carries_numbers_whatever_the_size_of_the_index(tmp_path, campaign):
    """Slices of Arrow tables pickle all of their parents, so the bytes are weighed and not the rows."""
    rng = np.random.default_rng(0)
    cells = [rng.bytes(40) for _ in range(20_000)]
    table = pa.table({"image": cells, "label": [number % 7 for number in range(len(cells))]})
    pq.write_table(table, tmp_path / "test.parquet", row_group_size=4000)
    names = [f"class {number}" for number in range(7)]
    many = Dataset(
        name="many",
        format="parquet",
        uri=str(tmp_path),
        splits=["test"],
        classnames=names,
        templates=["a {c}"],
    )
    store = Store(str(tmp_path / "workspace"))
    found = index(store, many, "test", "", in_threads)
    addresses = {f"{number:030d}": "embeddings/many/test/" + "b" * 60 for number in range(50)}
    todo = {shard.name: list(addresses) for shard in found.shards(256)}
    items = list(embed.items(embeddings.Work(found, addresses, {}, todo, {})))
    assert len(items) == 20  # of a quarter of a row group each
    assert max(len(item["task"]) for item in items) < 10_000
    tasks = [task for item in items for task in tasks_of(pickle.loads(item["task"]))]
    assert sum(task["piece"][-1] for task in tasks) == 20_000

    # what a worker looks up is its own rows, copied: they weigh what they are
    task = tasks[-1]
    rows, chunks = parts.read(store, task["index"], *task["piece"])
    assert len(pickle.dumps(rows)) < 200 * len(rows)
    assert list(sources.contents(chunks, rows)) == cells[-len(rows) :]


def test_embedded_puts_nulls_where_errors_are():
    rows = pa.table(
        {
            "image_id": ["a", "b", "c"],
            "label": [0, 1, 2],
            "error": pa.array([None, "bad", None], pa.string()),
        }
    )
    table = encode.embedded(rows, np.array([[1.0, 2.0], [np.nan, 3.0]], np.float32), 2, "fp16")
    assert table["embedding"].to_pylist() == [[1.0, 2.0], [None, None], [None, None]]
    assert table["error"].to_pylist() == [None, "bad", "the embedding is not finite"]


def test_what_float16_cannot_hold_is_an_error_and_no_stored_inf():
    rows = pa.table({"image_id": ["a"], "label": [0], "error": pa.array([None], pa.string())})
    large = np.array([[70000.0, 2.0]], np.float32)
    for precision in ("fp16", "bf16"):
        table = encode.embedded(rows, large, 2, precision)
        assert table["embedding"].to_pylist() == [[None, None]]
        assert "float16" in table["error"][0].as_py()
    assert encode.embedded(rows, large, 2, "fp32")["embedding"].to_pylist() == [[70000.0, 2.0]]


def test_parts_without_a_manifest_are_not_read(tmp_path):
    store = Store(str(tmp_path))
    store.write_table("embeddings/x/part.parquet", pa.table({"image_id": ["a"]}))
    with pytest.raises(FileNotFoundError, match="not complete"):
        store.tables("embeddings/x", ["part.parquet"])


@pytest.fixture(scope="module")
def big_config(tmp_path_factory) -> Path:
    """Eight shards of images and two backbones, in a file."""
    root = tmp_path_factory.mktemp("kill")
    values = {
        "name": "kill",
        "workspace": str(root / "killed"),
        "datasets": ["digits", "colours"],
        "backbones": ["vit-p6-36", "vit-p8-40"],
        "precision": "fp32",
        "heads": ["zero_shot"],
        "seeds": 1,
        "compute": {"address": "local"},
        "tracking": {"enabled": False},
    }
    (root / "config.yaml").write_text(yaml.safe_dump(values))
    return root / "config.yaml"


def shards(workspace: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(workspace)): p.read_bytes()
        for p in sorted(workspace.glob("embeddings/**/*.parquet"))
    }


def test_kill_9_and_the_same_command_again_gives_equal_bytes(big_config, local_ray):
    """A run that is killed in the middle and continued equals one that was never stopped, and redoes little."""
    values = yaml.safe_load(big_config.read_text())
    killed = Path(values["workspace"])
    command = [sys.executable, "-m", "jobs.run", str(big_config)]
    process = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while len(shards(killed)) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(3)  # Ray's workers leave with their driver
    before = shards(killed)
    todo = run.plan(Campaign(**values))
    assert before, "killed too early to show anything"
    assert todo.images > 0, "killed too late to show anything"

    for plan in (todo, run.plan(Campaign(**values | {"workspace": str(killed.parent / "whole")}))):
        run.prepare(plan)
        run.embed_images(plan)
    after, whole = shards(killed), shards(killed.parent / "whole")
    assert after == whole
    assert all(after[name] == data for name, data in before.items())
    assert run.plan(Campaign(**values)).images == 0
