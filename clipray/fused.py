"""A fused model to use: `clipray.load(uri)` gives an object that labels images and says why.

model = clipray.load("workspace/fit/models/signs-0123456789abcdef")      or s3://…, or models:/signs@champion
model.predict(["a.png", "s3://bucket/b.jpg", some_bytes, a_pil_image, an_array])
model.explain("a.png")
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps

from clipray import backbones, encoding
from clipray.artefacts import fused_model
from clipray.artefacts.fused_model import Folder
from clipray.errors import ClipRayError
from clipray.fusion import Fusion, best
from clipray.sources import image_id, storage

BLOCK = 256  # images at a time, as many as embedding takes
REGISTRY = "models:/"
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")
COLUMNS = ("label", "class", "probability", "top5", "backbones_used", "gflops", "error")


class FusedModel(Fusion):
    """A fused model with its encoders, which are loaded when they are first needed.

    Args:
        folder: the model. device: "cpu" or "cuda".
    """

    def __init__(self, folder: Folder, device: str = "cpu"):
        super().__init__(folder)
        self.device = device
        self._encoders: dict[int, backbones.Encoder] = {}

    def __repr__(self) -> str:
        fuser, head = self.about["fuser"]["name"], self.about["head"]["name"]
        return (
            f"<FusedModel {self.name}: {fuser} of {len(self.backbones)} backbones on {head}, "
            f"{len(self.classnames)} classes>"
        )

    def predict(self, images: Any, batch_size: int = 64) -> pd.DataFrame:
        """Label images.

        Args:
            images: one or several of: a path or URI, encoded bytes, a PIL image, a uint8 array H×W, H×W×3 or H×W×4.
            batch_size: images at a time on the device; changes nothing but the speed.

        Returns:
            A row an image, in order: `image_id` (hash of its bytes), `path`, `label`, `class` (its number),
            `probability`, `top5`, `backbones_used`, `gflops`, `error` (why there is no label, or None).

        Raises:
            ConfigError: the fuser labels whole sets only, or a backbone's weights are other ones now.
        """
        self.refuse_transductive()
        every = list(_listed(images))
        rows = []
        for start in range(0, len(every), BLOCK):
            rows += self._block(every[start : start + BLOCK], batch_size)
        found = pd.DataFrame(rows, columns=["image_id", "path", *COLUMNS])
        return found.astype({"class": "Int64"})  # whole numbers, where some are missing too

    def explain(self, image: Any) -> pd.DataFrame:
        """Say how an image gets its label.

        Args:
            image: as `predict` takes one.

        Returns:
            A row for each backbone, one for the fused answer (`fused`), and one for what the average of the backbones
            says without any label (`without labels`), with `label`, `probability`; and for backbones `weight` (where
            the fuser has one for all images), `influence` (by how much the fused probability of the fused label falls
            where this backbone says nothing), `zero_shot_label` and `zero_shot_probability` (before the head learned).

        Raises:
            ClipRayError: it is no image.
        """
        self.refuse_transductive()
        every = list(range(len(self.backbones)))
        embeddings, errors = self._embedded([_data(one) for one in _listed(image)], every, 1)
        if len(errors) != 1 or errors[0]:
            raise ClipRayError(f"one image is explained at a time: {errors or 'none was given'}")
        logits_1MC = self.logits(embeddings)
        log_p = self.fuse(logits_1MC, embeddings)
        fused = best(log_p, self.classnames)[0]
        zero_1MC = self.logits(embeddings, labelled=False)
        plain_1C = torch.log_softmax(torch.log_softmax(zero_1MC, -1).mean(1), -1)
        weights = self.state.tensors.get("w_M")
        rows = []
        for m, name in enumerate(self.backbones):
            own = best(torch.log_softmax(logits_1MC[:, m], -1), self.classnames)[0]
            before = best(torch.log_softmax(zero_1MC[:, m], -1), self.classnames)[0]
            silent = logits_1MC.clone()
            silent[:, m] = 0.0
            left = float(self.fuse(silent, embeddings)[0, fused["class"]].exp())
            rows.append(
                {
                    "who": name,
                    "label": own["label"],
                    "probability": own["probability"],
                    "weight": None if weights is None else float(weights[m]),
                    "influence": fused["probability"] - left,
                    "zero_shot_label": before["label"],
                    "zero_shot_probability": before["probability"],
                }
            )
        both = {"fused": fused, "without labels": best(plain_1C, self.classnames)[0]}
        for who, one in both.items():
            rows.append({"who": who, "label": one["label"], "probability": one["probability"]})
        return pd.DataFrame(rows)

    def encoder(self, number: int) -> backbones.Encoder:
        """A backbone, loaded once."""
        if number not in self._encoders:
            precision = self.about["precision"]
            self._encoders[number] = backbones.load(self.specs[number], precision, self.device)
        return self._encoders[number]

    def _block(self, every: list[Any], batch_size: int) -> list[dict[str, Any]]:
        data = [_data(one) for one in every]
        embeddings, errors = self._embedded(data, self.used, batch_size)
        good = [number for number, error in enumerate(errors) if error is None]
        kept = [None if e_ND is None else e_ND[good] for e_ND in embeddings]
        answers = iter(self.answers(kept) if good else ())
        rows = []
        for one, own, error in zip(every, data, errors, strict=True):
            known = isinstance(own, bytes) and not isinstance(one, np.ndarray | Image.Image)
            row = {
                "image_id": image_id(own) if known else None,
                "path": str(one) if isinstance(one, str | Path) else None,
                "error": error,
            }
            rows.append(row | (next(answers) if error is None else {}))
        return rows

    def _embedded(
        self, data: list[bytes | Exception], numbers: list[int], batch_size: int
    ) -> tuple[list[np.ndarray | None], list[str | None]]:
        """Embeddings of N images by some backbones (rows with an error hold zeros), and each image's error."""
        groups = sorted({self.group(m) for m in numbers})
        crops, errors = encoding.cropped(data, [None] * len(data), groups, self.about["max_pixels"])
        good = np.array([number for number, error in enumerate(errors) if error is None], int)
        embeddings: list[np.ndarray | None] = [None] * len(self.backbones)
        for m in numbers:
            group = self.group(m)
            crops_NHWC = np.frombuffer(b"".join(crops[group]), np.uint8).reshape(-1, *group.size, 3)
            values_ND, own = encoding.encode(self.encoder(m), crops_NHWC, batch_size)
            kept_ND, large = encoding.stored(values_ND, self.about["precision"])
            embeddings[m] = np.zeros((len(data), self.cards[m]["dim"]), kept_ND.dtype)
            embeddings[m][good] = kept_ND
            for number, fails, beyond in zip(good.tolist(), own, large, strict=True):
                errors[number] = errors[number] or fails or beyond
        return embeddings, errors


def _listed(given: Any) -> Iterator[Any]:
    """Single images are a list of one."""
    single = isinstance(given, str | Path | bytes | bytearray | Image.Image)
    if single or (isinstance(given, np.ndarray) and given.ndim in (2, 3) and given.dtype != object):
        yield given
    else:
        yield from given


def _data(one: Any) -> bytes | Exception:
    """An image's encoded bytes, or why there are none."""
    if isinstance(one, bytes | bytearray | memoryview):
        return bytes(one)
    if isinstance(one, str | Path):
        try:
            return _read(str(one))
        except ClipRayError as error:
            return error
    if isinstance(one, Image.Image):
        return _encoded(one)
    array = np.asarray(one)
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not fits or not array.size:
        return ValueError(
            f"an array of {array.dtype}, shape {array.shape}, is no image: uint8, H×W, H×W×3 or H×W×4"
        )
    return _encoded(Image.fromarray(array))


def _read(place: str) -> bytes | Exception:
    """A file's bytes, or why it cannot be read, with its name."""
    found = next(iter(storage.read_files([place])))
    if isinstance(found, bytes):
        return found
    why = str(found) if getattr(found, "errno", None) is None else type(found).__name__
    return OSError(f"cannot be read: {storage.shown(place)} ({why})")


def _encoded(image: Image.Image) -> bytes | Exception:
    """A decoded image as bytes without loss, so that it passes through the same rules as any file."""
    sink = io.BytesIO()
    try:
        upright = ImageOps.exif_transpose(image)
        upright.save(sink, "PNG" if upright.mode in PNG_MODES else "TIFF")
    except (OSError, ValueError, KeyError, SyntaxError, AttributeError) as error:
        return ValueError(f"not an image that can be used: {encoding.words(error)}")
    return sink.getvalue()


def load(uri: str, device: str = "cpu", tracking_uri: str = "") -> FusedModel:
    """Load a fused model.

    Args:
        uri: a folder, `s3://…`, or `models:/<name>@<alias>` or `models:/<name>/<version>` of MLflow's registry.
        device: "cpu" or "cuda".
        tracking_uri: MLflow's server or database, for `models:/`; by default as MLflow itself finds it.

    Raises:
        ConfigError: there is none, or it is not whole; the message says what to do.
    """
    return FusedModel(opened(uri, tracking_uri), device)


def opened(uri: str, tracking_uri: str = "") -> Folder:
    """A fused model's folder, from wherever it lies; raises as `load` does."""
    if uri.startswith(REGISTRY):
        from clipray.tracking import models

        folder = models.download(uri, tracking_uri)
    else:
        folder = fused_model.fetched(uri)
    return fused_model.read(fused_model.inside(folder))


class _Served:
    """What MLflow calls: a table with a column of encoded images in, a table of labels out."""

    def __init__(self, model: FusedModel):
        self.model = model

    def predict(self, table: Any, params: dict | None = None) -> pd.DataFrame:
        """Label the images of the column `image` (encoded bytes)."""
        column = table["image"] if isinstance(table, pd.DataFrame) else table
        found = self.model.predict(list(column))[["image_id", *COLUMNS]].astype(object)
        return found.where(found.notna(), None)  # JSON has no NaN


def _load_pyfunc(path: str) -> _Served:
    """MLflow's door to a model: see `mlflow.pyfunc`'s `loader_module`."""
    return _Served(FusedModel(fused_model.read(path)))
