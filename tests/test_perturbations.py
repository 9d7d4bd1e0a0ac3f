"""Perturbations: deterministic, of the same shape, growing with severity, at every size and shape of image."""

import functools
import itertools

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from clipray import perturbations
from clipray.contact_sheet import contact_sheet
from clipray.perturbations import PERTURBATIONS, SEVERITIES, bounded, perturb, variants

GRADED = [name for name, entry in PERTURBATIONS.items() if entry.graded]
# of 224 cells a side at most: a resize to 32 averages them, in the nature of the thing
GRAINY = ("gaussian_noise", "shot_noise", "impulse_noise", "jpeg", "pixelate")
PLAIN = [name for name in PERTURBATIONS if name not in GRADED]


@functools.cache
def photos(side: int) -> list[np.ndarray]:
    """Parts of two photographs that scikit-learn brings, at one size."""
    found = []
    for name in ("china.jpg", "flower.jpg"):
        whole = Image.fromarray(load_sample_image(name))
        boxes = [(0, 0, 400, 400), (240, 20, 640, 420)]
        found += [np.array(whole.crop(box).resize((side, side))) for box in boxes]
    return found


def distance(name: str, severity: int, images: list[np.ndarray]) -> float:
    each = [
        np.abs(perturb(image, f"image{i}-{draw}", name, severity).astype(float) - image).mean()
        for i, image in enumerate(images)
        for draw in range(8)
    ]
    return float(np.mean(each))


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_copy_is_the_same_whenever_it_is_made_and_another_for_another_image(name):
    image = photos(40)[0]
    level = len(PERTURBATIONS[name].levels)
    one = perturb(image, "a", name, level)
    np.random.seed(3)  # a global state must not matter
    assert (perturb(image.copy(), "a", name, level) == one).all()
    assert one.dtype == np.uint8
    assert one.shape == image.shape
    others = [perturb(image, str(i), name, level) for i in range(12)]
    chance = ("rotation", "translation", "scale", "shear", "perspective", "motion_blur", "hue")
    chance += ("gaussian_noise", "shot_noise", "impulse_noise", "brightness", "saturation")
    chance += ("gamma", "occlusion")
    assert any((other != one).any() for other in others) == (name in chance)


@pytest.mark.parametrize("side", [32, 96])
@pytest.mark.parametrize("name", GRADED)
def test_a_higher_severity_lies_further_from_the_clean_image(name, side):
    images = photos(side)
    found = [distance(name, severity, images) for severity in (0, *SEVERITIES)]
    assert found[0] == 0
    assert found[1] > 0.5
    assert all(after > before for before, after in itertools.pairwise(found)), found


@pytest.mark.parametrize("name", sorted(set(GRADED) - set(GRAINY)))
def test_a_severity_means_the_same_at_32_and_at_160_pixels(name):
    """What a backbone sees, an image of 32 pixels, has moved by like amounts."""
    large, small = photos(160), photos(32)
    for severity in (2, 4):
        seen = []
        for i, image in enumerate(large):
            copy = perturb(image, f"image{i}", name, severity)
            before, after = (np.array(Image.fromarray(x).resize((32, 32))) for x in (image, copy))
            seen.append(np.abs(after.astype(float) - before).mean())
        ratio = np.mean(seen) / distance(name, severity, small)
        assert 0.6 < ratio < 1.7, (severity, ratio)


@pytest.mark.parametrize("name", PLAIN)
def test_what_has_no_degrees_has_severity_one(name):
    image = photos(32)[0]
    assert (perturb(image, "a", name, 1) != image).any()
    with pytest.raises(ValueError, match=f"{name} has severities 1 to 1, not 2"):
        perturb(image, "a", name, 2)


def test_flips_inversion_and_grey_are_what_they_say():
    image = photos(32)[1]
    assert (perturb(image, "a", "horizontal_flip", 1) == image[:, ::-1]).all()
    assert (perturb(image, "a", "vertical_flip", 1) == image[::-1]).all()
    assert (perturb(image, "a", "invert", 1) == 255 - image).all()
    grey = perturb(image, "a", "grayscale", 1)
    assert (np.ptp(grey, axis=2) == 0).all()


@pytest.mark.parametrize("name", PERTURBATIONS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 3), (3, 700), (900, 7), (9, 16)])
def test_every_size_and_shape(name, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    for severity in range(1, len(PERTURBATIONS[name].levels) + 1):
        copy = perturb(image, "a", name, severity)
        assert copy.shape == image.shape
        assert copy.dtype == np.uint8


@pytest.mark.parametrize("name", PERTURBATIONS)
@pytest.mark.parametrize("value", [0, 128, 255])
def test_an_even_image_stays_in_range(name, value):
    image = np.full((24, 32, 3), value, np.uint8)
    copy = perturb(image, "a", name, len(PERTURBATIONS[name].levels))
    moves = ("noise", "brightness", "gamma", "posterise", "solarise", "invert", "occlusion")
    if not any(word in name for word in moves):
        assert np.abs(copy.astype(int) - value).max() <= 4, "its geometry and its colours are even"


def test_noise_has_the_deviation_of_its_level():
    image = np.full((224, 224, 3), 128, np.uint8)
    for severity, std in zip(SEVERITIES[:3], PERTURBATIONS["gaussian_noise"].levels, strict=False):
        copy = perturb(image, "a", "gaussian_noise", severity).astype(float)
        assert copy.std() / 255 == pytest.approx(std, rel=0.03)
    share = PERTURBATIONS["impulse_noise"].levels[3]
    copy = perturb(image, "a", "impulse_noise", 4)
    assert (copy != 128).mean() == pytest.approx(share, rel=0.03)
    photons = PERTURBATIONS["shot_noise"].levels[1]
    copy = perturb(image, "a", "shot_noise", 2).astype(float) / 255
    assert copy.var() == pytest.approx(128 / 255 / photons, rel=0.05)


def test_translation_moves_and_rotation_turns():
    image = np.zeros((100, 100, 3), np.uint8)
    image[45:55, 45:55] = 255
    moved = perturb(image, "a", "translation", 5)[..., 0] > 128
    middle = np.argwhere(moved).mean(0)
    assert np.hypot(*(middle - 49.5)) == pytest.approx(30, abs=1.0)
    turned = perturb(image, "a", "rotation", 5)[..., 0] > 128
    assert np.argwhere(turned).mean(0) == pytest.approx([49.5, 49.5], abs=1.0)
    assert np.ptp(np.argwhere(turned), axis=0) == pytest.approx([13.1, 13.1], abs=1.5)  # 10·√2


def test_large_images_are_made_smaller_first():
    image = Image.new("RGB", (4000, 3000))
    small = bounded(image)
    assert small.width * small.height <= perturbations.AREA
    assert small.width / small.height == pytest.approx(4 / 3, rel=0.01)
    assert bounded(Image.new("RGB", (500, 375))).size == (500, 375)
    assert bounded(Image.new("RGB", (2_000_000, 1))).height == 1


def test_variants():
    assert variants(["rotation", "invert"], [5, 1, 5]) == [
        ("rotation", 1),
        ("rotation", 5),
        ("invert", 1),
    ]


@pytest.mark.parametrize("size", [(32, 32), (500, 375), (10, 400), (1, 1)])
def test_the_contact_sheet_shows_every_copy(size):
    image = Image.effect_noise(size, 80).convert("RGB")
    sheet = contact_sheet(image, "a")
    assert sheet.height == 16 + 12 * 76 + 4
    pixels = np.asarray(contact_sheet(image, "a", ["invert"], cell=64, blocks=1))
    clean, negative = pixels[16:80, 104:168], pixels[16:80, 172:236]
    inner = np.abs(clean.astype(int) + negative - 255) <= 1
    white = (clean == 255) & (negative == 255)
    assert (inner | white).all()
