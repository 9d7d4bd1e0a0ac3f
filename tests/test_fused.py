"""A fused model in a notebook: any kind of image in, a row each out."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clipray
from clipray import catalog
from clipray.config import parse
from clipray.config.predict import Fit
from clipray.errors import ClipRayError, ConfigError
from clipray.steps import fitting
from clipray.steps.embed import texts
from clipray.steps.predict import fit
from clipray.store import Store

NAMES = ["cat", "dog", "red", "blue"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Two backbones, four class names, no label."""
    root = str(tmp_path_factory.mktemp("workspace"))
    values = {"name": "pets", "workspace": root, "classnames": NAMES, "shots": 0}
    wanted = parse(Fit, values | {"backbones": ["vit-p6-36", "rn-32"]}, "test")
    fitting.check(wanted)
    prompts = {"pets": {"classnames": NAMES, "templates": ["a photo of a {c}."]}}
    for spec in catalog.backbones(wanted.backbones):  # what the job does in Ray's tasks
        assert texts.prepare(Store(root), spec, "fp32", "cpu", prompts) == {}
    store, told = fitting.lesson(wanted)
    place = fitting.address(store, wanted.name, told)
    fit.make(store, wanted.name, place, told)
    return clipray.load(store.place(place))


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)


def test_every_kind_of_image_is_the_same_image(model, tmp_path):
    image = Image.fromarray(pixels())
    image.save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    given = [str(tmp_path / "a.png"), tmp_path / "a.png", data, bytearray(data), image, pixels()]
    found = model.predict(given)
    assert found["error"].isna().all()
    assert found["label"].nunique() == 1
    assert found["probability"].to_numpy() == pytest.approx(found["probability"][0], abs=1e-6)
    for one in given:  # alone, and not in a list
        (alone,) = model.predict(one).to_dict("records")
        assert alone["label"] == found["label"][0]
    assert sum(one["probability"] for one in found["top5"][0]) == pytest.approx(1, abs=1e-5)
    assert found["backbones_used"][0] == ["vit-p6-36", "rn-32"]
    assert found["gflops"][0] == pytest.approx(
        sum(card["image_gflops"] for card in model.cards), rel=1e-3
    )


def test_modes_and_orientation_follow_the_rules_of_files(model, tmp_path):
    image = Image.fromarray(pixels())
    for mode in ("L", "1", "P", "RGBA", "CMYK", "I;16", "LA"):
        grey = Image.fromarray(pixels()[..., 0].astype(np.uint16) * 257)
        own = grey if mode == "I;16" else image.convert(mode)
        name = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
        own.save(name)
        both = model.predict([name, own])
        assert both["error"].isna().all(), mode
        assert both["probability"][0] == pytest.approx(both["probability"][1], abs=1e-6), mode
    exif = Image.Exif()
    exif[0x0112] = 6
    sink = io.BytesIO()
    image.save(sink, "PNG", exif=exif)
    both = model.predict([sink.getvalue(), Image.open(io.BytesIO(sink.getvalue()))])
    assert both["probability"][0] == pytest.approx(both["probability"][1], abs=1e-6)


def test_what_is_no_image_is_a_row(model, tmp_path):
    sink = io.BytesIO()
    Image.fromarray(pixels()).save(sink, "PNG")
    given = [
        b"",
        b"text",
        sink.getvalue()[:90],
        tmp_path / "gone.png",
        tmp_path,
        np.zeros((3, 3)),
        None,
    ]
    found = model.predict([*given, sink.getvalue()])
    assert found["error"].notna().tolist() == [True] * 7 + [False]
    assert found["label"].isna().tolist() == [True] * 7 + [False]
    assert "gone.png" in found["error"][3]
    assert len(model.predict([])) == 0
    with pytest.raises(ClipRayError, match="zero bytes"):
        model.explain(b"")


def test_explain_says_what_each_backbone_says(model):
    told = model.explain(pixels()).set_index("who")
    assert told.index.tolist() == ["vit-p6-36", "rn-32", "fused", "without labels"]
    # log_avg without labels: the fused answer is that of the average, and the head has learned nothing
    assert told["label"]["fused"] == told["label"]["without labels"]
    assert told["probability"]["fused"] == pytest.approx(
        told["probability"]["without labels"], abs=1e-6
    )
    first = told.loc["vit-p6-36"]
    assert (first["label"], first["probability"]) == (
        first["zero_shot_label"],
        pytest.approx(first["zero_shot_probability"], abs=1e-6),
    )


def test_a_transductive_fuser_is_refused(model):
    from clipray.numerics.fusers import FUSERS

    values = {"workspace": "w", "classnames": NAMES, "shots": 0, "backbones": ["rn-32"]}
    with pytest.raises(ConfigError, match="labels a whole set of images at once"):
        fitting.check(parse(Fit, values | {"fuser": "ot"}, "test"))
    before = model.fuser
    try:
        model.fuser = FUSERS["ot"]
        for call in (model.predict, model.explain):
            with pytest.raises(ConfigError, match="labels a whole set of images at once"):
                call(pixels())
    finally:
        model.fuser = before


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"shots": 0, "fuser": "guarded"}, "fuser: it learns from labels"),
        ({"shots": 0, "head": "tip_adapter"}, "head: it learns from labels"),
        ({"shots": 4}, "class names alone have no labelled images"),
        ({"shots": 0, "dataset": "digits"}, "exactly one of `dataset` and `classnames`"),
        ({"shots": 0, "alias": "v1"}, "MLflow's own"),
        ({"shots": 0, "from_campaign": "x.yaml"}, "leave out `classnames`"),
    ],
)
def test_a_config_that_cannot_be_is_told(values, words):
    base = {"workspace": "w", "classnames": NAMES, "backbones": ["rn-32"]}
    with pytest.raises(ConfigError, match=words):
        fitting.check(parse(Fit, base | values, "test"))


def test_loading_lazily(tmp_path):
    with pytest.raises(AttributeError):
        _ = clipray.nothing
    assert "load" in dir(clipray)
    code = "import sys, clipray; clipray.load; print({'torch', 'ray', 'mlflow'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parent.parent,
    )
    assert done.stdout.strip() == "{'torch'}"
