"""Data, workspace and weights in an object store: a real S3 endpoint on loopback, asked over HTTP by real clients."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
import yaml

from clipray import backbones, catalog
from clipray.config import CONFIGS, Backbone
from clipray.errors import ConfigError
from clipray.sources import storage
from clipray.store import Store
from tests.sources.made import make_wds

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = CONFIGS / "backbones" / "vit-p6-36"


# Weights


def test_many_processes_fetch_an_object_once(requests, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPRAY_CACHE", str(tmp_path / "cache"))
    content = os.urandom(3 * 2**20)
    fsspec.filesystem("s3").pipe_file("bucket/weights/many.safetensors", content)
    script = (
        "import sys; from clipray import backbones; print('up', flush=True); sys.stdin.readline()\n"
    )
    script += "print(backbones.fetch(sys.argv[1]))"
    command = [sys.executable, "-c", script, "s3://bucket/weights/many.safetensors"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    processes = [subprocess.Popen(command, **pipes) for _ in range(4)]
    assert [process.stdout.readline() for process in processes] == ["up\n"] * 4
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    places = {process.communicate(timeout=120)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    (place,) = places
    assert Path(place).name == "many.safetensors"
    assert Path(place).read_bytes() == content
    assert requests.count("GET", "/weights/many.safetensors") == 1


def test_changed_weights_are_another_backbone(requests, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPRAY_CACHE", str(tmp_path / "cache"))
    s3, spec = (
        fsspec.filesystem("s3"),
        Backbone(
            name="b", architecture="ViT-B-32", weights="s3://bucket/weights/b.pt", like="openai"
        ),
    )
    with pytest.raises(ConfigError, match=r"s3://bucket/weights/b\.pt: there is no such object"):
        backbones.origin(spec)
    s3.pipe_file("bucket/weights/b.pt", b"first")
    s3.ls("bucket/weights", refresh=True)
    before = backbones.origin(spec), backbones.fetch(spec.weights).read_bytes()
    subprocess.run(  # by another process, so that no cache of this one can know
        [
            sys.executable,
            "-c",
            "import fsspec; fsspec.filesystem('s3').pipe_file('bucket/weights/b.pt', b'other')",
        ],
        check=True,
    )
    after = backbones.origin(spec), backbones.fetch(spec.weights).read_bytes()
    assert before[0] != after[0]
    assert (before[1], after[1]) == (b"first", b"other")


def test_a_pinned_backbone_is_what_it_was_and_asks_no_more(requests, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPRAY_CACHE", str(tmp_path / "cache"))
    s3, place = fsspec.filesystem("s3"), "s3://bucket/weights/pinned.pt"
    spec = Backbone(name="b", architecture="ViT-B-32", weights=place, like="openai")
    s3.pipe_file(place, b"first")
    pinned = backbones.pinned(spec)
    before = backbones.origin(spec)
    requests.lines.clear()
    for copy in (pinned, pickle.loads(pickle.dumps(pinned))):
        assert backbones.origin(copy) == before
    assert requests.lines == []
    s3.pipe_file(place, b"other")
    assert backbones.origin(pinned) == before
    assert backbones.origin(spec) == backbones.origin(backbones.pinned(spec)) != before


# The store


def test_a_store_sees_at_once_what_another_process_writes(requests):
    store = Store("s3://bucket/ws")
    assert store.names("a/b") == set()
    assert store.manifest("a/b") is None
    assert not store.exists("a/b/x")
    code = "from clipray.store import Store; s = Store('s3://bucket/ws'); s.write('a/b/x', b'1'); s.finish('a/b', {})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert store.names("a/b") == {"x", "manifest.json"}
    assert store.read("a/b/x") == b"1"
    assert store.manifest("a/b")["what"] == {}


def test_an_object_is_read_by_one_request(requests):
    store = Store("s3://bucket/once")
    for name in ("a", "b"):
        store.finish(name, {"name": name})
    requests.lines.clear()
    found = store.manifests(["a", "none", "b"])
    assert [manifest and manifest["what"]["name"] for manifest in found] == ["a", None, "b"]
    assert store.read("a/manifest.json")
    assert len(requests.lines) == 4


def test_an_image_in_a_bucket_is_read_by_one_request(requests):
    names = [f"s3://bucket/images/{number}.png" for number in range(5)]
    for name in names[1:]:
        fsspec.filesystem("s3").pipe_file(name, name.encode())
    requests.lines.clear()
    lost, *found = storage.read_files(names)
    assert isinstance(lost, FileNotFoundError)
    assert found == [name.encode() for name in names[1:]]
    assert len(requests.lines) == 5
    requests.lines.clear()
    assert list(storage.read_ranges(names[1], [0, 5], [3, 4])) == [b"s3:", b"buck"]
    assert len(requests.lines) == 2


def test_a_bucket_that_is_not_there_holds_nothing(requests):
    store = Store("s3://no-such-bucket/ws")
    assert store.manifests(["a", "b"]) == [None, None]
    assert store.page("index", "index/a/").versions == {}


def test_a_file_uri_is_a_local_workspace(tmp_path):
    store = Store(f"file://{tmp_path}/ws")
    store.write("a/b", b"1")
    assert store.local
    assert (tmp_path / "ws" / "a" / "b").read_bytes() == b"1"


# A whole campaign


@pytest.fixture(scope="module")
def places(requests, tmp_path_factory):
    """A set and a backbone, on disk and at s3:// : (local folder, config values)."""
    root = tmp_path_factory.mktemp("s3")
    make_wds(root / "data" / "set")
    (root / "data" / "set" / "zeroshot_classification_templates.txt").write_text("a {c}\n")
    for name in ("model.safetensors", "clipray-vit-p6-36.json"):
        shutil.copy(SHIPPED / name, root / name)
    entry = {"name": "mine", "architecture": "clipray-vit-p6-36"}
    entries = {
        "local": {"weights": "model.safetensors", "config": "clipray-vit-p6-36.json"},
        "s3": {
            "weights": "s3://bucket/mine/model.safetensors",
            "config": "s3://bucket/mine/clipray-vit-p6-36.json",
        },
    }
    for name, files in entries.items():
        (root / f"{name}.yaml").write_text(yaml.safe_dump(entry | files))
    s3 = fsspec.filesystem("s3")
    s3.put(f"{root}/data", "bucket/data", recursive=True)
    for place in entries["s3"].values():
        s3.put_file(f"{root}/{place.rpartition('/')[2]}", place)
    values = {
        "name": "afar",
        "datasets": ["set"],
        "precision": "fp32",
        "heads": ["zero_shot"],
        "fusers": ["log_avg"],
        "shots": [1],
        "seeds": 1,
        "compute": {"address": "local"},
    }
    return root, values


def campaign(places, name: str, data_root: str, workspace: str) -> Path:
    root, values = places
    config = root / f"{name}-campaign.yaml"
    backbone = [str(root / f"{name}.yaml")]
    config.write_text(
        yaml.safe_dump(
            values | {"backbones": backbone, "data_root": data_root, "workspace": workspace}
        )
    )
    return config


def job(config: Path, tmp_path: Path) -> dict:
    environment = os.environ | {"CLIPRAY_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "jobs.run", str(config)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def embeddings(uri: str) -> dict[str, bytes]:
    """Every shard's bytes, by its place without the fingerprint, which knows whose weights they are."""
    fs, root = fsspec.core.url_to_fs(f"{uri}/embeddings", use_listings_cache=False)
    found = [path for path in fs.find(root) if path.endswith(".parquet")]
    return {
        re.sub(r"-[0-9a-f]{16}/", "/", path.removeprefix(root)): fs.cat_file(path) for path in found
    }


def test_a_campaign_at_s3_equals_one_on_disk_and_is_done_once(
    places, requests, tmp_path, local_ray
):
    from clipray import config
    from clipray.steps import campaign as run

    root, _ = places
    far = campaign(places, "s3", "s3://bucket/data", "s3://bucket/workspace")
    first = job(far, tmp_path)
    assert first["changed"]
    assert first["workspace"] == "s3://bucket/workspace"
    assert first["headline"]["failed_images"] == 0
    taken = first.pop("embedding")  # by this run; the next one embeds nothing
    assert taken["bytes_read"] > 0
    s3 = fsspec.filesystem("s3", use_listings_cache=False)
    for key in ("scores", "report", "markdown"):
        assert first[key].startswith("s3://bucket/workspace/")
        assert s3.info(first[key])["size"] > 0
    assert s3.cat_file(first["report"]).lstrip().lower().startswith(b"<!doctype html>")
    artifacts = s3.find("bucket/workspace/mlflow-artifacts")
    assert {path.rpartition("/")[2] for path in artifacts} >= {
        "report.html",
        "scores.parquet",
        "leaderboard.md",
    }
    assert first["mlflow"]["tracking_uri"] == (
        f"s3://bucket/workspace/tracking/{first['name']}/mlflow.db"
    )
    assert requests.count("GET", "/mine/model.safetensors") == 1  # three workers, one node

    near = config.load(
        config.Campaign, campaign(places, "local", str(root / "data"), str(root / "workspace"))
    )
    todo = run.plan(near)
    run.prepare(todo)
    run.embed_images(todo)
    assert embeddings(str(root / "workspace"))
    assert embeddings("s3://bucket/workspace") == embeddings(str(root / "workspace"))

    requests.lines.clear()
    again = job(far, tmp_path)
    assert not again["changed"]
    assert again | {"changed": True} == first
    writes = [line for line in requests.lines if re.search('"(PUT|POST|DELETE) ', line)]
    # the workspace's lock is put and removed; nothing else is written
    assert [line for line in writes if "/lock.json" not in line and "?delete" not in line] == []


# A backbone in a file of its own


def test_a_backbone_may_be_a_yaml_file(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("{name: own, architecture: ViT-B-32, weights: own.pt, config: s3://b/own.json}")
    (own,) = catalog.backbones([str(file)])
    assert own == Backbone(
        name="own",
        architecture="ViT-B-32",
        weights=str(tmp_path / "own.pt"),
        config="s3://b/own.json",
    )
    assert [spec.name for spec in catalog.backbones(["rn-32", str(file), str(file)])] == [
        "rn-32",
        "own",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{name: rn-32, architecture: RN50, pretrained: openai}", "another backbone named 'rn-32'"),
        ("{architecture: RN50, pretrained: openai}", "name: is missing"),
        (
            "{name: x, architecture: RN50, pretrained: openai, weight: 1}",
            "known keys: name, architecture",
        ),
    ],
)
def test_a_backbone_file_that_cannot_be_used_says_why(tmp_path, text, words):
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        catalog.backbones([str(file)])
