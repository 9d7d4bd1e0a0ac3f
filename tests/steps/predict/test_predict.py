"""From a campaign to labels: `predict`, a notebook and MLflow say what the evaluation said, image by image."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import clipray
from clipray import catalog, sources
from clipray.artefacts import evaluations as scored
from clipray.artefacts import fused_model
from clipray.config import Tracking, parse
from clipray.config.predict import Fit, Predict
from clipray.errors import ConfigError, ErrorBudget
from clipray.steps import campaign as run
from clipray.steps import evaluations, fitting, labelling
from clipray.steps.predict import fit, register
from clipray.store import Store

BACKBONES = ["vit-p6-36", "rn-32"]
LIMIT = 300  # of digits: two shards


@pytest.fixture(scope="module")
def world(tmp_path_factory, local_ray):
    """A campaign that has run, the model that was fitted from it, and its registration."""
    root = tmp_path_factory.mktemp("predict")
    config = root / "campaign.yaml"
    config.write_text(
        f"workspace: {root}/campaign\ndatasets: [digits]\nbackbones: [vit-p6-36, rn-32]\nprecision: fp16\n"
        f"limit: {LIMIT}\nshots: [4]\nseeds: 2\nheads: [zero_shot, tip_adapter]\nfusers: [log_avg, c_log_avg, ot]\n"
        "tracking: {enabled: false}\n"
    )
    values = {"name": "digit-fusion", "from_campaign": str(config), "workspace": f"{root}/campaign"}
    wanted = parse(Fit, values, "test")
    todo = run.plan(fitting.campaign_of(wanted))
    run.prepare(todo)
    run.embed_images(todo)
    places = evaluations.evaluate_datasets(todo)
    store, told = fitting.lesson(wanted)
    address = fitting.address(store, wanted.name, told)
    fit.make(store, wanted.name, address, told)
    result = register.register(wanted, store, address)
    outcomes = store.read_table(f"{places['digits']}/{scored.OUTCOMES}").to_pandas()
    about = fused_model.read(result["model"]).about
    fuser, head = about["fuser"]["name"], about["head"]["name"]
    free = (head, fuser) == ("zero_shot", "log_avg")
    own = outcomes[
        (outcomes["head"] == head)
        & (outcomes["method"] == fuser)
        & (outcomes["shots"] == (0 if free else 4))
        & (outcomes["seed"] == 0)
    ]
    return root, todo, result, own.set_index("image_id").sort_index()


def wanted(world, workspace: str, **changes) -> Predict:
    root, _, result, _ = world
    values = {
        "workspace": f"{root}/{workspace}",
        "model": result["model"],
        "images": "digits",
        "limit": LIMIT,
    }
    return parse(Predict, values | changes, "test")


def test_the_best_method_was_chosen_and_registered(world):
    _, _, result, own = world
    assert result["fuser"] in (
        "best_single_on_support",
        "log_avg",
        "c_log_avg",
    )  # ot labels sets only
    chosen = {(one["head"], one["fuser"]): one["nll"] for one in result["figures"]["chosen_from"]}
    assert len(chosen) == 2 * 3
    assert chosen[result["head"], result["fuser"]] == min(chosen.values())
    assert result["figures"]["test"]["top1"] == (own["label"] == own["prediction"]).mean()
    assert result["registered"]["version"] == "1"
    assert "error" not in result["registered"]


def test_predict_says_what_the_evaluation_says_and_keeps_embeddings(world):
    _, todo, _, own = world
    job = labelling.prepare(wanted(world, "own", keep_embeddings=True))
    assert len(job.work.todo) == 5
    told = labelling.label(job)
    store = job.work.store
    assert (told["images"], told["failed"], told["scored"]) == (LIMIT, 0, LIMIT)
    assert told["accuracy"] == (own["label"] == own["prediction"]).mean()

    # image by image
    table = read(store, job.work.address)
    assert table["class"].tolist() == own["prediction"].tolist()
    assert table["probability"].to_numpy(np.float32) == pytest.approx(
        own["confidence"].to_numpy(), abs=1e-6
    )
    assert [names[0]["label"] for names in table["top5"]] == table["label"].tolist()

    # a campaign in this workspace has nothing to embed
    campaign = todo.campaign.model_copy(update={"workspace": store.uri})
    kept = run.plan(campaign).works["digits", "test"]
    used = set(table["backbones_used"].iloc[0])
    assert {name for names in kept.todo.values() for name in names} == set(BACKBONES) - used

    # the same command again does nothing; what is lost is made anew, and only that
    again = labelling.prepare(wanted(world, "own", keep_embeddings=True))
    assert (again.work.images, labelling.label(again)) == (0, told)
    files = {name: store.read(f"{job.work.address}/{name}") for name, *_ in job.work.shards()}
    for name in ("manifest.json", "000000256.parquet"):
        store.fs.rm(f"{store.root}/{job.work.address}/{name}")
    part = labelling.prepare(wanted(world, "own"))
    assert part.work.todo == ("000000256.parquet",)
    labelling.label(part)
    for name, data in files.items():
        assert store.read(f"{job.work.address}/{name}") == data


def test_a_collection_of_images_teaches_its_model_first(world):
    """The images are embedded where they are not yet, and teach what images embedded by a campaign do."""
    root = world[0]
    values = {
        "name": "taught",
        "workspace": f"{root}/campaign",
        "dataset": "digits",
        "backbones": BACKBONES,
        "precision": "fp16",
        "limit": LIMIT,
        "fuser": "guarded",
        "shots": 4,
    }
    lesson = parse(Fit, values, "test")
    store, told = fitting.lesson(lesson)
    place = fitting.address(store, lesson.name, told)
    fit.make(store, lesson.name, place, told)
    tables = []
    for workspace in ("afresh", "campaign"):
        job = labelling.prepare(wanted(world, workspace, model=store.place(place)))
        assert job.work.learns
        done = labelling.label(job)
        assert (done["images"], done["failed"]) == (LIMIT, 0)
        assert done["taught_from"] == store.place(place) != done["model"]
        tables.append(read(job.work.store, job.work.address))
    pd.testing.assert_frame_equal(*tables)


def read(store, address: str) -> pd.DataFrame:
    names = store.manifest(address)["shards"]
    return store.tables(address, names).to_pandas().set_index("image_id")


def digits() -> dict[str, bytes]:
    (dataset,) = catalog.datasets(["digits"])
    chunks = sources.listing(dataset, "test", "")
    return {
        sources.image_id(sample.data): sample.data
        for chunk in chunks
        for sample in sources.scan(chunk)
    }


def test_a_notebook_and_mlflow_say_the_same(world, monkeypatch):
    import mlflow

    root, _, result, own = world
    data = digits()
    own = own[own.index.isin(data)].head(40)
    server = f"sqlite:///{root}/campaign/mlflow.db"
    monkeypatch.chdir(root)
    model = clipray.load("models:/digit-fusion@champion", tracking_uri=server)
    direct = model.predict([data[image_id] for image_id in own.index], batch_size=7)
    assert direct["image_id"].tolist() == own.index.tolist()
    assert direct["class"].tolist() == own["prediction"].tolist()
    assert direct["probability"].tolist() == pytest.approx(own["confidence"].tolist(), abs=1e-5)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", server)
    monkeypatch.setattr(sys, "path", [*sys.path])  # MLflow puts the model's own code there
    served = mlflow.pyfunc.load_model("models:/digit-fusion@champion")
    assert served.metadata.signature.inputs.to_dict() == [
        {"type": "binary", "name": "image", "required": True}
    ]
    table = served.predict(pd.DataFrame({"image": [data[i] for i in own.index] + [b"no image"]}))
    assert table["label"].tolist() == [*direct["label"].tolist(), None]
    assert table["probability"].tolist()[:-1] == direct["probability"].tolist()
    assert table["error"].tolist()[-1] == "not an image"

    (version,) = mlflow.MlflowClient().search_model_versions("name='digit-fusion'")
    assert float(version.tags["test_top1"]) == pytest.approx(
        result["figures"]["test"]["top1"], abs=1e-5
    )
    requirements = mlflow.pyfunc.get_model_dependencies("models:/digit-fusion@champion")
    assert "torch==" in Path(requirements).read_text()

    told = model.explain(next(iter(data.values())))
    assert told["who"].tolist() == [*BACKBONES, "fused", "without labels"]


def test_a_registered_model_is_found_by_its_alias_and_put_where_workers_read_it(world, tmp_path):
    """As `jobs.predict` and `jobs.serve` look it up, in the workspace that it was registered in."""
    root, _, result, _ = world
    store = Store(f"{root}/campaign")
    place, folder = labelling.model_of(store, "models:/digit-fusion@champion", Tracking())
    assert place.startswith(store.uri)
    assert folder.digest == fused_model.read(result["model"]).digest
    with pytest.raises(ConfigError, match="cannot be fetched"):
        labelling.model_of(store, "models:/digit-fusion@nobody", Tracking())


def test_other_images_are_rows_with_errors(world, tmp_path):
    for number, one in enumerate(list(digits().values())[:6]):
        (tmp_path / f"{number}.png").write_bytes(one)
    (tmp_path / "cut.png").write_bytes(one[:60])
    (tmp_path / "empty.jpg").write_bytes(b"")
    config = wanted(world, "flat", images=str(tmp_path), limit=0, compute={"error_budget": 1})
    with pytest.raises(ErrorBudget, match="2 of 8 images have no label"):
        labelling.label(labelling.prepare(config))
    config = wanted(world, "flat", images=str(tmp_path), limit=0, compute={"error_budget": 2})
    job = labelling.prepare(config)
    assert not job.work.todo
    told = labelling.label(job)
    assert (told["images"], told["labelled"], told["failed"]) == (8, 6, 2)
    assert "accuracy" not in told
    table = read(job.work.store, job.work.address).set_index("path")
    assert sorted(table["error"].dropna().index) == ["cut.png", "empty.jpg"]
    assert table["label"].isna().sum() == 2


def test_what_cannot_be_used_is_told(world, tmp_path):
    for change, words in (
        ({"images": str(tmp_path / "nowhere")}, "is no folder"),
        ({"images": "digitz"}, "digits"),
        ({"images": "a.csv"}, "lists are text"),
        ({"model": str(tmp_path)}, "is no fused model"),
        ({"model": "models:/nobody@champion"}, "cannot be fetched"),
    ):
        with pytest.raises(ConfigError, match=words):
            labelling.prepare(wanted(world, "bad", **change))
    model = clipray.load(world[2]["model"])
    model.about["backbones"][0]["origin"] = {"weights": "other"}
    with pytest.raises(ConfigError, match="has other weights now"):
        _ = model.specs
