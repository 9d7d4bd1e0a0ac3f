"""Image bytes → crops → embeddings: what embedding, predicting and notebooks have in common, image by image.

What goes wrong with one image is that image's error, and costs no other one.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from clipray import images

if TYPE_CHECKING:
    from clipray.backbones import Encoder

Key = TypeVar("Key", str, int)
NOT_FINITE = "the embedding is not finite"
ALL_ZERO = "the embedding is all zero"
TOO_LARGE = "the embedding is too large for float16: --set precision=fp32 keeps it"
FAILS = "the model fails on it: "


def cropped(
    data: Iterable[bytes | Exception | None],
    known: Sequence[str | None],
    groups: Sequence[images.Preprocess],
    max_pixels: int,
) -> tuple[dict[images.Preprocess, list[bytes]], list[str | None]]:
    """Decode each image once, and crop it once for every preprocess group.

    Args:
        data: each image's bytes, or why there are none. known: each image's error, where it has one already.
        max_pixels: larger images are refused before they are decoded.

    Returns:
        per group the uint8 crops of the readable images as bytes, and each image's error or None.
    """
    crops: dict[images.Preprocess, list[bytes]] = {group: [] for group in groups}
    errors: list[str | None] = []
    for one, error in zip(data, known, strict=True):
        try:
            if error or not isinstance(one, bytes):
                raise images.ImageError(error or str(one))
            image = images.decode(one, max_pixels)
            own = [images.crop(image, group) for group in groups]
        except images.ImageError as problem:
            errors.append(str(problem))
            continue
        errors.append(None)
        for group, crop in zip(groups, own, strict=True):
            crops[group].append(crop.tobytes())
    return crops, errors


def encode(
    encoder: "Encoder", crops_NHWC: np.ndarray, batch_size: int
) -> tuple[np.ndarray, list[str | None]]:
    """Embed a shard and return each image's error; go image by image where the shard as a whole raises.

    Returns:
        N×D embeddings (rows with an error hold zeros), and N errors or Nones.
    """
    try:
        return encoder.images(crops_NHWC, batch_size), [None] * len(crops_NHWC)
    except Exception:  # whatever a model raises on one image must not cost the others
        embeddings_ND = np.zeros((len(crops_NHWC), encoder.dim), np.float32)
        errors: list[str | None] = []
        for row, crop_HWC in enumerate(crops_NHWC):
            try:
                embeddings_ND[row] = encoder.images(crop_HWC[None], 1)[0]
                errors.append(None)
            except Exception as error:
                errors.append(f"{FAILS}{words(error)}")
        return embeddings_ND, errors


def words(error: Exception) -> str:
    """Write an error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def stored(embeddings_ND: np.ndarray, precision: str) -> tuple[np.ndarray, list[str | None]]:
    """Convert embeddings to what is kept, and say why a row cannot be: float32, or float16 for half precisions.

    An embedding counts as finite if it is so as it is kept: 70000 is not, in float16. Such a row holds zeros.
    """
    with np.errstate(over="ignore"):
        values = embeddings_ND.astype(np.float32 if precision == "fp32" else np.float16)
    kept = np.isfinite(values).all(axis=1)
    given = np.isfinite(embeddings_ND).all(axis=1)
    errors = np.full(len(values), None, object)
    errors[~kept] = TOO_LARGE
    errors[~given] = NOT_FINITE
    return np.where(kept[:, None], values, values.dtype.type(0)), errors.tolist()


def largest_first(groups: Mapping[Key, images.Preprocess]) -> list[Key]:
    """Put backbones in the order in which a chain of them passes the fewest bytes on: large crops are dropped first.

    Args:
        groups: preprocess group by the backbone's name or number.

    >>> largest_first({"a": images.Preprocess((224, 224)), "b": images.Preprocess((448, 448))})
    ['b', 'a']
    """
    return sorted(groups, key=lambda key: (-math.prod(groups[key].size), groups[key], key))


def crop_bytes(groups: Iterable[images.Preprocess]) -> int:
    """Count the bytes of an image's crops, one of each group.

    >>> crop_bytes({images.Preprocess((224, 224)), images.Preprocess((448, 448))})
    752640
    """
    return sum(3 * math.prod(group.size) for group in set(groups))


def column(group: images.Preprocess) -> str:
    """Return the name of the column of a group's crops."""
    return "crops " + " ".join(str(part) for part in group)
