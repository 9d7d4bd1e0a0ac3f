"""Training a tiny CLIP with Ray Train: it learns, survives a worker's death, and continues with the same command."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipray import backbones
from clipray.config import Backbone
from clipray.config.pretrain import Pretrain
from clipray.errors import ConfigError
from clipray.steps.pretrain import train as steps
from clipray.steps.pretrain.worker import schedule
from clipray.store import Store

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 40),
    "blue": (40, 50, 220),
    "grey": (128, 128, 128),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Noisy images of four colours, each with a caption; one of them damaged."""
    root = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(240):
        name, colour = list(COLOURS.items())[number % 4]
        pixels = np.clip(np.array(colour) + rng.normal(0, 40, (20, 20, 3)), 0, 255).astype(np.uint8)
        sink = io.BytesIO()
        Image.fromarray(pixels).save(sink, "PNG")
        rows.append(
            {"image": {"bytes": sink.getvalue(), "path": None}, "caption": f"a {name} square"}
        )
    rows[7]["image"]["bytes"] = b"damaged"
    pq.write_table(pa.Table.from_pylist(rows), root / "train.parquet")
    tower = {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    (root / "clipray-tiny.json").write_text(
        json.dumps({"embed_dim": 16, "vision_cfg": tower, "text_cfg": text})
    )
    return root


def config(corpus: Path, workspace: Path, **changes) -> Pretrain:
    values = {
        "name": "tiny",
        "workspace": str(workspace),
        "architecture": str(corpus / "clipray-tiny.json"),
        "corpus": str(corpus / "train.parquet"),
        "output": str(workspace / "model.safetensors"),
        "epochs": 3,
        "batch_size": 32,
        "lr": 0.001,
        "weight_decay": 0.0,
        "warmup_steps": 2,
        "precision": "fp32",
        "shift": 1,
        "jitter": 0.0,
        "held_out": 0.2,
        "cpus_per_worker": 0.5,
        "tracking": {"enabled": False},
    }
    return Pretrain(**values | changes)


def test_two_workers_learn_and_survive_a_death(corpus, tmp_path, local_ray, monkeypatch):
    """Two DDP workers, one of which dies in the second epoch: the run goes on from the last checkpoint."""
    from clipray.steps.pretrain import worker as pretrain_worker

    mark = tmp_path / "died"
    real = pretrain_worker.checkpoint

    def dying(model, optimizer, metrics, store, history):
        real(model, optimizer, metrics, store, history)
        if metrics["epoch"] == 2 and not mark.exists():
            mark.touch()
            os._exit(1)

    monkeypatch.setattr(pretrain_worker, "checkpoint", dying)
    local_ray.cloudpickle.register_pickle_by_value(pretrain_worker)
    try:
        done = steps.pretrain(config(corpus, tmp_path, workers=2, epochs=6))
    finally:
        local_ray.cloudpickle.unregister_pickle_by_value(pretrain_worker)
    assert mark.exists()
    history = Store(str(tmp_path)).read_json(
        f"{done['run'].removeprefix(str(tmp_path) + '/')}/history.json"
    )
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5, 6]
    assert history[-1]["loss"] < history[0]["loss"]
    assert done["metrics"]["held_out_top1"] > 0.5  # four captions: chance is 0.25
    assert "| 6 |" in (tmp_path / "README.md").read_text()
    spec = Backbone(
        name="t", architecture="clipray-tiny", weights=done["weights"], config=done["architecture"]
    )
    encoder = backbones.load(spec)
    crops = np.stack([np.full((16, 16, 3), colour, np.uint8) for colour in COLOURS.values()])
    weights_CD = encoder.classifier(list(COLOURS), ["a {c} square"])
    assert ((encoder.images(crops, 4) @ weights_CD.T).argmax(1) == np.arange(4)).mean() >= 0.75

    again = steps.pretrain(
        config(corpus, tmp_path, workers=1, epochs=6)
    )  # fewer workers are another HOW, not WHAT
    assert again["run"] == done["run"]
    assert again["metrics"] == done["metrics"]  # nothing was left to train


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"workers": 9, "batch_size": 36}, "9 workers of 0.5 CPUs do not fit"),
        ({"workers": 2, "batch_size": 33}, "not a multiple of workers"),
        ({"use_gpu": True}, "1 workers on GPUs"),
    ],
)
def test_a_cluster_that_is_too_small_is_said_before_anything_starts(
    corpus, tmp_path, changes, words
):
    with pytest.raises(ConfigError, match=words):
        steps.check(config(corpus, tmp_path, **changes), {"CPU": 2})


def test_the_rate_rises_and_falls():
    rates = [schedule(step, 10, 110) for step in range(111)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0)
