"""The doors by which weights come: a backbone's entry → the files that it means, and what they hold.

    pretrained: <tag>                    open_clip's catalogue, a file of the hub
    architecture: hf-hub:<org>/<name>    a repository of the hub in open_clip's format
    architecture: local-dir:<folder>     such a folder on this machine
    weights: <file>                      a checkpoint, local or `s3://…`

Everything here runs in the driver, too: no torch, save that open_clip is imported once per version of it, to
list its tags (the list is then kept on disk).
"""

import functools
import hashlib
import json
import os
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

from clipray.backbones import hub
from clipray.backbones.digests import cache, digest, remember
from clipray.config import CONFIGS, Backbone
from clipray.errors import ConfigError
from clipray.patience import patient

HUB = "hf-hub:"
FOLDER = "local-dir:"
CONFIG = "open_clip_config.json"
# open_clip's own order of preference: for a repository or tag, and within a local directory
HUB_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
FOLDER_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
VOCABULARY = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
)
PIXELS = ("mean", "std", "interpolation", "resize_mode", "fill_color")


@dataclass(frozen=True)
class Source:
    """The files of an entry, on this machine.

    Attributes:
        model: what open_clip calls the architecture: a name, or `local-dir:<folder>`.
        weights: the checkpoint.
        pixels: what has to be laid over open_clip's default preprocessing.
        quick_gelu: whether QuickGELU has to be forced.
        file: the checkpoint as a person would name it.
        revision: the commit of the hub that holds it; empty elsewhere.
    """

    model: str
    weights: Path
    pixels: dict[str, Any]
    quick_gelu: bool
    file: str
    revision: str = ""


def origin(spec: Backbone) -> dict:
    """Return the WHAT of a backbone: its entry, with each name of a file replaced by the content of the file.

    A file of the hub is told by what the hub says of it, without fetching it (see `hub.find`); a local one by its
    sha256; a remote one by its storage's tag and size. `name` and `revision` are left out: they only say where the
    content is to be found. Of a `pinned` entry it is what was there at that moment.
    """
    if spec.origin is not None:
        return spec.origin
    what: dict[str, Any] = {"architecture": spec.architecture, "pretrained": spec.pretrained}
    if spec.architecture.startswith(HUB):
        config, weights = _repository(spec)
        what |= {"architecture": HUB, "config": config.content, "weights": weights.content}
    elif spec.architecture.startswith(FOLDER):
        what |= {"architecture": FOLDER, "files": _folder_content(spec)}
    elif spec.pretrained:
        what["weights"] = _tagged(spec).content
    if spec.config:
        what["config"] = content(spec.config)
    if spec.weights:
        what["weights"] = content(spec.weights)
    if spec.like:
        what["like"] = {key: value for key, value in _like(spec).items() if key != "hf_hub"}
    if spec.preprocess:
        what["preprocess"] = spec.preprocess
    if vocabulary := _vocabulary(spec):
        what["tokenizer"] = vocabulary
    return what


def pinned(spec: Backbone) -> Backbone:
    """Return an entry that means what is there now, so that all machines of a run load what its plan saw.

    A campaign makes three addresses of it for each dataset: of files in a bucket each would ask anew.
    """
    commit = spec.revision
    if spec.architecture.startswith(HUB):
        commit = _repository(spec)[0].commit
    elif spec.pretrained:
        commit = _tagged(spec).commit
    return spec.pinned(commit, origin(spec.model_copy(update={"revision": commit})))


def locate(spec: Backbone) -> Source:
    """Return the files of an entry; what is remote is fetched, once per node.

    Raises:
        ConfigError: something is missing, cannot be fetched, or says not how images are to be prepared.
    """
    pixels = _pixels(spec)
    gelu = bool(_like(spec).get("quick_gelu")) if spec.like else False
    if spec.architecture.startswith(HUB):
        config, weights = _repository(spec)
        folder = hub.fetch(config, spec.revision).parent
        path = hub.fetch(weights, spec.revision)
        _check_pixels(spec, folder, pixels)
        file = f"{weights.repo}/{weights.file}"
        return Source(f"{FOLDER}{folder}", path, pixels, gelu, file, weights.commit)
    if spec.architecture.startswith(FOLDER):
        folder = _folder(spec)
        path = _weights_in(folder, spec.name)
        _check_pixels(spec, folder, pixels)
        return Source(f"{FOLDER}{folder}", path, pixels, gelu, str(path))
    if spec.pretrained:
        weights = _tagged(spec)
        gelu = bool(_tag(spec.architecture, spec.pretrained, spec.name).get("quick_gelu"))
        file = f"{weights.repo}/{weights.file}"
        path = hub.fetch(weights, spec.revision)
        return Source(spec.architecture, path, pixels, gelu, file, weights.commit)
    return Source(spec.architecture, fetch(spec.weights), pixels, gelu, spec.weights)


def local_path(place: str) -> Path:
    """Return a file of ours: absolute, or relative to `configs/`."""
    place = os.path.expanduser(place)
    return Path(place) if os.path.isabs(place) else CONFIGS / place


def content(place: str) -> str:
    """Return the sha256 of a local file, or what the storage says of a remote one (etag, size) without fetching it."""
    import fsspec

    if "://" not in place:
        path = local_path(place)
        if not path.is_file():
            raise ConfigError(f"{place}: there is no file {path}")
        return digest(path)
    # what is there now, not what was listed
    fs, path = fsspec.core.url_to_fs(place, use_listings_cache=False)
    fs = patient(fs)
    try:
        info = fs.info(path)
    except FileNotFoundError as error:
        raise ConfigError(f"weights {place}: there is no such object") from error
    return f"{info.get('ETag', info.get('mtime'))}-{info['size']}"


def fetch(place: str) -> Path:
    """Return a checkpoint or model config as a local file of that name; a remote one is fetched once per node."""
    if "://" not in place:
        path = local_path(place)
        if not path.is_file():
            raise ConfigError(f"{place}: there is no file {path}")
        return path
    import fsspec
    from filelock import FileLock

    key = hashlib.sha256(f"{place} {content(place)}".encode()).hexdigest()[:16]
    target = cache() / "weights" / key / place.rpartition("/")[2]
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.exists():
            fs, path = fsspec.core.url_to_fs(place)
            fs = patient(fs)
            part = Path(f"{target}.part")
            fs.get_file(path, str(part))
            part.replace(target)
    return target


def _repository(spec: Backbone) -> tuple[hub.HubFile, hub.HubFile]:
    """The config and the checkpoint of a repository, of one commit."""
    repo = spec.architecture.removeprefix(HUB)
    config = hub.find(repo, (CONFIG,), spec.revision)
    return config, hub.find(repo, HUB_WEIGHTS, config.commit)


def _tagged(spec: Backbone) -> hub.HubFile:
    place = _tag(spec.architecture, spec.pretrained, spec.name)["hf_hub"]
    repo, _, file = place.rpartition("/")
    names = HUB_WEIGHTS
    if file:
        stem, dot, ending = file.rpartition(".")
        safe = (f"{stem}.safetensors",) if dot and ending in ("bin", "pth") else ()
        names = (*safe, file)
    return hub.find(repo, names, spec.revision)


def _like(spec: Backbone) -> dict:
    """The tag that a checkpoint of one's own resembles: of its architecture, or `<architecture>/<tag>`."""
    architecture, _, tag = spec.like.rpartition("/")
    return _tag(architecture or spec.architecture, tag, spec.name)


def _tag(architecture: str, tag: str, name: str) -> dict:
    """open_clip's entry of a tag."""
    table = _tags(metadata.version("open_clip_torch"))
    tags = table.get(architecture.replace("/", "-"), {})
    entry = tags.get(tag.lower().replace("-", "_"))
    if entry:
        return entry
    if not tags:
        raise ConfigError(
            f"backbone {name}: open_clip has no architecture {architecture!r} with tags"
        )
    raise ConfigError(f"backbone {name}: {architecture} has no tag {tag!r}; it has {list(tags)}")


@functools.lru_cache(maxsize=1)
def _tags(version: str) -> dict[str, dict[str, dict]]:
    """open_clip's catalogue, by architecture and tag; kept on disk, for importing open_clip takes long."""
    kept = cache() / f"open_clip-{version}.json"
    try:
        return json.loads(kept.read_text())
    except (OSError, ValueError):
        pass
    import open_clip

    table: dict[str, dict[str, dict]] = {}
    for architecture, tag in open_clip.list_pretrained():
        entry = dict(open_clip.get_pretrained_cfg(architecture, tag))
        table.setdefault(architecture, {})[tag] = entry
    remember(kept, json.dumps(table))
    return json.loads(json.dumps(table))


def _pixels(spec: Backbone) -> dict[str, Any]:
    """How images are prepared, as far as the entry or its tag says; without the size, which is the model's own."""
    if spec.preprocess:
        return spec.preprocess.model_dump(exclude={"size"})
    if spec.like:
        entry = _like(spec)
    elif spec.pretrained:
        entry = _tag(spec.architecture, spec.pretrained, spec.name)
    else:
        entry = {}
    return {key: entry[key] for key in PIXELS if entry.get(key) is not None}


def _check_pixels(spec: Backbone, folder: Path, pixels: dict) -> None:
    """`ConfigError` where neither the entry nor the folder says how images are prepared."""
    told = _read_json(folder / CONFIG).get("preprocess_cfg") or {}
    if not pixels and not (told.get("mean") and told.get("std")):
        raise ConfigError(
            f"backbone {spec.name}: {folder / CONFIG} has no `preprocess_cfg` with mean and std; give the entry "
            "`preprocess:` or `like: <architecture>/<tag>`"
        )


def _folder(spec: Backbone) -> Path:
    folder = local_path(spec.architecture.removeprefix(FOLDER))
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"backbone {spec.name}: there is no {CONFIG} in {folder}")
    return folder


def _weights_in(folder: Path, name: str) -> Path:
    """The checkpoint that open_clip takes in a local directory."""
    for file in FOLDER_WEIGHTS:
        if (folder / file).is_file():
            return folder / file
    others = [
        path
        for ending in ("*.safetensors", "*.bin", "*.pth")
        for path in sorted(folder.glob(ending))
    ]
    if len(others) == 1:
        return others[0]
    what = "several checkpoints" if others else "no checkpoint"
    raise ConfigError(
        f"backbone {name}: {folder} holds {what}; name the one to take {FOLDER_WEIGHTS[0]} (or …pytorch_model.bin)"
    )


def _folder_content(spec: Backbone) -> dict[str, str]:
    """The digests of a folder's checkpoint and of its small files: config and tokenizer."""
    folder = _folder(spec)
    files = {_weights_in(folder, spec.name)}
    for ending in ("*.json", "*.txt", "*.model"):
        files |= set(folder.glob(ending))
    return {path.name: digest(path) for path in sorted(files)}


def _vocabulary(spec: Backbone) -> str:
    """The content of the tokenizer's file, where a repository of its own on the hub holds it; else nothing."""
    if spec.architecture.startswith(FOLDER):
        return ""
    name = model_config(spec).get("text_cfg", {}).get("hf_tokenizer_name")
    return hub.find(name, VOCABULARY).content if name else ""


def model_config(spec: Backbone) -> dict:
    """Return open_clip's model config of an entry, read from its JSON; empty where open_clip has none."""
    if spec.architecture.startswith(HUB):
        path = hub.fetch(_repository(spec)[0], spec.revision)
    elif spec.architecture.startswith(FOLDER):
        path = _folder(spec) / CONFIG
    elif spec.config:
        path = fetch(spec.config)
    else:
        (package,) = util.find_spec("open_clip").submodule_search_locations
        name = spec.architecture.replace("/", "-")
        path = Path(package) / "model_configs" / f"{name}.json"
    values = _read_json(path)
    return values.get("model_cfg", values)


def _read_json(path: Path) -> dict:
    try:
        values = json.loads(path.read_text())
    except OSError:
        return {}
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    return values if isinstance(values, dict) else {}
