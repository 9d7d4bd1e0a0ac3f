"""The only door to open_clip: a backbone's entry → its encoders, preprocessing, logit scale and bias.

Hub tags, local checkpoints and `s3://` checkpoints pass through the same `load`. A checkpoint of ours may hold only
the rows of the token embedding that training has seen (`token_embedding.rows`); the other rows are zero.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipray.config import CONFIGS, Backbone
from clipray.errors import ConfigError
from clipray.images import Preprocess

if TYPE_CHECKING:
    import torch

ROWS = "token_embedding.rows"
TABLE = "token_embedding.weight"


def local_path(place: str) -> Path:
    """A file of ours: absolute, or relative to `configs/`."""
    return Path(place) if os.path.isabs(place) else CONFIGS / place


def origin(spec: Backbone) -> dict:
    """The WHAT of a backbone: its entry, with its name replaced by the content of the files that it names."""
    what: dict[str, Any] = {"architecture": spec.architecture, "pretrained": spec.pretrained}
    if spec.config:
        what["config"] = _digest(spec.config)
    if spec.weights:
        what["weights"] = _digest(spec.weights)
    return what


def _digest(place: str) -> str:
    """sha256 of a local file; what the storage says of a remote one (etag, size), without fetching it."""
    import fsspec

    if "://" in place:
        fs, path = fsspec.core.url_to_fs(
            place, use_listings_cache=False
        )  # what is there now, not what was listed
        try:
            info = fs.info(path)
        except FileNotFoundError as error:
            raise ConfigError(f"weights {place}: there is no such object") from error
        return f"{info.get('ETag', info.get('mtime'))}-{info['size']}"
    path = local_path(place)
    if not path.is_file():
        raise ConfigError(f"{place}: there is no file {path}")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(place: str) -> Path:
    """A checkpoint or model config as a local file of that name; a remote one is fetched once per node (file lock)."""
    if "://" not in place:
        return local_path(place)
    import fsspec
    from filelock import FileLock

    cache = Path(os.environ.get("CLIPRAY_CACHE", Path.home() / ".cache" / "clipray")) / "weights"
    target = (
        cache
        / hashlib.sha256(f"{place} {_digest(place)}".encode()).hexdigest()[:16]
        / place.rpartition("/")[2]
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.exists():
            fs, path = fsspec.core.url_to_fs(place)
            part = Path(f"{target}.part")
            fs.get_file(path, str(part))
            part.replace(target)
    return target


def create(spec: Backbone, precision: str = "fp32", device: str = "cpu") -> "torch.nn.Module":
    """The model of an entry, with its weights, in evaluation mode.

    Raises:
        ConfigError: unknown architecture or tag, or weights that are not there or do not fit.
    """
    import open_clip

    if spec.config:
        open_clip.add_model_config(fetch(spec.config))
    if open_clip.get_model_config(spec.architecture) is None:
        raise ConfigError(
            f"backbone {spec.name}: open_clip has no architecture {spec.architecture!r}"
        )
    tags = open_clip.list_pretrained_tags_by_model(spec.architecture)
    if (
        spec.pretrained
        and spec.pretrained not in tags
        and not spec.architecture.startswith("hf-hub:")
    ):
        raise ConfigError(
            f"backbone {spec.name}: {spec.architecture} has no tag {spec.pretrained!r}; it has {tags}"
        )
    path = fetch(spec.weights) if spec.weights else None
    sparse = path is not None and path.suffix == ".safetensors" and _is_sparse(path)
    pretrained = spec.pretrained or (None if sparse else str(path))
    try:
        model = open_clip.create_model(
            spec.architecture,
            pretrained=pretrained,
            precision=precision,
            device=device,
            pretrained_text=False,
        )
        if sparse:
            model.load_state_dict(_dense(path, model.state_dict()[TABLE].shape))
    except (RuntimeError, OSError) as error:
        raise ConfigError(f"backbone {spec.name}: {error}") from error
    return model.eval().requires_grad_(False)


def untrained(config: str) -> "torch.nn.Module":
    """A model of an open_clip model config of ours, to be trained; its token table starts at zero.

    A row that training never sees therefore stays zero, says nothing, and is not stored (`save`).
    """
    import open_clip

    path = local_path(config)
    open_clip.add_model_config(path)
    model = open_clip.create_model(path.stem, pretrained_image=False, pretrained_text=False)
    model.token_embedding.weight.data.zero_()
    return model


def tokenizer(config: str):
    """The tokenizer of an open_clip model config of ours."""
    import open_clip

    open_clip.add_model_config(local_path(config))
    return open_clip.get_tokenizer(local_path(config).stem)


def image_size(config: str) -> int:
    """Side of the square input of an open_clip model config of ours, in pixels; needs no open_clip."""
    return json.loads(local_path(config).read_text())["vision_cfg"]["image_size"]


def _is_sparse(path: Path) -> bool:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return ROWS in file.keys()  # noqa: SIM118 - safe_open is no mapping


def _dense(path: Path, shape: tuple) -> dict:
    from safetensors.torch import load_file

    state = load_file(path)
    rows, seen = state.pop(ROWS).long(), state[TABLE]
    state[TABLE] = seen.new_zeros(shape).index_copy(0, rows, seen)
    return state


def save(model: "torch.nn.Module", path: Path) -> None:
    """Write a model as fp16 safetensors; all-zero rows of the token embedding are left out."""
    import torch
    from safetensors.torch import save_file

    state = {
        key: value.detach()
        .cpu()
        .to(torch.float16 if value.is_floating_point() else value.dtype)
        .contiguous()
        for key, value in model.state_dict().items()
    }
    rows = state[TABLE].any(dim=1).nonzero().squeeze(1)
    state[ROWS], state[TABLE] = rows.to(torch.int32), state[TABLE][rows].contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, metadata={"format": "pt"})


@dataclass(frozen=True)
class Encoder:
    """A loaded backbone."""

    spec: Backbone
    model: "torch.nn.Module"
    device: str
    precision: str

    @cached_property
    def preprocess(self) -> Preprocess:
        """The preprocess group: how an image becomes this backbone's crop."""
        return group(self.model.visual.preprocess_cfg)

    @cached_property
    def tokenizer(self):
        import open_clip

        return open_clip.get_tokenizer(self.spec.architecture)

    @property
    def scale(self) -> float:
        """What cosines are multiplied by to become logits: the model's own, not a literal."""
        return float(self.model.logit_scale.detach().float().exp())

    @property
    def bias(self) -> float:
        """What is added to the scaled cosines; 0 for models trained with a softmax loss."""
        bias = getattr(self.model, "logit_bias", None)
        return 0.0 if bias is None else float(bias)

    def images(self, crops_NHWC: np.ndarray, batch_size: int) -> np.ndarray:
        """Image embeddings, not normalised.

        Args:
            crops_NHWC: uint8 crops of this backbone's preprocess group.
            batch_size: images at a time on the device.

        Returns:
            float32 array N×D.
        """
        import torch

        config = self.model.visual.preprocess_cfg
        mean, std = (
            torch.tensor(config[key], device=self.device).view(1, 3, 1, 1)
            for key in ("mean", "std")
        )
        dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[
            self.precision
        ]
        parts = []
        with torch.inference_mode():
            for start in range(0, len(crops_NHWC), batch_size):
                crops = torch.from_numpy(crops_NHWC[start : start + batch_size].copy()).to(
                    self.device
                )
                pixels = (crops.permute(0, 3, 1, 2).float() / 255 - mean) / std
                parts.append(self.model.encode_image(pixels.to(dtype)).float().cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)

    def texts(self, texts: list[str], batch_size: int = 256) -> "torch.Tensor":
        """Normalised text embeddings, float32 tensor n×D; texts of the same tokens have the same to the last bit."""
        import torch

        distinct, number = self.tokenizer(texts).unique(dim=0, return_inverse=True)
        with torch.inference_mode():
            parts = [
                self.model.encode_text(tokens.to(self.device)).float().cpu()
                for tokens in distinct.split(batch_size)
            ]
        return torch.nn.functional.normalize(torch.cat(parts), dim=-1)[number]

    def classifier(self, names: list[str], templates: list[str]) -> np.ndarray:
        """Zero-shot class weights t_c = normalise(mean over templates of normalised text embeddings).

        Args:
            names: C class names.
            templates: T prompts with `{c}` (or `{}`) where the name goes.

        Returns:
            float32 array C×D, rows of unit length.
        """
        import torch

        prompts = [
            template.replace("{c}", name).replace("{}", name)
            for name in names
            for template in templates
        ]
        mean_CD = self.texts(prompts).view(len(names), len(templates), -1).mean(dim=1)
        return torch.nn.functional.normalize(mean_CD, dim=-1).numpy()

    @cached_property
    def dim(self) -> int:
        """D, the dimension of the shared embedding space."""
        return self.classifier(["a"], ["{c}"]).shape[1]


def group(config: dict) -> Preprocess:
    """The preprocess group of an open_clip preprocess config."""
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    return Preprocess(
        (height, width), config["interpolation"], config["resize_mode"], config["fill_color"]
    )


def load(spec: Backbone, precision: str = "fp32", device: str = "cpu") -> Encoder:
    """Load a backbone.

    Args:
        spec: the catalogue's entry.
        precision: "fp32", "fp16" or "bf16"; open_clip keeps LayerNorms in fp32.
        device: "cpu" or "cuda".

    Raises:
        ConfigError: see `create`.
    """
    return Encoder(spec, create(spec, precision, device), device, precision)
