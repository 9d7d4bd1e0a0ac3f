"""A fused model behind HTTP: real requests on loopback, broken ones included."""

import base64
import io
import json
import socket
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

import clipray
from clipray import catalog
from clipray.config import parse
from clipray.config.predict import Fit
from clipray.errors import ConfigError
from clipray.steps import fitting
from clipray.steps.embed import texts
from clipray.steps.predict import fit
from clipray.store import Store

NAMES = ["cat", "dog", "red", "blue"]


def test_bodies_that_cannot_be_are_refused():
    from clipray.steps.predict.serve import Limits, Refused, images_in

    limits = Limits(1000, 2, 1000)
    assert images_in(b"x", "image/png", limits) == ([b"x"], True)
    text = base64.b64encode(b"x").decode()
    body = json.dumps({"images": [text, text]}).encode()
    assert images_in(body, "application/json", limits) == ([b"x", b"x"], False)
    wrong = {
        b"{": 400,
        b"[]": 400,
        b"[" * 100_000: 400,
        b"{}": 400,
        b'{"images": []}': 400,
        b'{"images": [1]}': 400,
        b'{"images": ["\\u00e9"]}': 400,
        b'{"images": ["a"]}': 400,
        json.dumps({"images": [text] * 3}).encode(): 413,
    }
    for own, status in wrong.items():
        with pytest.raises(Refused) as refused:
            images_in(own, "application/json", limits)
        assert refused.value.status == status, own


def test_a_registered_model_needs_its_workspace(monkeypatch):
    from jobs import serve

    monkeypatch.setattr(sys, "argv", ["jobs.serve", "models:/pets@champion"])
    with pytest.raises(ConfigError, match="add --workspace"):
        serve.main()


@pytest.fixture(scope="module")
def served(tmp_path_factory, local_ray):
    """Two backbones behind HTTP on a free port: the address, and the model as a notebook has it."""
    from clipray.steps.predict import serve

    root = str(tmp_path_factory.mktemp("workspace"))
    values = {"name": "pets", "workspace": root, "classnames": NAMES, "shots": 0}
    wanted = parse(Fit, values | {"backbones": ["vit-p6-36", "rn-32"]}, "test")
    prompts = {"pets": {"classnames": NAMES, "templates": ["a photo of a {c}."]}}
    for spec in catalog.backbones(wanted.backbones):
        assert texts.prepare(Store(root), spec, "fp32", "cpu", prompts) == {}
    store, told = fitting.lesson(wanted)
    place = fitting.address(store, wanted.name, told)
    fit.make(store, wanted.name, place, told)
    model = clipray.load(store.place(place))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    limits = serve.Limits(100_000, 4, 10_000)
    yield serve.start(store.place(place), model, limits, "127.0.0.1", port, "cpu", 1.0, 8), model
    serve.stop()


def ask(url: str, body: bytes | None = None, kind: str = "application/json") -> tuple[int, dict]:
    request = urllib.request.Request(url, body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def png(seed: int, side: int = 20) -> bytes:
    sink = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def test_real_requests(served):
    url, model = served
    assert ask(f"{url}/healthz") == (200, {"status": "ok", "model": "pets"})
    data = [png(0), b"no image", png(1), png(2)]
    body = json.dumps({"images": [base64.b64encode(one).decode() for one in data]}).encode()
    status, answer = ask(f"{url}/predict", body)
    assert status == 200
    wanted = model.predict(data)
    rows = answer["predictions"]
    assert [row["error"] for row in rows] == [None, "not an image", None, None]
    for row, own in zip(rows, wanted.to_dict("records"), strict=True):
        assert row.get("label") == (None if row["error"] else own["label"])
        if not row["error"]:
            assert row["probability"] == pytest.approx(own["probability"], abs=1e-6)
            assert row["backbones_used"] == ["vit-p6-36", "rn-32"]
    status, answer = ask(f"{url}/predict", png(0), "image/png")
    assert (status, answer["predictions"][0]["label"]) == (200, rows[0]["label"])
    for own, kind, code, words in (
        (b"no image", "image/png", 422, "not an image"),
        (png(0, 150), "image/png", 422, "more than 10000"),
        (b"x" * 200_000, "image/png", 413, "100000"),
        (b"{", "application/json", 400, "no JSON"),
    ):
        status, answer = ask(f"{url}/predict", own, kind)
        assert (status, words in answer["error"]) == (code, True), answer
    assert ask(f"{url}/predict")[0] == 405
    assert ask(f"{url}/nothing")[0] == 404
