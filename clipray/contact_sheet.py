"""An image under every perturbation and severity on one sheet, to be looked at."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from clipray.perturbations import PERTURBATIONS, SEVERITIES, bounded, perturb

PAPER, INK = (255, 255, 255), (40, 40, 40)
GAP, LABEL, LINE = 4, 104, 16  # pixels


def contact_sheet(
    image: Image.Image,
    image_id: str,
    names: Sequence[str] | None = None,
    cell: int = 72,
    blocks: int = 2,
) -> Image.Image:
    """Draw a sheet: a row a perturbation, its name in front, then the image itself and severities 1 to 5.

    Args:
        image: an RGB image, as `images.decode` gives it.
        names: the perturbations; by default all.
        cell: sides of a thumbnail, in pixels. blocks: how many rows stand side by side.
    """
    names = list(PERTURBATIONS) if names is None else list(names)
    pixels = np.array(bounded(image))
    down = -(-len(names) // blocks)
    wide = LABEL + (len(SEVERITIES) + 1) * (cell + GAP) + 2 * GAP
    sheet = Image.new("RGB", (blocks * wide, LINE + down * (cell + GAP) + GAP), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for block in range(blocks):
        for severity in (0, *SEVERITIES):
            x = block * wide + LABEL + severity * (cell + GAP)
            draw.text((x, 1), str(severity) if severity else "clean", INK, font)
    for place, name in enumerate(names):
        left, top = place // down * wide, LINE + place % down * (cell + GAP)
        draw.text((left + GAP, top + cell // 2 - 7), name.replace("_", " "), INK, font)
        for severity in range(len(PERTURBATIONS[name].levels) + 1):
            shown = _thumbnail(perturb(pixels, image_id, name, severity), cell)
            x = left + LABEL + severity * (cell + GAP) + (cell - shown.width) // 2
            sheet.paste(shown, (x, top + (cell - shown.height) // 2))
    return sheet


def _thumbnail(pixels: np.ndarray, cell: int) -> Image.Image:
    image = Image.fromarray(pixels)
    ratio = cell / max(image.size)
    size = tuple(max(1, round(side * ratio)) for side in image.size)
    # pixels of a small image stay squares, so that its grain can be seen
    method = Image.Resampling.NEAREST if ratio > 1 else Image.Resampling.BOX
    return image.resize(size, method)
