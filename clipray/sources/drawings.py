"""The painters of the drawn sets: (class name, random generator) → an image of 48×48.

They paint at twice that size and shrink, for smooth edges. Raise `VERSION` with any change of a pixel.
"""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

VERSION = 1
SIZE = 48
LARGE = 2 * SIZE
FONTS = (
    *(
        "DejaVuSans",
        "DejaVuSans-Bold",
        "DejaVuSans-Oblique",
        "DejaVuSansMono",
        "DejaVuSansMono-Bold",
        "DejaVuSerif",
    ),
    *(
        "DejaVuSerif-Bold",
        "DejaVuSerif-Italic",
        "STIXGeneral",
        "STIXGeneralBol",
        "STIXGeneralItalic",
        "cmb10",
        "cmr10",
    ),
    *("cmss10", "cmtt10"),
)
COLOURS = {
    "red": (214, 40, 40),
    "orange": (245, 130, 30),
    "yellow": (245, 220, 50),
    "green": (50, 160, 70),
    "blue": (45, 90, 210),
    "purple": (125, 60, 175),
    "pink": (245, 130, 190),
    "brown": (120, 75, 40),
    "grey": (128, 128, 128),
    "black": (15, 15, 15),
    "white": (245, 245, 245),
}


class Drawing(NamedTuple):
    """A drawn set: its class names in label order, and what paints one image of a class."""

    classes: tuple[str, ...]
    paint: Callable[[str, np.random.Generator], Image.Image]


def glyph(text: str, rng: np.random.Generator) -> Image.Image:
    """A character in one of fifteen fonts, light on dark as in a scan; turned, shifted, blurred by noise."""
    ink, paper = int(rng.integers(170, 256)), int(rng.integers(0, 60))
    canvas = _canvas((paper,) * 3)
    _write(canvas, text, (ink,) * 3, LARGE * rng.uniform(0.55, 0.9), rng, spread=0.08)
    return _finish(
        canvas.rotate(rng.normal(0, 7), Image.Resampling.BICUBIC, fillcolor=(paper,) * 3), rng, 8
    )


def printed_glyph(text: str, rng: np.random.Generator) -> Image.Image:
    """A character dark on light, as in print, both a little tinted; turned, shifted, with noise."""
    paper, ink = rng.integers(190, 256, 3), rng.integers(0, 90, 3)
    canvas = _canvas(_rgb(paper))
    _write(canvas, text, _rgb(ink), LARGE * rng.uniform(0.55, 0.9), rng, spread=0.08)
    return _finish(
        canvas.rotate(rng.normal(0, 7), Image.Resampling.BICUBIC, fillcolor=_rgb(paper)), rng, 15
    )


def shape(name: str, rng: np.random.Generator) -> Image.Image:
    """One filled shape of any colour, place, size and angle on a plain ground."""
    ground = rng.integers(0, 256, 3)
    fill = rng.integers(0, 256, 3)
    while np.abs(fill - ground).sum() < 200:
        fill = rng.integers(0, 256, 3)
    canvas = _canvas(_rgb(ground))
    radius = LARGE * rng.uniform(0.2, 0.42)
    centre = LARGE / 2 + rng.uniform(-1, 1, 2) * (LARGE / 2 - radius)
    points = _outline(name) * radius
    turn = rng.uniform(0, 2 * math.pi) if name not in ("crescent", "heart") else rng.normal(0, 0.3)
    matrix = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    ImageDraw.Draw(canvas).polygon(
        [tuple(point) for point in points @ matrix.T + centre], fill=_rgb(fill)
    )
    return _finish(canvas, rng, 12)


def texture(name: str, rng: np.random.Generator) -> Image.Image:
    """A pattern over the whole image in two colours, of any angle and scale."""
    y, x = np.mgrid[0:LARGE, 0:LARGE] / LARGE - 0.5
    turn = (
        rng.uniform(0, math.pi) if name in ("striped", "wavy", "zigzagged") else rng.normal(0, 0.2)
    )
    x, y = x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)
    x, y = x + rng.uniform(), y + rng.uniform()
    value = TEXTURES[name](x, y, rng.uniform(3.5, 8), rng)
    low, high = rng.integers(0, 110, 3), rng.integers(146, 256, 3)
    if rng.random() < 0.5:
        low, high = high, low
    pixels = low + value[..., None] * (high - low)
    return _finish(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), rng, 12)


def colour(name: str, rng: np.random.Generator) -> Image.Image:
    """A soft blob of a shade of the colour on a ground of another brightness; the light varies."""
    tone = np.array(COLOURS[name]) * rng.uniform(0.8, 1.1) + rng.normal(0, 9, 3)
    ground = np.full(3, rng.uniform(60, 200)) + rng.normal(0, 12, 3)
    y, x = np.mgrid[0:LARGE, 0:LARGE] / LARGE - 0.5
    angle = np.arctan2(y, x)
    wobble = 1 + sum(
        rng.uniform(-0.12, 0.12) * np.cos(k * angle + rng.uniform(0, 6)) for k in (2, 3, 5)
    )
    inside = (
        np.hypot(x - rng.uniform(-0.1, 0.1), y - rng.uniform(-0.1, 0.1))
        < rng.uniform(0.25, 0.4) * wobble
    )
    light = 1 + rng.uniform(-0.25, 0.25) * x + rng.uniform(-0.25, 0.25) * y
    pixels = np.where(inside[..., None], tone, ground) * light[..., None]
    return _finish(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), rng, 12)


def sign(name: str, rng: np.random.Generator) -> Image.Image:
    """A traffic sign before a plain ground, a little turned, in day or dusk."""
    canvas = _canvas(_rgb(rng.integers(40, 200, 3)))
    draw, middle, radius = ImageDraw.Draw(canvas), LARGE / 2, LARGE * rng.uniform(0.36, 0.47)
    red, blue, yellow, white, black = (
        _rgb(np.array(COLOURS[c])) for c in ("red", "blue", "yellow", "white", "black")
    )

    def plate(outline: str, fill: tuple, scale: float, turn: float = 0.0) -> None:
        points = _outline(outline) * radius * scale
        matrix = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        draw.polygon([tuple(point) for point in points @ matrix.T + middle], fill=fill)

    if name.startswith("speed limit"):
        plate("circle", red, 1), plate("circle", white, 0.76)
        _write(canvas, name.split()[-1], black, radius * 0.9, rng, spread=0, font="DejaVuSans-Bold")
    elif name == "stop":
        plate("octagon", red, 1, math.pi / 8)
        _write(canvas, "STOP", white, radius * 0.62, rng, spread=0, font="DejaVuSans-Bold")
    elif name == "yield":
        plate("triangle", red, 1.1, math.pi), plate("triangle", white, 0.62, math.pi)
    elif name == "general caution":
        plate("triangle", red, 1.1), plate("triangle", white, 0.72)
        _write(canvas, "!", black, radius * 0.9, rng, spread=0, font="DejaVuSans-Bold")
    elif name == "no entry":
        plate("circle", red, 1)
        draw.rectangle(
            [
                middle - radius * 0.7,
                middle - radius * 0.17,
                middle + radius * 0.7,
                middle + radius * 0.17,
            ],
            white,
        )
    elif name == "priority road":
        plate("square", white, 1, math.pi / 4), plate("square", yellow, 0.72, math.pi / 4)
    else:
        plate("circle", blue, 1)
        plate(
            "arrow",
            white,
            0.62,
            {"ahead only": 0.0, "turn right": math.pi / 2, "turn left": -math.pi / 2}[name],
        )
    turned = canvas.rotate(
        rng.normal(0, 6), Image.Resampling.BICUBIC, fillcolor=canvas.getpixel((0, 0))
    )
    dusk = np.asarray(turned) * rng.uniform(0.45, 1.05)
    return _finish(Image.fromarray(dusk.clip(0, 255).astype(np.uint8)), rng, 14)


def _canvas(paper: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (LARGE, LARGE), paper)


def _rgb(values: np.ndarray) -> tuple[int, int, int]:
    return tuple(int(value) for value in values)


@functools.lru_cache(maxsize=256)
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib  # its data folder holds the fonts; pyplot is not imported

    return ImageFont.truetype(
        Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf", size
    )


def _write(
    canvas: Image.Image,
    text: str,
    ink: tuple,
    size: float,
    rng: np.random.Generator,
    spread: float,
    font: str = "",
) -> None:
    """Text in the middle, moved by `spread` (a fraction of the image)."""
    place = [LARGE * (0.5 + rng.uniform(-spread, spread)) for _ in range(2)]
    name = font or FONTS[rng.integers(len(FONTS))]
    ImageDraw.Draw(canvas).text(
        place, text, fill=ink, font=_font(name, round(size / 4) * 4), anchor="mm"
    )


def _finish(image: Image.Image, rng: np.random.Generator, noise: float) -> Image.Image:
    """Shrunk to 48×48 with Gaussian noise of up to `noise` grey levels."""
    pixels = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=float)
    return Image.fromarray(
        (pixels + rng.normal(0, rng.uniform(0, noise), pixels.shape)).clip(0, 255).astype(np.uint8)
    )


def _polygon(corners: int, inner: float = 0.0) -> np.ndarray:
    """Corners on the unit circle from the top; with `inner`, a star whose other corners lie at that radius."""
    n = 2 * corners if inner else corners
    angle = np.arange(n) * 2 * math.pi / n
    radius = np.where(np.arange(n) % 2, inner, 1.0) if inner else 1.0
    return np.stack([radius * np.sin(angle), -radius * np.cos(angle)], axis=1)


def _outline(name: str) -> np.ndarray:
    """The (x, y) corners of a shape in the unit circle, y downwards."""
    t = np.linspace(0, 2 * math.pi, 60)
    if name in ("cross", "arrow"):
        arm = {
            "cross": [
                *((-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3)),
                *((0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3)),
            ],
            "arrow": [
                (0, -1),
                (0.75, -0.1),
                (0.25, -0.1),
                (0.25, 1),
                (-0.25, 1),
                (-0.25, -0.1),
                (-0.75, -0.1),
            ],
        }
        return np.array(arm[name])
    if name == "heart":
        x, y = (
            16 * np.sin(t) ** 3,
            13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t),
        )
        return np.stack([x, -y], axis=1) / 17
    if name == "crescent":
        half = np.linspace(-2.2, 2.2, 30)
        outer = np.stack([-np.cos(half), np.sin(half)], axis=1)
        inner = np.stack([-0.75 * np.cos(half) + 0.35, 0.75 * np.sin(half)], axis=1)
        return np.concatenate([outer, inner[::-1]])
    if name == "oval":
        return np.stack([np.sin(t), 0.5 * np.cos(t)], axis=1)
    corners = {"triangle": 3, "square": 4, "pentagon": 5, "octagon": 8, "circle": 60}
    turned = _polygon(5, 0.4) if name == "star" else _polygon(corners[name])
    return turned @ np.array([[1, 1], [-1, 1]]) / math.sqrt(2) if name == "square" else turned


def _wave(phase: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.sign(np.sin(2 * math.pi * phase))


def _speckle(x: np.ndarray, y: np.ndarray, k: float, rng: np.random.Generator) -> np.ndarray:
    return np.kron(rng.random((SIZE, SIZE)), np.ones((LARGE // SIZE, LARGE // SIZE)))


def _clouds(x: np.ndarray, y: np.ndarray, k: float, rng: np.random.Generator) -> np.ndarray:
    coarse = Image.fromarray((rng.random((6, 6)) * 255).astype(np.uint8))
    return np.asarray(coarse.resize((LARGE, LARGE), Image.Resampling.BICUBIC)) / 255


TEXTURES = {
    "striped": lambda x, y, k, rng: _wave(k * x),
    "chequered": lambda x, y, k, rng: (_wave(k * x / 2) != _wave(k * y / 2)).astype(float),
    "polka-dotted": lambda x, y, k, rng: (
        np.hypot((k * x) % 1 - 0.5, (k * y) % 1 - 0.5) < 0.3
    ).astype(float),
    "grid": lambda x, y, k, rng: (((k * x) % 1 < 0.18) | ((k * y) % 1 < 0.18)).astype(float),
    "wavy": lambda x, y, k, rng: _wave(k * x + 0.5 * np.sin(2 * math.pi * k * y / 3)),
    "zigzagged": lambda x, y, k, rng: _wave(k * x + np.abs((k * y) % 2 - 1)),
    "concentric": lambda x, y, k, rng: _wave(k * np.hypot(x - x.mean(), y - y.mean())),
    "bricks": lambda x, y, k, rng: (
        ((k * y) % 1 < 0.14) | ((k * x / 2 + 0.5 * (np.floor(k * y) % 2)) % 1 < 0.07)
    ).astype(float),
    "speckled": _speckle,
    "cloudy": _clouds,
}

DRAWINGS = {
    "glyph-digits": Drawing(tuple("0123456789"), glyph),
    "glyph-letters": Drawing(tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), printed_glyph),
    "coloured-shapes": Drawing(
        (
            "circle",
            "oval",
            "triangle",
            "square",
            "pentagon",
            "star",
            "heart",
            "cross",
            "crescent",
            "arrow",
        ),
        shape,
    ),
    "textures": Drawing(tuple(TEXTURES), texture),
    "colours": Drawing(tuple(COLOURS), colour),
    "road-signs": Drawing(
        (
            *(
                "speed limit 30",
                "speed limit 50",
                "speed limit 70",
                "speed limit 100",
                "stop",
                "yield",
            ),
            *(
                "general caution",
                "no entry",
                "priority road",
                "ahead only",
                "turn right",
                "turn left",
            ),
        ),
        sign,
    ),
}
