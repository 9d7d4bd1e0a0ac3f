"""A fused model behind HTTP: real requests on loopback, broken ones included."""

import base64
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

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
from clipray.steps.predict import fit, register
from clipray.store import Store

NAMES = ["cat", "dog", "red", "blue"]
PATIENCE = 240  # seconds that a busy machine may take to start a server


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
def fitted(tmp_path_factory):
    """What makes a model of two backbones from class names alone, its store and its address."""
    root = str(tmp_path_factory.mktemp("workspace"))
    values = {"name": "pets", "workspace": root, "classnames": NAMES, "shots": 0}
    wanted = parse(Fit, values | {"backbones": ["vit-p6-36", "rn-32"]}, "test")
    prompts = {"pets": {"classnames": NAMES, "templates": ["a photo of a {c}."]}}
    for spec in catalog.backbones(wanted.backbones):
        assert texts.prepare(Store(root), spec, "fp32", "cpu", prompts) == {}
    store, told = fitting.lesson(wanted)
    place = fitting.address(store, wanted.name, told)
    fit.make(store, wanted.name, place, told)
    return wanted, store, place


@pytest.fixture(scope="module")
def served(fitted, local_ray):
    """The model behind HTTP on a free port: the address, and the model as a notebook has it."""
    from clipray.steps.predict import serve

    _, store, place = fitted
    model = clipray.load(store.place(place))
    limits = serve.Limits(100_000, 4, 10_000)
    uri = store.place(place)
    yield serve.start(uri, model, limits, "127.0.0.1", free_port(), "cpu", 1.0, 8), model
    serve.stop()


@pytest.fixture(scope="module")
def registered(fitted):
    """The model in MLflow's registry: its URI there, and that of the database."""
    wanted, store, place = fitted
    told = register.register(wanted, store, place)["registered"]
    assert "error" not in told
    return told["uri"], f"sqlite:///{store.root}/mlflow.db"


@pytest.fixture
def served_by_mlflow(fitted, registered):
    """The registered model behind MLflow's own server: the address, and the model as a notebook has it."""
    _, store, place = fitted
    uri, database = registered
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", uri]
    command += ["--env-manager", "local", "--port", str(port)]
    environment = os.environ | dict.fromkeys(
        ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"), database
    )
    own = Path(sys.executable).parent  # whose uvicorn it starts, as in an activated environment
    environment["PATH"] = f"{own}{os.pathsep}{environment['PATH']}"
    told = Path(store.root, "server.log")
    with told.open("w") as log:
        server = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + PATIENCE
        while not answers(f"{url}/ping"):
            assert server.poll() is None, told.read_text()
            assert time.monotonic() < until, told.read_text()
            time.sleep(0.5)
        yield f"{url}/invocations", clipray.load(store.place(place))
    finally:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.killpg(server.pid, signal.SIGTERM)  # it has a process of its own that answers
        server.wait(30)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status == 200
    except OSError:  # nobody is there yet
        return False


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


def test_mlflow_answers_requests(served_by_mlflow):
    url, model = served_by_mlflow
    data = [png(0), b"no image", png(1)[:60], png(1)]
    texts = [base64.b64encode(one).decode() for one in data]
    status, answer = ask(url, table(texts))
    assert status == 200
    rows, wanted = answer["predictions"], model.predict(data).to_dict("records")
    assert [bool(row["error"]) for row in rows] == [False, True, True, False]
    for row, own in zip(rows, wanted, strict=True):
        if row["error"]:
            assert (row["label"], row["error"]) == (None, own["error"])
        else:
            assert row["label"] == own["label"]
            assert row["probability"] == pytest.approx(own["probability"], abs=1e-6)
    for wrong in (table(["not base64"]), table([7]), table(texts, "picture"), b"{", b"{}"):
        status, answer = ask(url, wrong)
        assert 400 <= status < 500, (wrong, answer)
        assert "error_code" in answer or "detail" in answer
    assert ask(url, table(texts[:1]))[0] == 200  # it still answers


def table(values: list, column: str = "image") -> bytes:
    return json.dumps(
        {"dataframe_split": {"columns": [column], "data": [[value] for value in values]}}
    ).encode()


def test_a_model_is_registered_where_its_run_is_wherever_mlflow_is_pointed_to(
    fitted, registered, monkeypatch, tmp_path
):
    import mlflow

    wanted, store, place = fitted
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{tmp_path}/other.db")
    mlflow.set_registry_uri(f"sqlite:///{tmp_path}/other.db")
    try:
        again = register.register(wanted, store, place)["registered"]
    finally:
        mlflow.set_registry_uri(None)
    assert again == {"name": "pets", "alias": "champion", "uri": registered[0], "version": "1"}


def test_what_mlflow_is_set_to_is_left_as_it_was(registered, monkeypatch, tmp_path):
    import mlflow

    uri, database = registered
    other = f"sqlite:///{tmp_path}/other.db"
    monkeypatch.chdir(tmp_path)  # where MLflow puts a database of its own
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    mlflow.set_registry_uri(None)
    for before in (None, other):
        mlflow.set_tracking_uri(before)
        clipray.load(uri, tracking_uri=database)
        assert os.environ.get("MLFLOW_TRACKING_URI") == before
        assert "MLFLOW_REGISTRY_URI" not in os.environ
        mlflow.set_tracking_uri(other)
        assert mlflow.get_registry_uri() == other  # it follows
    mlflow.set_tracking_uri(None)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", other)
    clipray.load(uri, tracking_uri=database)
    assert os.environ["MLFLOW_REGISTRY_URI"] == other
    mlflow.set_registry_uri(None)
