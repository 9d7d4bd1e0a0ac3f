"""Bytes → an RGB image or an error, and the crop that a preprocess group wants; nothing but Pillow and numpy.

What the bytes mean:

- the content decides, never a file's name, among the raster formats of `FORMATS` (no EPS: it would run Ghostscript);
- EXIF orientation is applied; of an animation the first frame counts;
- transparent pixels (alpha, or a transparent colour or palette entry) lie on white;
- CMYK and YCCK become RGB as Pillow does it; colour profiles are ignored, as open_clip ignores them;
- 16-bit grey is scaled to 8 bits (65535 → 255), not clipped; 16-bit colour keeps its high byte; 32-bit integers count
  as 16-bit ones and float pixels as 0..1, and an image beyond that range is an error: its scale would be a guess;
- more than `max_pixels` pixels are refused by what the header says, before anything is decoded.
"""

import io
import math
import struct
import warnings
import zlib
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

FORMATS = (
    *(
        "JPEG",
        "PNG",
        "WEBP",
        "GIF",
        "TIFF",
        "BMP",
        "DIB",
        "PPM",
        "AVIF",
        "JPEG2000",
        "ICO",
        "TGA",
        "PCX",
        "SGI",
    ),
    *("QOI", "DDS", "ICNS"),
)
MAX_PIXELS = 100_000_000
PILLOW_LIMIT = 178_956_970  # Pillow itself refuses more, by a global that is not ours to change
RESIZED_LIMIT = (
    2**24
)  # pixels after a resize; beyond (a strip of 1×10000) only the part under the crop is computed
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_UNDECODABLE = (  # what Pillow raises on damaged files: mostly OSError, the others seen by fuzzing or in its source
    *(
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        zlib.error,
        IndexError,
        KeyError,
        TypeError,
    ),
    *(
        OverflowError,
        ZeroDivisionError,
        NotImplementedError,
        RuntimeError,
        AttributeError,
        Image.DecompressionBombError,
    ),
)


class ImageError(ValueError):
    """Bytes that are no image, or one that cannot be used; the message is a short reason."""


class Preprocess(NamedTuple):
    """A preprocess group: everything open_clip does to pixels before it normalises them.

    Attributes:
        size: (height, width) of the crop.
        interpolation: "bicubic" or "bilinear".
        resize_mode: "shortest" (resize the short side, crop the middle), "longest" (resize the long side, pad) or
            "squash" (resize both).
        fill_color: grey level of the padding of "longest".
    """

    size: tuple[int, int]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: int = 0


def preprocess(settings: dict[str, Any]) -> Preprocess:
    """Return the group of an open_clip `preprocess_cfg`; mean and std belong to the device, not to the group.

    Raises:
        ValueError: a mode that open_clip does not have either.

    >>> preprocess({"size": 224, "mode": "RGB", "mean": [0, 0, 0], "interpolation": "random", "resize_mode": None})
    Preprocess(size=(224, 224), interpolation='bicubic', resize_mode='shortest', fill_color=0)
    """
    size = settings["size"]
    pair = (size[0], size[-1]) if isinstance(size, (list, tuple)) else (size, size)
    interpolation = settings.get("interpolation") or "bicubic"
    interpolation = (
        "bicubic" if interpolation == "random" else interpolation
    )  # open_clip's reading, too
    mode = settings.get("resize_mode") or "shortest"
    if interpolation not in ("bicubic", "bilinear") or mode not in (
        "shortest",
        "longest",
        "squash",
    ):
        raise ValueError(
            f"no such preprocessing: interpolation {interpolation!r}, resize_mode {mode!r}"
        )
    return Preprocess(
        (int(pair[0]), int(pair[1])), interpolation, mode, int(settings.get("fill_color") or 0)
    )


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a file's bytes into an RGB image.

    Raises:
        ImageError: nothing to decode, or not by the rules above.
        ValueError: `max_pixels` is more than Pillow allows.
    """
    if max_pixels > PILLOW_LIMIT:
        raise ValueError(f"max_pixels is at most {PILLOW_LIMIT}, Pillow's own limit")
    if not data:
        raise ImageError("zero bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged EXIF and big images: handled here, no news
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > max_pixels:
                    raise ImageError(f"{image.width}×{image.height} pixels, more than {max_pixels}")
                image.load()
                return _upright(image, _to_rgb(image))
    except ImageError:
        raise
    except Image.UnidentifiedImageError as error:
        raise ImageError("not an image") from error
    except _UNDECODABLE as error:
        raise ImageError(_reason(error)) from error


def crop(image: Image.Image, group: Preprocess) -> np.ndarray:
    """Crop to the uint8 pixels [height, width, 3] that open_clip's own transform has before it normalises.

    Args:
        image: an RGB image, as `decode` gives it.
        group: what to do to it.
    """
    height, width = _resized(image.height, image.width, group)
    method = _method(group)
    if group.resize_mode == "squash":
        return _pixels(_resize(image, (width, height), method))
    if width * height > RESIZED_LIMIT:
        return _pixels(_resize_middle(image, (width, height), group, method))
    image = _resize(image, (width, height), method)
    crop_height, crop_width = group.size
    if crop_width > width or crop_height > height:
        padded = Image.new(
            "RGB", (max(width, crop_width), max(height, crop_height)), (group.fill_color,) * 3
        )
        padded.paste(image, (max(crop_width - width, 0) // 2, max(crop_height - height, 0) // 2))
        image = padded
    left, top = round((image.width - crop_width) / 2), round((image.height - crop_height) / 2)
    return _pixels(image.crop((left, top, left + crop_width, top + crop_height)))


def sample() -> bytes:
    """Make a small encoded image that shows what a model takes: 8×8 pixels of grey, as PNG."""
    sink = io.BytesIO()
    Image.new("RGB", (8, 8), (128, 128, 128)).save(sink, "PNG")
    return sink.getvalue()


def photo() -> bytes:
    """A made-up photo, for those who measure what decoding costs: a JPEG of 500×375 pixels."""
    coarse = np.random.default_rng(0).integers(0, 256, (25, 33, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(sink, "JPEG")
    return sink.getvalue()


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bit(image)).convert("RGB")
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        white = Image.new("RGBA", colours.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, colours).convert("RGB")
    return image.convert("RGB")


def _eight_bit(image: Image.Image) -> np.ndarray:
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    full = 1.0 if image.mode == "F" else 65535.0
    if not (low >= 0 and high <= full):  # also where they are not numbers
        raise ImageError(
            f"pixels from {low:g} to {high:g} in mode {image.mode}: 0 to {full:g} was expected"
        )
    grey = np.rint(values * (255 / full)).astype(np.uint8)
    clear = image.info.get("transparency")
    return np.where(values == clear, np.uint8(255), grey) if isinstance(clear, int) else grey


def _upright(image: Image.Image, pixels: Image.Image) -> Image.Image:
    """Turn pixels as the EXIF orientation says (Pillow has already turned TIFF and says 1)."""
    turn = _TURNS.get(image.getexif().get(0x0112))
    return pixels if turn is None else pixels.transpose(turn)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "truncated" in text or isinstance(error, (EOFError, struct.error)):
        return "truncated"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {PILLOW_LIMIT} pixels"
    return f"cannot be decoded: {text[:80] or type(error).__name__}"


def _method(group: Preprocess) -> Image.Resampling:
    if group.resize_mode == "shortest" and group.size[0] != group.size[1]:
        return Image.Resampling.BICUBIC  # open_clip ignores the setting for oblong crops
    return (
        Image.Resampling.BILINEAR if group.interpolation == "bilinear" else Image.Resampling.BICUBIC
    )


def _resized(height: int, width: int, group: Preprocess) -> tuple[int, int]:
    """Compute (height, width) after the resize, with the roundings of torchvision's and open_clip's own code."""
    crop_height, crop_width = group.size
    if group.resize_mode == "squash":
        return group.size
    if group.resize_mode == "shortest" and crop_height == crop_width:
        long = int(crop_height * max(height, width) / min(height, width))
        return (long, crop_height) if width <= height else (crop_height, long)
    ratios = (height / crop_height, width / crop_width)
    ratio = max(ratios) if group.resize_mode == "longest" else min(ratios)
    return max(1, round(height / ratio)), max(
        1, round(width / ratio)
    )  # open_clip fails where a side rounds to nothing


def _resize(image: Image.Image, size: tuple[int, int], method: Image.Resampling) -> Image.Image:
    return image if image.size == size else image.resize(size, method)


def _resize_middle(
    image: Image.Image, size: tuple[int, int], group: Preprocess, method: Image.Resampling
) -> Image.Image:
    """Resize the middle of the image as if it were resized whole; "shortest" only, whose crop always fits.

    The rows under the crop are taken first, then resized across, then down: left to itself Pillow chooses the order of
    the passes by the sizes, and rounds to 8 bits between them.
    """
    width, height = size
    crop_height, crop_width = group.size
    across, down = image.width / width, image.height / height
    left, top = round((width - crop_width) / 2) * across, round((height - crop_height) / 2) * down
    margin = 2 * max(1.0, down) + 2  # the filter's reach
    first = max(0, math.floor(top - margin))
    last = min(image.height, math.ceil(top + crop_height * down + margin))
    rows = image.crop((0, first, image.width, last))
    rows = rows.resize(
        (crop_width, rows.height),
        method,
        box=(left, 0, min(left + crop_width * across, image.width), rows.height),
    )
    box = (0, top - first, crop_width, min(top - first + crop_height * down, rows.height))
    return rows.resize((crop_width, crop_height), method, box=box)


def _pixels(image: Image.Image) -> np.ndarray:
    return np.array(image, dtype=np.uint8)
