"""The only door to open_clip: a backbone's entry → its encoders, preprocessing, logit scale and bias.

`doors` tells which files an entry means and what they hold, `hub` and `digests` know content without reading it twice,
`loading` builds the model. Tags, repositories of the hub, local directories and checkpoints (local or `s3://`) end in
the same `load`. A checkpoint of ours may hold only the rows of the token embedding that training has seen
(`token_embedding.rows`); the other rows are zero.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from clipray import images
from clipray.backbones import loading
from clipray.backbones.doors import Source, fetch, local_path, locate, origin, pinned
from clipray.backbones.hub import first_line
from clipray.backbones.loading import TABLE, facts, image_size, save, tokenizer, untrained
from clipray.config import Backbone
from clipray.errors import ConfigError
from clipray.images import Preprocess

if TYPE_CHECKING:
    import torch

__all__ = [
    "TABLE",
    "Encoder",
    "create",
    "facts",
    "fetch",
    "image_size",
    "load",
    "local_path",
    "origin",
    "pinned",
    "save",
    "tokenizer",
    "untrained",
]


def create(spec: Backbone, precision: str = "fp32", device: str = "cpu") -> "torch.nn.Module":
    """Build the model of an entry, with its weights, in evaluation mode.

    Raises:
        ConfigError: unknown architecture or tag, or weights that are not there or do not fit.
    """
    return loading.create(spec, locate(spec), precision, device)


@dataclass(frozen=True)
class Encoder:
    """A loaded backbone."""

    spec: Backbone
    model: "torch.nn.Module"
    device: str
    precision: str
    source: Source | None = None
    compiled: int = (
        0  # images of the one batch size that the image tower is compiled for; 0: it is not
    )

    @cached_property
    def preprocess(self) -> Preprocess:
        """The preprocess group: how an image becomes this backbone's crop."""
        return images.preprocess(self.model.visual.preprocess_cfg)

    @cached_property
    def tokenizer(self):
        """The tokenizer of the text tower."""
        return loading.tokenizer_of(self.spec, self.source)

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

        A GPU is never waited for between batches: they are copied to it from pinned memory while it computes, and the
        embeddings come back in one piece.

        Args:
            crops_NHWC: uint8 crops of this backbone's preprocess group.
            batch_size: images at a time on the device; a compiled tower has its own.

        Returns:
            float32 array N×D.
        """
        import torch

        batch_size = self.compiled or batch_size

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
                crops = self._staged(crops_NHWC[start : start + batch_size])
                pixels = (crops.permute(0, 3, 1, 2).float() / 255 - mean) / std
                parts.append(self._tower(pixels.to(dtype)).float())
            if not parts:
                return np.zeros((0, self.dim), np.float32)
            return torch.cat(parts)[: len(crops_NHWC)].cpu().numpy()

    @cached_property
    def _tower(self) -> Callable[["torch.Tensor"], "torch.Tensor"]:
        """What makes image embeddings of pixels."""
        import torch

        own = self.model.encode_image
        return torch.compile(own, dynamic=False) if self.compiled else own

    def _staged(self, crops_BHWC: np.ndarray) -> "torch.Tensor":
        """Copy crops to the device, to a GPU without waiting for it; a batch for a compiled tower is filled up."""
        import torch

        pinned = self.device.startswith("cuda")
        shape = (max(len(crops_BHWC), self.compiled), *crops_BHWC.shape[1:])
        staged = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
        staged.numpy()[: len(crops_BHWC)] = crops_BHWC
        staged[len(crops_BHWC) :] = 0
        return staged.to(self.device, non_blocking=True)

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


def load(
    spec: Backbone, precision: str = "fp32", device: str = "cpu", compiled: int = 0
) -> Encoder:
    """Load a backbone.

    Args:
        spec: the catalogue's entry.
        precision: "fp32", "fp16" or "bf16"; open_clip keeps LayerNorms in fp32.
        device: "cpu" or "cuda".
        compiled: images of the batches that the image tower is compiled for; 0: it is not compiled.

    Raises:
        ConfigError: see `create`; or the image tower cannot be compiled.
    """
    source = locate(spec)
    model = loading.create(spec, source, precision, device)
    made = Encoder(spec, model, device, precision, source, compiled)
    if compiled:
        try:
            made.images(np.zeros((1, *made.preprocess.size, 3), np.uint8), compiled)
        except Exception as error:  # of torch, triton, or the compiler that they call
            raise ConfigError(
                f"backbone {spec.name}: torch.compile fails on it ({first_line(error)}); "
                "leave out `compute.compile`, or see that its machines have a C compiler"
            ) from error
    return made
