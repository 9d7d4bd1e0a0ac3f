"""Perturbations of decoded images, severity 1 to 5: what a backbone may have to withstand.

`perturb(pixels, image_id, name, severity)` is the one door. It is deterministic: the seed is a hash of its arguments.
An entry of `PERTURBATIONS` is a function of an RGB image, a severity's level and a random generator.

Sizes are shares of the image, and what has a grain (noise, pixels) has it on a grid of at most `GRID` cells along the
short side: the same severity looks alike at 32 and at 500 pixels, after the crop of a backbone too. Images of more
than `AREA` pixels are made smaller first. Pixels that come from outside the image have its mean colour, for black
borders would be a perturbation of their own.

The work is Pillow's and scipy's, not torchvision's: for Pillow images torchvision calls the same functions, and its
import takes ten seconds of a core in every worker. Own code is only the direction-wise blur and the noise, which
neither of them has.
"""

import hashlib
import io
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage

CLEAN = "none"
SEVERITIES = (1, 2, 3, 4, 5)
GRID = 224  # the finest grain along the short side, in cells
AREA = 2**19  # pixels
GREY = (127, 127, 127)
STEPS = 32  # positions at most that a blur along a line is the mean of


class Perturbation(NamedTuple):
    """One way to disturb an image.

    Attributes:
        apply: (image, level, generator) → image of the same size.
        levels: the level at each severity; of one that has no degrees a single one, at severity 1.
        words: what it does, for people.
    """

    apply: Callable[[Image.Image, float, np.random.Generator], Image.Image]
    levels: tuple[float, ...]
    words: str

    @property
    def graded(self) -> bool:
        """Whether it has degrees."""
        return len(self.levels) > 1


def perturb(pixels_HWC: np.ndarray, image_id: str, name: str, severity: int) -> np.ndarray:
    """Return a perturbed copy of an RGB image, uint8 H×W×3; severity 0, or "none", is the image itself.

    Raises:
        KeyError: no such perturbation. ValueError: it has no such severity.
    """
    if name == CLEAN or severity == 0:
        return pixels_HWC.copy()
    return disturbed(PERTURBATIONS[name], pixels_HWC, image_id, name, severity)


def disturbed(
    entry: Perturbation, pixels_HWC: np.ndarray, image_id: str, name: str, severity: int
) -> np.ndarray:
    """Apply an entry; the table of all is not looked at, so that a new one leaves the others' artefacts valid."""
    if not 1 <= severity <= len(entry.levels):
        raise ValueError(f"{name} has severities 1 to {len(entry.levels)}, not {severity}")
    digest = hashlib.sha256(f"{image_id} {name} {severity}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:16], "big"))
    image = Image.fromarray(pixels_HWC)
    return np.array(entry.apply(image, entry.levels[severity - 1], generator), dtype=np.uint8)


def bounded(image: Image.Image) -> Image.Image:
    """Return an image of at most `AREA` pixels: a photograph of 12 million would take seconds a perturbation."""
    ratio = math.sqrt(AREA / (image.width * image.height))
    if ratio >= 1:
        return image
    size = (max(1, int(image.width * ratio)), max(1, int(image.height * ratio)))
    return image.resize(size, Image.Resampling.LANCZOS)


def variants(names: Iterable[str], severities: Sequence[int]) -> list[tuple[str, int]]:
    """List (perturbation, severity) of the severities that are asked for; one without degrees has severity 1 only.

    >>> variants(["invert", "hue"], [1, 3])
    [('invert', 1), ('hue', 1), ('hue', 3)]
    """
    found = []
    for name in names:
        wanted = sorted(set(severities)) if PERTURBATIONS[name].graded else (1,)
        found += [(name, severity) for severity in wanted]
    return found


def _mean_colour(image: Image.Image) -> tuple[int, ...]:
    return tuple(round(value) for value in np.asarray(image).mean(axis=(0, 1)))


def _sign(generator: np.random.Generator) -> int:
    return 1 if generator.random() < 0.5 else -1


def _either_way(level: float, generator: np.random.Generator) -> float:
    """A factor above 1, or its inverse."""
    return level ** _sign(generator)


def _array(image: Image.Image) -> np.ndarray:
    """Pixels as floats from 0 to 1."""
    return np.asarray(image, dtype=np.float32) / 255


def _image(values_HWC: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(values_HWC.clip(0, 1) * 255).astype(np.uint8))


def _cells(image: Image.Image, share: float = 1.0) -> tuple[int, int]:
    """Rows and columns of a grid of cells with `share` times `GRID` of them, or of the pixels, along the short side."""
    grain = max(1.0, min(image.size) / GRID) / share
    return max(1, round(image.height / grain)), max(1, round(image.width / grain))


def _spread(cells_hwC: np.ndarray, image: Image.Image) -> np.ndarray:
    """Cells over the pixels of an image: every pixel takes the cell that it lies in."""
    rows = np.arange(image.height) * cells_hwC.shape[0] // image.height
    columns = np.arange(image.width) * cells_hwC.shape[1] // image.width
    return cells_hwC[rows][:, columns]


def rotation(image: Image.Image, degrees: float, generator: np.random.Generator) -> Image.Image:
    """Turn about the middle, either way."""
    angle = degrees * _sign(generator)
    return image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=_mean_colour(image))


def horizontal_flip(image: Image.Image, _level: float, _rng: np.random.Generator) -> Image.Image:
    """Exchange left and right."""
    return ImageOps.mirror(image)


def vertical_flip(image: Image.Image, _level: float, _rng: np.random.Generator) -> Image.Image:
    """Exchange top and bottom."""
    return ImageOps.flip(image)


def _affine(image: Image.Image, matrix: np.ndarray, shift: np.ndarray) -> Image.Image:
    """The image whose pixel at x shows what stood at matrix·x + shift, measured from the middle."""
    middle = np.array(image.size) / 2
    offset = middle - matrix @ middle + shift
    return _mapped(image, Image.Transform.AFFINE, (*matrix[0], offset[0], *matrix[1], offset[1]))


def _mapped(image: Image.Image, kind: Image.Transform, numbers: tuple[float, ...]) -> Image.Image:
    """The image under one of Pillow's maps; what comes in from outside has its mean colour."""
    colour = _mean_colour(image)
    return image.transform(image.size, kind, numbers, Image.Resampling.BICUBIC, fillcolor=colour)


def translation(image: Image.Image, share: float, generator: np.random.Generator) -> Image.Image:
    """Move by a share of the sides, in any direction."""
    angle = generator.uniform(0, 2 * math.pi)
    shift = share * np.array([math.cos(angle), math.sin(angle)]) * image.size
    return _affine(image, np.eye(2), shift)


def scale(image: Image.Image, factor: float, generator: np.random.Generator) -> Image.Image:
    """Enlarge the middle, or shrink the whole."""
    return _affine(image, np.eye(2) * _either_way(factor, generator), np.zeros(2))


def shear(image: Image.Image, degrees: float, generator: np.random.Generator) -> Image.Image:
    """Slant along one of the axes, either way."""
    matrix = np.eye(2)
    axis = int(generator.integers(2))
    matrix[axis, 1 - axis] = math.tan(math.radians(degrees)) * _sign(generator)
    return _affine(image, matrix, np.zeros(2))


def perspective(image: Image.Image, share: float, generator: np.random.Generator) -> Image.Image:
    """Draw every corner inwards, by a share of the sides at most."""
    corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], dtype=float)
    inwards = 1 - 2 * corners
    moved = corners + inwards * generator.uniform(0, share, (4, 2))
    size = np.array(image.size)
    numbers = _homography(moved * size, corners * size)
    return _mapped(image, Image.Transform.PERSPECTIVE, numbers)


def _homography(shown: np.ndarray, stood: np.ndarray) -> tuple[float, ...]:
    """Pillow's eight numbers of the map that takes four points of the result to those of the image."""
    rows = []
    for (x, y), (u, v) in zip(shown, stood, strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
    return tuple(np.linalg.solve(np.array(rows), stood.ravel()))


def gaussian_blur(image: Image.Image, share: float, _rng: np.random.Generator) -> Image.Image:
    """Blur with a deviation of a share of the short side."""
    sigma = share * min(image.size)
    return _image(ndimage.gaussian_filter(_array(image), (sigma, sigma, 0), mode="nearest"))


def motion_blur(image: Image.Image, share: float, generator: np.random.Generator) -> Image.Image:
    """Blur along a line of a share of the short side, in any direction."""
    length = share * min(image.size)
    angle = generator.uniform(0, math.pi)
    way = np.array([math.cos(angle), math.sin(angle)])
    margin = math.ceil(length / 2) + 1
    sides = ((margin, margin), (margin, margin), (0, 0))
    wide = Image.fromarray(np.pad(np.asarray(image), sides, mode="edge"))
    steps = np.linspace(-length / 2, length / 2, min(STEPS, max(2, math.ceil(length) + 1)))
    total = np.zeros((image.height, image.width, 3), np.float32)
    for step in steps:
        x, y = margin + step * way
        total += wide.transform(
            image.size, Image.Transform.AFFINE, (1, 0, x, 0, 1, y), Image.Resampling.BILINEAR
        )
    return _image(total / (255 * len(steps)))


def gaussian_noise(image: Image.Image, std: float, generator: np.random.Generator) -> Image.Image:
    """Add normal noise, of a deviation that is a share of white."""
    noise = generator.normal(scale=std, size=(*_cells(image), 3)).astype(np.float32)
    return _image(_array(image) + _spread(noise, image))


def shot_noise(image: Image.Image, photons: float, generator: np.random.Generator) -> Image.Image:
    """Count photons, so many for white: the noise grows with the root of the light."""
    values = _array(image)
    noise = generator.normal(size=(*_cells(image), 3)).astype(np.float32)
    if _cells(image) == values.shape[:2]:
        return _image(generator.poisson(values * photons).astype(np.float32) / photons)
    return _image(values + np.sqrt(values / photons) * _spread(noise, image))


def impulse_noise(image: Image.Image, share: float, generator: np.random.Generator) -> Image.Image:
    """Make a share of the cells black or white, channel by channel."""
    drawn = _spread(generator.random((*_cells(image), 3)), image)
    values = _array(image)
    values[drawn < share] = 1
    values[drawn < share / 2] = 0
    return _image(values)


def brightness(image: Image.Image, factor: float, generator: np.random.Generator) -> Image.Image:
    """Lighten or darken."""
    return ImageEnhance.Brightness(image).enhance(_either_way(factor, generator))


def contrast(image: Image.Image, factor: float, _rng: np.random.Generator) -> Image.Image:
    """Draw all pixels towards the mean grey."""
    return ImageEnhance.Contrast(image).enhance(factor)


def saturation(image: Image.Image, factor: float, generator: np.random.Generator) -> Image.Image:
    """Make colours stronger or paler."""
    return ImageEnhance.Color(image).enhance(_either_way(factor, generator))


def hue(image: Image.Image, turn: float, generator: np.random.Generator) -> Image.Image:
    """Turn the circle of colours, either way; 1 is once around."""
    colours = np.array(image.convert("HSV"))
    colours[..., 0] += np.uint8(round(turn * 256 * _sign(generator)) % 256)
    return Image.fromarray(colours, "HSV").convert("RGB")


def gamma(image: Image.Image, exponent: float, generator: np.random.Generator) -> Image.Image:
    """Bend the scale of lightness, either way."""
    return _image(_array(image) ** _either_way(exponent, generator))


def posterise(image: Image.Image, bits: float, _rng: np.random.Generator) -> Image.Image:
    """Keep so many bits of each channel."""
    return ImageOps.posterize(image, int(bits))


def solarise(image: Image.Image, threshold: float, _rng: np.random.Generator) -> Image.Image:
    """Invert what is lighter than the threshold."""
    return ImageOps.solarize(image, int(threshold))


def invert(image: Image.Image, _level: float, _rng: np.random.Generator) -> Image.Image:
    """Make the negative."""
    return ImageOps.invert(image)


def grayscale(image: Image.Image, _level: float, _rng: np.random.Generator) -> Image.Image:
    """Take the colours out."""
    return image.convert("L").convert("RGB")


def jpeg(image: Image.Image, quality: float, _rng: np.random.Generator) -> Image.Image:
    """Compress as JPEG, on the grid: blocks of 8 pixels are as large in a small image as in a large one."""
    rows, columns = _cells(image)
    small = image.resize((columns, rows), Image.Resampling.BOX)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=int(quality))
    with Image.open(file) as packed:
        return packed.convert("RGB").resize(image.size, Image.Resampling.BICUBIC)


def pixelate(image: Image.Image, share: float, _rng: np.random.Generator) -> Image.Image:
    """Keep a share of the pixels along each side, as squares."""
    rows, columns = _cells(image, share)
    small = image.resize((columns, rows), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.NEAREST)


def occlusion(image: Image.Image, share: float, generator: np.random.Generator) -> Image.Image:
    """Cover a share of the area by a grey rectangle of the image's own shape."""
    width, height = (max(1, round(side * math.sqrt(share))) for side in image.size)
    left = int(generator.integers(image.width - width + 1))
    top = int(generator.integers(image.height - height + 1))
    covered = image.copy()
    covered.paste(GREY, (left, top, left + width, top + height))
    return covered


PERTURBATIONS = {
    "rotation": Perturbation(rotation, (5, 10, 20, 30, 45), "turned by 5 to 45 degrees"),
    "horizontal_flip": Perturbation(horizontal_flip, (1,), "left and right exchanged"),
    "vertical_flip": Perturbation(vertical_flip, (1,), "top and bottom exchanged"),
    "translation": Perturbation(translation, (0.05, 0.1, 0.15, 0.22, 0.3), "moved aside"),
    "scale": Perturbation(scale, (1.1, 1.25, 1.5, 1.8, 2.2), "enlarged or shrunk"),
    "shear": Perturbation(shear, (5, 10, 16, 23, 30), "slanted by 5 to 30 degrees"),
    "perspective": Perturbation(perspective, (0.1, 0.17, 0.25, 0.33, 0.42), "seen at an angle"),
    "gaussian_blur": Perturbation(gaussian_blur, (0.012, 0.018, 0.025, 0.034, 0.045), "blurred"),
    "motion_blur": Perturbation(motion_blur, (0.04, 0.07, 0.1, 0.15, 0.2), "blurred along a line"),
    "gaussian_noise": Perturbation(gaussian_noise, (0.06, 0.1, 0.16, 0.24, 0.34), "normal noise"),
    "shot_noise": Perturbation(shot_noise, (80, 35, 16, 8, 4), "the noise of little light"),
    "impulse_noise": Perturbation(impulse_noise, (0.02, 0.05, 0.1, 0.17, 0.27), "salt and pepper"),
    "brightness": Perturbation(brightness, (1.2, 1.45, 1.75, 2.2, 3.0), "lighter or darker"),
    "contrast": Perturbation(contrast, (0.75, 0.55, 0.4, 0.27, 0.15), "less contrast"),
    "saturation": Perturbation(saturation, (1.5, 2, 3, 5, 10), "stronger or paler colours"),
    "hue": Perturbation(hue, (0.04, 0.09, 0.16, 0.27, 0.42), "other colours"),
    "gamma": Perturbation(gamma, (1.25, 1.6, 2, 2.6, 3.5), "another scale of lightness"),
    "posterise": Perturbation(posterise, (5, 4, 3, 2, 1), "5 bits to 1 a channel"),
    "solarise": Perturbation(solarise, (230, 200, 165, 130, 90), "light tones inverted"),
    "invert": Perturbation(invert, (1,), "the negative"),
    "grayscale": Perturbation(grayscale, (1,), "no colours"),
    "jpeg": Perturbation(jpeg, (40, 22, 13, 8, 4), "JPEG quality 40 down to 4"),
    "pixelate": Perturbation(pixelate, (0.6, 0.45, 0.33, 0.24, 0.16), "fewer pixels"),
    "occlusion": Perturbation(occlusion, (0.04, 0.09, 0.16, 0.27, 0.42), "partly covered"),
}
