"""The hub's own client against a small server that answers as the hub does: content, offline, failures."""

import hashlib
import http.server
import json
import os
import threading

import open_clip
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save

from clipray import backbones
from clipray.backbones import digests, hub
from clipray.config import Backbone, parse
from clipray.errors import ConfigError

REPO = "someone/small"
SPEC = Backbone(name="x", architecture=f"hf-hub:{REPO}")


class Hub:
    """Files of one repository, each commit a mapping; HEAD and GET of /<repo>/resolve/<revision>/<file>."""

    def __init__(self):
        self.commits: dict[str, dict[str, bytes]] = {}
        self.fetched: list[str] = []

    def push(self, files: dict[str, bytes]) -> str:
        commit = hashlib.sha1(str(len(self.commits)).encode()).hexdigest()
        self.commits[commit] = files
        return commit

    def answer(self, handler, body: bool) -> None:
        repo, _, rest = handler.path.strip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        newest = list(self.commits)[-1]
        commit = newest if revision == "main" else revision
        data = self.commits.get(commit, {}).get(file)
        handler.send_response(404 if data is None or repo != REPO else 200)
        if data is None or repo != REPO:
            handler.send_header("X-Error-Code", "EntryNotFound" if repo == REPO else "RepoNotFound")
            handler.send_header("Content-Length", "0")
        else:
            handler.send_header("X-Repo-Commit", commit)
            handler.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        if body and data is not None:
            self.fetched.append(file)
            handler.wfile.write(data)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A hub with no commit yet; its client's cache and ours are empty."""
    there = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            there.answer(self, body=False)

        def do_GET(self):
            there.answer(self, body=True)

        def log_message(self, *args):
            pass

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{listening.server_port}"
    monkeypatch.setenv("CLIPRAY_CACHE", str(tmp_path / "clipray"))
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    forget()
    yield there
    listening.shutdown()
    listening.server_close()
    forget()


def forget() -> None:
    """As a new process."""
    hub.find.cache_clear()
    hub._down.clear()


def small(seed: int) -> tuple[torch.nn.Module, dict[str, bytes]]:
    """A model and its repository."""
    config = open_clip.get_model_config("ViT-B-32")
    config["embed_dim"] = 16
    config["text_cfg"] |= {"width": 16, "heads": 2, "layers": 1}
    config["vision_cfg"] |= {"width": 64, "layers": 1, "head_width": 32}
    torch.manual_seed(seed)
    model = open_clip.model.CLIP(**config).eval()
    told = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}
    told["resize_mode"] = "squash"
    both = {"model_cfg": config, "preprocess_cfg": told}
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    return model, {
        "open_clip_config.json": json.dumps(both).encode(),
        "open_clip_model.safetensors": save(state),
    }


def test_a_repository_loads_and_its_content_is_its_what_online_and_offline(server, monkeypatch):
    model, files = small(0)
    commit = server.push(files)
    before = backbones.origin(SPEC)
    assert "open_clip_model.safetensors" not in server.fetched  # a plan fetches no weights
    encoder = backbones.load(SPEC)
    assert torch.equal(encoder.model.visual.proj, model.visual.proj)
    assert encoder.preprocess.resize_mode == "squash"
    assert encoder.source.revision == commit
    ids = encoder.tokenizer(["a cat"])
    assert torch.equal(encoder.model.encode_text(ids), model.encode_text(ids))

    server.push(files | {"README.md": b"new words"})
    forget()
    assert backbones.origin(SPEC) == before  # another commit with the same weights

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    forget()
    assert backbones.origin(SPEC) == before
    backbones.load(SPEC)
    assert server.fetched.count("open_clip_model.safetensors") == 1


def test_changed_weights_under_the_same_name_are_another_what(server):
    server.push(small(0)[1])
    old = backbones.pinned(SPEC)
    before = backbones.origin(SPEC)
    model, files = small(1)
    server.push(files)
    forget()
    assert backbones.origin(SPEC) != before
    assert torch.equal(backbones.create(SPEC).visual.proj, model.visual.proj)
    # a run that was planned before the change goes on with what it saw
    assert backbones.origin(old) == before
    assert torch.equal(backbones.create(old).visual.proj, small(0)[0].visual.proj)


def test_what_was_told_once_is_known_without_the_hub(server, monkeypatch, tmp_path):
    server.push(small(0)[1])
    before = backbones.origin(SPEC)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    forget()
    assert backbones.origin(SPEC) == before  # though the weights were never fetched here
    with pytest.raises(ConfigError, match="cannot be fetched from the Hugging Face hub"):
        backbones.load(SPEC)  # and nothing is made up


@pytest.mark.parametrize(
    ("architecture", "words"),
    [("hf-hub:nobody/nothing", "does not exist, or HF_TOKEN"), (SPEC.architecture, "has none of")],
)
def test_what_the_hub_has_not_is_said(server, architecture, words):
    server.push({"open_clip_config.json": b"{}"})
    with pytest.raises(ConfigError, match=words):
        backbones.load(Backbone(name="x", architecture=architecture))


def test_a_tag_that_cannot_be_fetched_is_no_random_model(server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    spec = Backbone(name="x", architecture="ViT-B-32", pretrained="openai")
    with pytest.raises(
        ConfigError, match="is not in the local cache and the hub cannot be reached"
    ):
        backbones.load(spec)


def test_a_repository_without_preprocessing_is_refused(server):
    _, files = small(0)
    config = json.loads(files["open_clip_config.json"])
    server.push(
        files | {"open_clip_config.json": json.dumps({"model_cfg": config["model_cfg"]}).encode()}
    )
    with pytest.raises(ConfigError, match="no `preprocess_cfg`"):
        backbones.load(SPEC)
    told = parse(
        Backbone,
        {"name": "x", "architecture": SPEC.architecture, "like": "ViT-B-16-SigLIP/webli"},
        "",
    )
    assert backbones.load(told).model.visual.preprocess_cfg["resize_mode"] == "squash"


def test_a_file_is_hashed_once_until_it_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPRAY_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "weights.pt"
    path.write_bytes(b"one")
    os.utime(path, (1e9, 1e9))
    digests._settled.cache_clear()
    first = digests.digest(path)
    assert first == hashlib.sha256(b"one").hexdigest()
    reads = []
    real = digests._sha256
    monkeypatch.setattr(digests, "_sha256", lambda file: reads.append(file) or real(file))
    assert digests.digest(path) == first
    digests._settled.cache_clear()  # another process
    assert digests.digest(path) == first
    assert reads == []
    path.write_bytes(b"two")  # the same size, just now
    assert digests.digest(path) == hashlib.sha256(b"two").hexdigest()
    os.utime(path, (1e9 + 1, 1e9 + 1))
    assert digests.digest(path) == hashlib.sha256(b"two").hexdigest()
