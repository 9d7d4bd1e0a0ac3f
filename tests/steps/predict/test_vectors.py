"""A fused model of given vectors: fitted without any model at hand, it labels vectors, and images not at all."""

import json

import numpy as np
import pytest

import clipray
from clipray.artefacts import evaluations as scores
from clipray.artefacts import fused_model
from clipray.config import Campaign, parse
from clipray.config.predict import Fit, Predict
from clipray.errors import ConfigError
from clipray.steps import campaign as run
from clipray.steps import evaluations, fitting, labelling
from clipray.steps.predict import fit
from clipray.store import Store

IMAGES, CLASSES, DIM = 700, 4, 16  # about 350 test images: two shards


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """A data set of given vectors, whose text is good enough for `guarded` to learn from the batch."""
    root, draw = tmp_path_factory.mktemp("vectors"), np.random.default_rng(5)
    labels = np.arange(IMAGES) % CLASSES
    np.save(root / "labels.npy", labels)
    backbones = {}
    for name in ("a", "b"):
        text = draw.normal(size=(CLASSES, DIM)).astype(np.float32)
        images = (text[labels] + draw.normal(size=(IMAGES, DIM))).astype(np.float16)
        np.savez(root / f"{name}.npz", image=images, text=text)
        backbones[name] = {
            "images": f"{name}.npz#image",
            "classes": f"{name}.npz#text",
            "scale": 20,
        }
    values = {
        "name": "own",
        "format": "embeddings",
        "uri": str(root),
        "classnames": ["w", "x", "y", "z"],
        "labels": "labels.npy",
        "split": {"test": 0.5},
        "backbones": backbones,
    }
    (root / "own.yaml").write_text(json.dumps(values))
    return root


def fitted(root, **changes) -> str:
    values = {
        "name": "own-fusion",
        "workspace": f"{root}/workspace",
        "dataset": f"{root}/own.yaml",
        "backbones": ["given"],
        "fuser": "guarded",
        "shots": 4,
    }
    wanted = parse(Fit, values | changes, "test")
    store, told = fitting.lesson(wanted)
    place = fitting.address(store, wanted.name, told)
    fit.make(store, wanted.name, place, told)
    return store.place(place)


def wanted(root, model: str, **changes) -> Predict:
    values = {"workspace": f"{root}/workspace", "model": model, "images": f"{root}/own.yaml"}
    return parse(Predict, values | changes, "test")


def test_a_collection_of_vectors_is_labelled_as_the_evaluation_labels_it(vectors, local_ray):
    values = {
        "workspace": f"{vectors}/workspace",
        "datasets": [f"{vectors}/own.yaml"],
        "backbones": ["given"],
        "fusers": ["guarded", "log_avg"],
        "shots": [4],
        "seeds": 1,
        "tracking": {"enabled": False},
    }
    todo = run.plan(parse(Campaign, values, "test"))
    run.prepare(todo)
    run.embed_images(todo)
    place = evaluations.evaluate_datasets(todo)["own"]
    outcomes = todo.store.read_table(f"{place}/{scores.OUTCOMES}").to_pandas()

    model = fitted(vectors)
    job = labelling.prepare(wanted(vectors, model))
    assert job.work.learns
    assert len(job.work.todo) == 6
    told = labelling.label(job)
    own = outcomes[(outcomes["method"] == "guarded") & (outcomes["shots"] == 4)]
    own = own.set_index("image_id").sort_index()
    assert told["accuracy"] == (own["label"] == own["prediction"]).mean()
    assert "gflops_per_image" not in told
    store = job.work.store
    names = store.manifest(job.work.address)["shards"]
    table = store.tables(job.work.address, names).to_pandas().set_index("image_id")
    assert table["class"].tolist() == own["prediction"].tolist()
    assert table["probability"].to_numpy() == pytest.approx(own["confidence"].to_numpy(), abs=1e-5)
    assert table["gflops"].isna().all()

    # the collection has taught it: the model that is kept says so, and the first one says something else
    taught = fused_model.read(told["model"]).about["fuser"]["state"]["numbers"]
    assert taught["share"] > 0
    plain = labelling.label(labelling.prepare(wanted(vectors, model, learn=False)))
    assert plain["model"] == model != told["model"] == labelling.label(job)["model"]
    assert plain["predictions"] != told["predictions"]

    # other vectors of the same images are another collection
    changed = dict(np.load(vectors / "a.npz"))
    kept = dict(changed)
    changed["image"] = changed["image"][::-1]
    np.savez(vectors / "a.npz", **changed)
    other = labelling.prepare(wanted(vectors, model))
    np.savez(vectors / "a.npz", **kept)
    assert other.work.address != job.work.address

    # the same again does nothing
    again = labelling.prepare(wanted(vectors, model))
    assert (again.work.images, labelling.label(again)) == (0, told)


def test_what_it_cannot_do_is_told(vectors, tmp_path):
    model = fitted(vectors, fuser="c_log_avg")
    with pytest.raises(ConfigError, match="fitted on given vectors"):
        clipray.load(model).predict([b"x"])
    with pytest.raises(ConfigError, match="knows no backbone"):
        labelling.prepare(wanted(vectors, model, images="digits"))
    two = json.loads((vectors / "own.yaml").read_text())
    two["backbones"].pop("b")
    (tmp_path / "one.yaml").write_text(json.dumps(two))
    with pytest.raises(ConfigError, match="no vectors of the backbone b"):
        labelling.prepare(wanted(vectors, model, images=f"{tmp_path}/one.yaml"))
    with pytest.raises(ConfigError, match="cost of a backbone is not known"):
        fitted(vectors, fuser="c_log_avg", cascade={"max_accuracy_drop": 0.1})


def test_logits_take_methods_that_need_no_embedding(vectors, tmp_path):
    own = json.loads((vectors / "own.yaml").read_text())
    draw = np.random.default_rng(0)
    for name in own["backbones"]:
        np.save(vectors / f"{name}-logits.npy", draw.normal(size=(IMAGES, CLASSES)).astype("f4"))
    backbones = {name: {"logits": f"{name}-logits.npy"} for name in own["backbones"]}
    values = own | {"name": "logits", "format": "logits", "backbones": backbones}
    (tmp_path / "logits.yaml").write_text(json.dumps(values))
    config = {"dataset": f"{tmp_path}/logits.yaml"}
    with pytest.raises(ConfigError, match="logits only, and guarded needs embeddings"):
        fitted(vectors, **config)
    model = fitted(vectors, **config, fuser="c_log_avg")
    assert Store(f"{vectors}/workspace").uri in model
