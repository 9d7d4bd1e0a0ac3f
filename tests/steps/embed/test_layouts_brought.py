"""Vectors as other tools leave them, from index to scores: clip-retrieval's folders and CLIP_benchmark's features."""

import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from clipray.artefacts import evaluations
from clipray.steps.campaign import _settle, _take_given, plan
from clipray.steps.evaluate import plan as evaluate
from clipray.steps.evaluations import tasks

NAMES = ["cat", "dog", "owl", "fox"]
N, C, WIDTHS = 240, 4, {"small": 8, "large": 12}


@pytest.fixture
def seen():
    """Labels, and by backbone image vectors and class vectors that are mostly right of them."""
    draw = np.random.default_rng(5)
    labels = draw.integers(0, C, N)
    found = {}
    for name, width in WIDTHS.items():
        text = draw.normal(size=(C, width)).astype(np.float32)
        noise = draw.normal(size=(N, width))
        found[name] = (text[labels] + 1.5 * noise).astype(np.float16), text
    return labels, found


def clip_retrieval(root, labels, found):
    """`img_emb/img_emb_<k>.npy` beside `metadata/metadata_<k>.parquet`, eleven parts of unequal length."""
    cuts = [0, *np.sort(np.random.default_rng(6).choice(np.arange(1, N), 10, replace=False)), N]
    for name, (images, text) in found.items():
        for folder in ("img_emb", "metadata"):
            (root / name / folder).mkdir(parents=True)
        for part, (start, end) in enumerate(itertools.pairwise(cuts)):
            np.save(root / name / "img_emb" / f"img_emb_{part}.npy", images[start:end])
            rows = range(start, end)
            columns = {
                "image_path": [f"/data/{row:05d}.jpg" for row in rows],
                "caption": [NAMES[labels[row]] for row in rows],
            }
            pq.write_table(pa.table(columns), root / name / "metadata" / f"metadata_{part}.parquet")
        np.save(root / name / "text.npy", text)
    column = "small/metadata/*.parquet#{}"
    return {
        "labels": column.format("caption"),
        "ids": column.format("image_path"),
        "split": {"test": 0.5},
        "backbones": {
            name: {
                "images": f"{name}/img_emb/*.npy",
                "ids": f"{name}/metadata/*.parquet#image_path",
                "classes": f"{name}/text.npy",
                "scale": 100,
            }
            for name in found
        },
    }


def clip_benchmark(root, labels, found):
    """`features_<split>.pt` beside `targets_<split>.pt`, a folder a model; the first 100 images are for test."""
    for name, (images, text) in found.items():
        (root / name).mkdir()
        for split, rows in (("test", slice(0, 100)), ("train", slice(100, N))):
            torch.save(torch.from_numpy(images[rows].copy()), root / name / f"features_{split}.pt")
            torch.save(torch.from_numpy(labels[rows]), root / name / f"targets_{split}.pt")
        torch.save(torch.from_numpy(text), root / name / "classifier.pt")
    return {
        "labels": "small/targets_{split}.pt",
        "backbones": {
            name: {
                "images": f"{name}/features_{{split}}.pt",
                "labels": f"{name}/targets_{{split}}.pt",
                "classes": f"{name}/classifier.pt",
                "scale": 100,
            }
            for name in found
        },
    }


def planned(root, campaign, values, **config):
    path = root / "own.yaml"
    common = {"name": "own", "format": "embeddings", "uri": str(root), "classnames": NAMES}
    path.write_text(json.dumps(common | values))
    return plan(campaign(**{"datasets": [str(path)], "backbones": ["given"]} | config), dry=True)


@pytest.mark.parametrize("layout", [clip_retrieval, clip_benchmark])
def test_scores_are_those_of_the_vectors(tmp_path, campaign, seen, layout):
    labels, found = seen
    todo = planned(tmp_path, campaign, layout(tmp_path, labels, found), shots=[2])
    _take_given(todo)
    _settle(todo, {}, {})
    (task,) = tasks(todo)
    place = evaluations.address(todo.store, task)
    evaluate.evaluate(todo.store, task, place)
    scores = todo.store.read_table(f"{place}/{evaluations.SCORES}").to_pandas()
    scores = scores[(scores["metric"] == "top1") & (scores["shots"] == 0)]

    index = todo.works["own", "test"].index.table(todo.store)
    rows = np.arange(100)
    if layout is clip_retrieval:
        rows = np.array([int(key[6:11]) for key in index["key"].to_pylist()])
    assert sorted(index["label"].to_pylist()) == sorted(labels[rows].tolist())
    for name, (images, text) in found.items():
        wide = images[rows].astype(np.float64)
        cosines = wide / np.linalg.norm(wide, axis=1, keepdims=True)
        cosines = cosines @ (text / np.linalg.norm(text, axis=1, keepdims=True)).T
        expected = (cosines.argmax(1) == labels[rows]).mean()
        (value,) = scores[scores["method"] == f"single/{name}"]["value"]
        assert value == pytest.approx(expected)
        assert expected > 0.5
    assert "log_avg" in set(scores["method"])


def test_vectors_and_images_stand_in_one_campaign(tmp_path, campaign, seen):
    """Each set has its own backbones: images are embedded by models, given vectors by none."""
    labels, found = seen
    values = clip_benchmark(tmp_path, labels, found)
    own = {"datasets": ["digits", str(tmp_path / "own.yaml")], "backbones": ["vit-p6-36", "given"]}
    todo = planned(tmp_path, campaign, values, limit=8, **own)
    assert [spec.name for spec in todo.models("digits")] == ["vit-p6-36"]
    assert todo.models("own") == []
    assert todo.usable("own") == ["small", "large"]
    assert list(todo.classifiers["vit-p6-36"]) == ["digits"]
    _take_given(todo)
    lacking = {place: work.images for place, work in todo.works.items()}
    assert lacking["own", "test"] == lacking["own", "train"] == 0
    assert lacking["digits", "test"] == 8
