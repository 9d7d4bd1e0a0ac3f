"""Given embeddings and logits as data sets: checked before any work, then artefacts as any others."""

import numpy as np
import pytest
import torch

from clipray import backbones, catalog
from clipray.artefacts import classifiers
from clipray.config import Dataset, parse
from clipray.errors import ConfigError
from clipray.numerics.heads.zero_shot import zero_shot
from clipray.steps.campaign import _settle, _take_given, plan, recall
from clipray.steps.embed import given, texts
from clipray.steps.evaluations import tasks
from clipray.steps.read import read_split

N, C, D = 60, 3, 8


@pytest.fixture
def made(tmp_path):
    """Files of a small data set, and the values of its YAML."""
    draw = np.random.default_rng(1)
    labels = np.arange(N) % C
    text = draw.normal(size=(C, D)).astype(np.float32)
    images = (text[labels] + draw.normal(size=(N, D))).astype(np.float16)
    np.save(tmp_path / "labels.npy", labels)
    np.savez(tmp_path / "a.npz", image=images, text=text)
    np.savez(tmp_path / "b.npz", image=images[:, ::-1], text=text[:, ::-1])
    backbones = {
        name: {"images": f"{name}.npz#image", "classes": f"{name}.npz#text", "scale": 100}
        for name in "ab"
    }
    return {
        "name": "own",
        "format": "embeddings",
        "uri": str(tmp_path),
        "classnames": ["x", "y", "z"],
        "labels": "labels.npy",
        "split": {"test": 0.5},
        "backbones": backbones,
    }


@pytest.fixture
def planned(made, tmp_path, campaign):
    """Plans a campaign of the data set, its values changed."""
    import json

    def make(changes=None, **config):
        path = tmp_path / "own.yaml"
        path.write_text(json.dumps(made | (changes or {})))
        values = {"datasets": [str(path)], "backbones": ["given"]} | config
        return plan(campaign(**values), dry=True)

    return make


def test_artefacts_hold_the_given_vectors(planned, tmp_path):
    todo = planned()
    assert todo.specs == []
    assert todo.classifiers == {}
    _take_given(todo)
    _settle(todo, {}, {})
    (task,) = tasks(todo)
    assert task.backbones == ("a", "b")
    assert task.scales == ((100.0, 0.0),) * 2
    test, train = (read_split(todo.store, task.embeddings[s], C) for s in ("test", "train"))
    assert len(test.image_ids) + len(train.image_ids) == N
    assert not set(test.image_ids) & set(train.image_ids)
    rows = todo.works["own", "test"].index.table(todo.store).sort_by("image_id")["row"].to_numpy()
    images = np.load(tmp_path / "a.npz")["image"].astype(np.float32)
    np.testing.assert_array_equal(test.embeddings[0].numpy(), images[rows])
    np.testing.assert_array_equal(test.labels_N.numpy(), rows % C)
    assert planned().images == 0  # nothing is done twice


def test_other_numbers_have_another_address(planned, tmp_path):
    first = planned().works["own", "test"].addresses
    found = dict(np.load(tmp_path / "a.npz"))
    found["image"][0] += 1
    np.savez(tmp_path / "a.npz", **found)
    second = planned().works["own", "test"].addresses
    assert first["a"] != second["a"]
    assert first["b"] == second["b"]


def test_rows_in_another_order_are_joined_by_id(planned, tmp_path):
    mixed = np.random.default_rng(2).permutation(N)
    ids = np.array([f"image {row}" for row in range(N)])
    found = dict(np.load(tmp_path / "a.npz"))
    np.savez(tmp_path / "c.npz", image=found["image"][mixed], text=found["text"])
    np.save(tmp_path / "ids.npy", ids)
    np.save(tmp_path / "mixed.npy", ids[mixed])
    backbones = {
        "a": {"images": "a.npz#image", "classes": "a.npz#text", "scale": 1},
        "c": {"images": "c.npz#image", "classes": "c.npz#text", "scale": 1, "ids": "mixed.npy"},
    }
    todo = planned({"ids": "ids.npy", "backbones": backbones})
    _take_given(todo)
    _settle(todo, {}, {})
    (task,) = tasks(todo)
    one, other = read_split(todo.store, task.embeddings["test"], C).embeddings
    assert torch.equal(one, other)


def test_rows_that_cannot_be_used_are_counted(planned, tmp_path):
    found = dict(np.load(tmp_path / "a.npz"))
    found["image"][3] = 0
    found["image"][4, 0] = np.nan
    np.savez(tmp_path / "a.npz", **found)
    todo = planned(compute={"error_budget": 5})
    _take_given(todo)
    _settle(todo, {}, {})
    reasons = sorted(row["error"] for row in todo.failures)
    assert reasons == ["the embedding is all zero", "the embedding is not finite"]
    assert {row["backbone"] for row in todo.failures} == {"a"}
    assert {row["key"] for row in todo.failures} == {"3", "4"}


def test_logits_come_back_and_methods_on_embeddings_are_left_out(planned, tmp_path):
    logits = np.random.default_rng(3).normal(size=(N, C)).astype(np.float32) * 30
    np.save(tmp_path / "logits.npy", logits)
    changes = {"format": "logits", "backbones": {"a": {"logits": "logits.npy"}}}
    todo = planned(changes, fusers=["log_avg", "nlc"])
    assert any("left out: nlc" in text for text in todo.remarks)
    _take_given(todo)
    _settle(todo, {}, {})
    (task,) = tasks(todo)
    assert [entry.name for entry in task.fusers] == ["best_single_on_support", "log_avg"]
    test = read_split(todo.store, task.embeddings["test"], C)
    weights = torch.eye(C, C + 1)
    found = zero_shot(test.embeddings[0], weights, *task.scales[0])
    rows = todo.works["own", "test"].index.table(todo.store).sort_by("image_id")["row"].to_numpy()
    np.testing.assert_allclose(found.numpy(), logits[rows], atol=1e-4)


def wrong(tmp_path, kind):
    found = dict(np.load(tmp_path / "a.npz"))
    labels = np.load(tmp_path / "labels.npy")
    if kind == "labels":
        np.save(tmp_path / "labels.npy", labels + 1)
    if kind == "length":
        found["image"] = found["image"][1:]
    if kind == "width":
        found["image"] = found["image"][:, 1:]
    if kind == "classes":
        found["text"] = found["text"][1:]
    if kind == "class":
        found["text"][1] = 0
    if kind == "nothing":
        found["image"][:] = 0
    np.savez(tmp_path / "a.npz", **found)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("labels", "labels from 1 to 3"),
        ("length", "59 rows, but labels.npy has 60"),
        ("width", "rows of 7 numbers, but a.npz#text has 8"),
        ("classes", "2 rows, but there are 3 class names"),
        ("class", "the vector of 'y' is all zero"),
        ("nothing", "no usable row"),
    ],
)
def test_what_does_not_fit_is_told_before_any_work(planned, tmp_path, kind, words):
    wrong(tmp_path, kind)
    with pytest.raises(ConfigError, match=words):
        planned()


def test_labels_of_a_backbone_tell_another_order(planned, made, tmp_path):
    np.save(tmp_path / "theirs.npy", np.load(tmp_path / "labels.npy")[::-1])
    made["backbones"]["a"]["labels"] = "theirs.npy"
    with pytest.raises(ConfigError, match="the rows are in another order"):
        planned()


def test_ids_stand_once(planned, tmp_path):
    np.save(tmp_path / "ids.npy", np.zeros(N, int))
    with pytest.raises(ConfigError, match="ids stand twice, such as '0'"):
        planned({"ids": "ids.npy"})


def test_only_own_backbones_count(planned):
    assert list(planned(backbones=["b"]).given["own"].facts) == ["b"]
    with pytest.raises(ConfigError, match="names none of those it has vectors of"):
        planned(backbones=["vit-p6-36"])
    with pytest.raises(ConfigError, match="'nobody' is unknown"):
        planned(backbones=["a", "nobody"])


def test_images_need_a_model(planned, tmp_path):
    with pytest.raises(ConfigError, match="digits has images"):
        planned(datasets=["digits", str(tmp_path / "own.yaml")])


def test_a_scale_is_never_guessed(made):
    del made["backbones"]["a"]["scale"]
    with pytest.raises(ConfigError, match="`scale: 100` is CLIP's own"):
        parse(Dataset, made, "own.yaml")


def test_a_sphere_keeps_equal_logits_equal():
    vectors = given.on_sphere(np.array([[2.0, 2.0, -5.0]], np.float32), 10.0)
    assert vectors[0, 0] == vectors[0, 1]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_validate_tells_what_the_plan_tells(planned, made, campaign, tmp_path):
    import json

    from clipray import catalog
    from clipray.steps.index import validate

    path = tmp_path / "own.yaml"
    path.write_text(json.dumps(made))
    config = campaign(datasets=[str(path)], backbones=["given"])
    entries = catalog.datasets(config.datasets, config.data_root)
    (report,) = validate.validate(config, entries, 0)
    assert report["errors"] == []
    assert sum(split["images"] for split in report["splits"].values()) == N
    wrong(tmp_path, "width")
    (report,) = validate.validate(config, entries, 0)
    assert "rows of 7 numbers" in report["errors"][0]


def modelled(tmp_path, width):
    """A data set whose class vectors `vit-p6-36` is to make from the class names."""
    vectors = np.random.default_rng(4).normal(size=(N, width)).astype(np.float32)
    np.save(tmp_path / "m.npy", vectors)
    own = {"images": "m.npy", "model": "vit-p6-36"}
    return {"backbones": {"mine": own}, "templates": ["a photo of a {c}."]}


@pytest.mark.parametrize("more", [0, 1])
def test_a_model_makes_the_class_vectors_of_given_images(planned, tmp_path, more):
    spec = backbones.pinned(catalog.backbones(["vit-p6-36"])[0])
    encoder = backbones.load(spec, "fp32", "cpu")
    weights_CD = encoder.classifier(["x", "y", "z"], ["a photo of a {c}."])
    changes = modelled(tmp_path, weights_CD.shape[1] + more)
    todo = planned(changes)
    assert todo.specs == []
    assert todo.classifiers == {"vit-p6-36": {"own": todo.prompts["own"]}}
    with pytest.raises(ConfigError, match="1 text classifiers are not embedded yet"):
        recall(todo)
    texts.prepare(todo.store, spec, "fp32", "cpu", todo.classifiers["vit-p6-36"])
    todo = planned(changes)
    assert todo.classifiers == {}
    recall(todo)
    if more:
        assert tasks(todo) == []
        assert "name the model that made them" in todo.failed[0]["error"]
        return
    (task,) = tasks(todo)
    assert task.backbones == ("mine",)
    assert task.scales == ((encoder.scale, encoder.bias),)
    found = classifiers.read(todo.store, task.classifiers[0])
    np.testing.assert_allclose(found, weights_CD, atol=1e-6)


def test_a_scale_of_ones_own_goes_before_the_models(planned, tmp_path):
    changes = modelled(tmp_path, D)
    changes["backbones"]["mine"] |= {"scale": 7.0}
    given = planned(changes).given["own"]
    assert given.scale("mine", {"vit-p6-36": {"scale": 16.0, "bias": -1.0}}) == (7.0, -1.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "shipped"}, "'shipped' is a group of 5 backbones"),
        ({"model": "vit-p6-37"}, "Did you mean vit-p6-36"),
        ({"classes": "a.npz#text"}, "needs `images`, and `classes` .* or `model`"),
        ({"model": ""}, "needs `images`, and `classes` .* or `model`"),
    ],
)
def test_a_model_that_cannot_be_is_told(planned, tmp_path, changes, words):
    values = modelled(tmp_path, D)
    values["backbones"]["mine"] |= changes
    with pytest.raises(ConfigError, match=words):
        planned(values)


def test_class_names_need_templates_where_a_model_reads_them(planned, tmp_path):
    values = modelled(tmp_path, D) | {"templates": []}
    with pytest.raises(ConfigError, match="no prompt templates"):
        planned(values)
