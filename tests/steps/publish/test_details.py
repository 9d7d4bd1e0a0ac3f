"""What the report says of single images, against scikit-learn, `numerics`, and images that are read back."""

import base64
import io

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix

from clipray import images, schema, sources
from clipray.artefacts import index as indices
from clipray.config import Dataset
from clipray.numerics.measures import complementarity, outcomes
from clipray.report import details as report
from clipray.steps.publish import details
from clipray.store import Store

NAMES = ["a", "b", "c"]
CLASSES = ["cat", "dog", "elk", "fox"]
WANTED = {"method": "nlc", "head": "zero_shot", "shots": 4}


@pytest.fixture
def answers() -> details.Answers:
    """Made-up answers of three backbones and a fusion to 400 images."""
    random = np.random.default_rng(0)
    labels_N = random.integers(0, 4, 400)
    wrong_NM = random.random((400, 3)) < [0.3, 0.5, 0.6]
    said_NM = np.where(wrong_NM, random.integers(0, 4, (400, 3)), labels_N[:, None])
    said_NM[:12] = (labels_N[:12, None] + 1) % 4  # all agree, against the label
    fused_N = np.where(random.random(400) < 0.2, random.integers(0, 4, 400), labels_N)
    sure_NM, sure_N = random.random((400, 3)), random.random(400)
    ids = [f"{n:032x}" for n in range(400)]
    return details.Answers(ids, labels_N, NAMES, said_NM, sure_NM, fused_N, sure_N)


def table(answers: details.Answers) -> pa.Table:
    """The answers as an evaluation stores them, among others that are not asked for."""
    columns = {f"single/{n}": m for m, n in enumerate(answers.names)}
    rows = []
    for n, image_id in enumerate(answers.image_ids):
        own = {
            "dataset": "d",
            "head": "zero_shot",
            "image_id": image_id,
            "label": answers.labels_N[n],
        }
        said = [
            (name, 0, 0, answers.predictions_NM[n, m], answers.confidences_NM[n, m])
            for name, m in columns.items()
        ]
        said += [("nlc", 4, 0, answers.fused_N[n], answers.sure_N[n])]
        said += [("nlc", 4, 1, 0, 0.0), ("nlc", 1, 0, 0, 0.0), ("log_avg", 0, 0, 0, 0.0)]
        keys = ("method", "shots", "seed", "prediction", "confidence")
        rows += [own | dict(zip(keys, one, strict=True)) for one in said]
    return pa.Table.from_pylist(rows, schema=schema.OUTCOMES)


def test_the_stored_answers_are_read_back(answers, tmp_path):
    store = Store(str(tmp_path))
    store.write_table("e/outcomes.parquet", table(answers))
    found = details.read(store, "e/outcomes.parquet", WANTED)
    assert found.names == NAMES
    for got, given in zip(found, answers, strict=True):
        np.testing.assert_allclose(got, given, rtol=1e-6) if isinstance(got, np.ndarray) else None
    assert found.image_ids == answers.image_ids
    assert details.read(store, "e/outcomes.parquet", WANTED | {"method": "gone"}) is None
    assert details.read(store, "f/outcomes.parquet", WANTED) is None


def test_calibration_is_that_of_scikit_learn(answers):
    right_N = answers.fused_N == answers.labels_N
    found = details.reliability(answers.sure_N, right_N)
    true, said = calibration_curve(right_N, answers.sure_N, n_bins=details.BINS)
    assert [one["accuracy"] for one in found] == pytest.approx(true, abs=1e-4)
    assert [one["confidence"] for one in found] == pytest.approx(said, abs=1e-4)


def test_the_area_below_the_risk_curve_is_aurc(answers, monkeypatch):
    right_N = answers.fused_N == answers.labels_N
    monkeypatch.setattr(details, "STEPS", len(right_N))
    curve = details.risk(answers.sure_N, right_N)
    probs = np.stack([answers.sure_N, 1 - answers.sure_N], 1)
    probs[:, 1] = np.minimum(probs[:, 1], probs[:, 0] / 2)  # the first class is the answer
    log_probs, labels = torch.tensor(np.log(probs)), torch.tensor((~right_N).astype(int))
    assert np.mean([error for _, error in curve]) == pytest.approx(
        float(outcomes.aurc(log_probs, labels)), abs=1e-4
    )


def test_confused_classes_are_those_of_a_confusion_matrix(answers):
    matrix = confusion_matrix(answers.labels_N, answers.fused_N)
    found = details.of_dataset(answers, CLASSES)
    pairs = {(one["label"], one["answer"]): one["images"] for one in found["confused"]}
    assert len(pairs) == 12
    for (label, answer), images_ in pairs.items():
        assert matrix[CLASSES.index(label), CLASSES.index(answer)] == images_
    accuracy = matrix.diagonal() / matrix.sum(1)
    assert [one["fused"] for one in found["classes"]] == pytest.approx(sorted(accuracy))


def test_the_order_of_coverage_is_that_of_numerics(answers):
    right_NM = answers.predictions_NM == answers.labels_N[:, None]
    expected = complementarity.coverage_order(complementarity.patterns(torch.tensor(right_NM)))
    shares = report.overlap([details.of_dataset(answers, CLASSES)])
    found = report.coverage_order(shares)
    assert [step.backbone for step in found] == [NAMES[m] for m, _ in expected]
    assert [step.covered for step in found] == pytest.approx([value for _, value in expected])


def test_examples_are_what_they_are_called(answers):
    by_id = dict(zip(answers.image_ids, range(400), strict=True))
    found = details.of_dataset(answers, CLASSES)["examples"]
    assert {one["kind"] for one in found} == set(report.TITLES)
    for one in found:
        n = by_id[one["image_id"]]
        assert one["label"] == CLASSES[answers.labels_N[n]]
        right = sum(answer == one["label"] for _, answer, _ in one["said"])
        fused = one["fused"][0] == one["label"]
        assert {
            "one rescues": right == 1,
            "fusion rescues": fused and right == 0,
            "fusion loses": not fused and right > 0,
            "label?": right == 0 and len({answer for _, answer, _ in one["said"]}) == 1,
        }[one["kind"]]


def test_pictures_are_the_images_themselves_within_their_bound(answers, tmp_path):
    random = np.random.default_rng(1)
    folder = tmp_path / "data" / "test" / "cat"
    folder.mkdir(parents=True)
    for n in range(5):
        noise = random.integers(0, 255, (300, 200, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{n}.png")
    (folder / "bad.png").write_bytes(b"no image")
    dataset = Dataset(name="d", format="folder", uri=str(tmp_path / "data"), classnames=("cat",))
    chunks = sources.listing(dataset, "test", ".")
    store = Store(str(tmp_path / "ws"))
    counts = indices.write_part(store, "index/d", 0, "here", list(enumerate(chunks)))
    index = indices.Index("d", "test", "index/d", "index/d", "here", (counts.rows,), (0,), "")
    ids = index.table(store, ["image_id"])["image_id"].to_pylist()
    detail = {"examples": [{"image_id": one} for one in ids]}
    spent = details.add_pictures(store, index, detail, details.DATASET_BYTES)
    seen = [one for one in detail["examples"] if "picture" in one]
    assert len(seen) == 5  # the one that is no image has none
    assert spent == sum(len(one["picture"]) for one in seen) < details.DATASET_BYTES
    for one in seen:
        data = base64.b64decode(one["picture"].partition(",")[2])
        with Image.open(io.BytesIO(data)) as small:
            assert small.size == (64, 96)
        number = one["key"].rpartition("/")[2].removesuffix(".png")
        whole = images.decode((folder / f"{number}.png").read_bytes())
        difference = np.asarray(whole).mean() - np.asarray(Image.open(io.BytesIO(data))).mean()
        assert abs(difference) < 2
    again = {"examples": [{"image_id": one} for one in ids]}
    assert details.add_pictures(store, index, again, spent // 2) <= spent // 2


def test_a_source_that_is_gone_is_said(tmp_path):
    index = indices.Index("d", "test", "index/d", "index/d", "here", (1,), (0,), "")
    detail = {"examples": [{"image_id": "x"}]}
    assert details.add_pictures(Store(str(tmp_path)), index, detail, 1000) == 0
    assert "could not be read" in detail["no_pictures"]
