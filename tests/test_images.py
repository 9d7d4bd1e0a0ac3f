"""Decoding by the written rules, and crops equal to open_clip's own transform in every group of its catalogue."""

import contextlib
import io
import random
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from clipray import images
from clipray.images import ImageError, Preprocess, crop, decode

NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def encode(image: Image.Image, kind: str, **settings) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def header_only_png(width: int, height: int) -> bytes:
    """A PNG that claims a size, without the pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


def test_lossless_formats_give_the_pixels_whatever_the_file_is_called():
    for kind in ("PNG", "BMP", "TIFF", "PPM"):
        assert (np.asarray(decode(encode(Image.fromarray(NOISE), kind))) == NOISE).all()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "zero bytes"),
        (b"hello, this is text", "not an image"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
            "not an image",
        ),
        (encode(Image.fromarray(NOISE), "JPEG")[:900], "truncated"),
        (encode(Image.fromarray(NOISE), "PNG")[:900], "truncated"),
        (encode(Image.fromarray(NOISE), "WEBP", lossless=True)[:900], "cannot be decoded"),
        (header_only_png(20_000, 10_000), "200000000|178956970"),
        (header_only_png(12_000, 10_000), "12000×10000 pixels, more than 100000000"),
        (header_only_png(60_000, 60_000), "pixels"),
    ],
)
def test_undecodable_bytes_are_an_error_with_a_short_reason(data, reason):
    with pytest.raises(ImageError, match=reason) as caught:
        decode(data)
    assert len(str(caught.value)) < 120


def test_the_pixel_limit_is_kept_and_leaves_pillows_global_alone():
    before = Image.MAX_IMAGE_PIXELS
    data = encode(Image.fromarray(NOISE), "PNG")
    assert decode(data, max_pixels=2400).size == (60, 40)
    with pytest.raises(ImageError, match="60×40"):
        decode(data, max_pixels=2399)
    with pytest.raises(ValueError, match="at most"):
        decode(data, max_pixels=10**9)
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(NOISE), kind, exif=exif)
    stored = Image.open(io.BytesIO(encode(Image.fromarray(NOISE), kind))).convert("RGB")
    stored.getexif()[0x0112] = orientation
    assert (np.asarray(decode(data)) == np.asarray(ImageOps.exif_transpose(stored))).all()


def test_damaged_exif_does_not_lose_the_image():
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 1, "a maker"
    data = encode(Image.fromarray(NOISE), "JPEG", exif=exif)
    for damage in (
        b"\xff" * 12,
        b"\0" * 12,
        b"II*\0\xff\xff\xff\x7f\x01\x02\x03\x04",
        b"not at all..",
    ):
        start = data.index(b"Exif\0\0") + 6
        hurt = data[:start] + damage + data[start + 12 :]
        assert (np.asarray(decode(hurt)) == np.asarray(decode(data))).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation_counts(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encode(
        frames[0], kind, save_all=True, append_images=frames[1:], duration=50, lossless=True
    )
    assert np.abs(np.asarray(decode(data)).astype(int) - [255, 0, 0]).max() <= 1


def test_transparent_pixels_lie_on_white():
    alpha = np.dstack([NOISE, np.full((40, 60), 51, np.uint8)])  # opacity 0.2
    expected = 0.2 * NOISE + 0.8 * 255
    for kind in ("PNG", "TIFF"):
        assert (
            np.abs(np.asarray(decode(encode(Image.fromarray(alpha), kind))) - expected).max() <= 1
        )
    grey_alpha = Image.merge("LA", [Image.new("L", (2, 2), 0), Image.new("L", (2, 2), 0)])
    assert decode(encode(grey_alpha, "PNG")).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    for kind in ("PNG", "GIF"):
        image = decode(encode(palette, kind, transparency=0))
        assert [image.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 255, 0)]
    keyed = encode(Image.new("RGB", (2, 2), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert decode(keyed).getpixel((0, 0)) == (255, 255, 255)


def test_cmyk_and_ycck_become_rgb():
    ink = encode(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=100)
    assert np.abs(np.asarray(decode(ink)).astype(int) - [0, 255, 255]).max() <= 3
    # Told that the same four channels are YCCK, a decoder reads (255-C, 255-M, 255-Y) as (luma, Cb, Cr); stored luma
    # 200 with neutral chroma is then an even C = M = Y = 200: grey 55.
    data = bytearray(encode(Image.new("CMYK", (16, 16), (55, 127, 127, 0)), "JPEG", quality=100))
    marker = data.index(b"Adobe")
    assert data[marker + 11] == 0
    data[marker + 11] = 2
    assert np.abs(np.asarray(decode(bytes(data))).astype(int) - 55).max() <= 3


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    for kind in ("PNG", "TIFF"):
        grey = np.asarray(decode(encode(Image.fromarray(values), kind)))
        assert (grey[0, :, 0] == [0, 1, 128, 255]).all()
        assert (grey[..., 0] == grey[..., 2]).all()
    assert (
        np.asarray(decode(b"P5 4 1 65535\n" + values.byteswap().tobytes()))[0, :, 1]
        == [0, 1, 128, 255]
    ).all()


def test_one_bit_integers_and_floats():
    bits = Image.fromarray(np.array([[True, False]]))
    assert (np.asarray(decode(encode(bits, "PNG")))[0, :, 0] == [255, 0]).all()
    floats = np.array([[0.0, 0.5, 1.0]], np.float32)
    assert (
        np.asarray(decode(encode(Image.fromarray(floats), "TIFF")))[0, :, 0] == [0, 128, 255]
    ).all()
    for wrong in (
        floats * 300,
        floats * np.nan,
        np.array([[0, 70_000]], np.int32),
        np.array([[-1, 7]], np.int32),
    ):
        with pytest.raises(ImageError, match="was expected"):
            decode(encode(Image.fromarray(wrong), "TIFF"))


@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "ICO", "AVIF", "JPEG2000"]
)
def test_damaged_files_give_an_image_or_an_image_error(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encode(
        Image.fromarray(NOISE), kind, **({"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {})
    )
    draw = random.Random(kind)
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(draw.choice([1, 3, 30])):
            data[draw.randrange(min(len(data), draw.choice([60, 10**9])))] = draw.randrange(256)
        cut = draw.choice([len(data), draw.randrange(len(data))])
        with contextlib.suppress(ImageError):
            assert decode(bytes(data[:cut])).mode == "RGB"


def open_clip_groups() -> dict:
    """Every preprocess setting that a pretrained model of open_clip's catalogue has, and some that none has."""
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    groups = {}
    for model, tag in open_clip.list_pretrained():
        size = open_clip.get_model_config(model)["vision_cfg"].get("image_size", 224)
        merged = merge_preprocess_dict(PreprocessCfg(), get_pretrained_cfg(model, tag)) | {
            "size": size
        }
        groups[images.preprocess(merged)] = merged
    for more in (
        {"size": (48, 30), "resize_mode": "shortest"},
        {"size": (30, 48), "resize_mode": "longest", "fill_color": 114},
        {"size": 33, "resize_mode": "longest", "interpolation": "bilinear"},
        {"size": (30, 48), "resize_mode": "squash", "interpolation": "bilinear"},
    ):
        groups[images.preprocess(more)] = merge_preprocess_dict(PreprocessCfg(), more)
    return groups


def test_crops_equal_open_clips_transform_in_every_group_of_its_catalogue():
    from open_clip.transform import PreprocessCfg, image_transform_v2

    rng = np.random.default_rng(1)
    shapes = [(300, 500), (451, 213), (37, 91), (13, 7), (224, 224), (64, 63), (257, 1025)]
    pictures = [
        Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)) for shape in shapes
    ]
    groups = open_clip_groups()
    assert len(groups) >= 20
    for group, settings in groups.items():
        transform = image_transform_v2(PreprocessCfg(**settings), is_train=False)
        mean, std = (np.array(settings[key])[:, None, None] for key in ("mean", "std"))
        for picture in pictures:
            theirs = transform(picture).numpy() * std + mean
            ours = crop(picture, group)
            assert ours.dtype == np.uint8
            assert ours.shape == (*group.size, 3)
            assert np.abs(ours.transpose(2, 0, 1) / 255 - theirs).max() <= 1e-6, (
                group,
                picture.size,
            )


def test_a_strip_is_cropped_without_resizing_all_of_it(monkeypatch):
    rng = np.random.default_rng(2)
    for shape in ((2000, 20), (20, 2000), (900, 77), (300, 31)):
        strip = Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8))
        for group in (Preprocess((64, 64)), Preprocess((48, 48)), Preprocess((16, 16), "bilinear")):
            whole = crop(strip, group).astype(int)
            monkeypatch.setattr(images, "RESIZED_LIMIT", 0)
            differs = np.abs(crop(strip, group).astype(int) - whole)
            monkeypatch.undo()
            assert (
                np.mean(differs > 1) < 0.1
            )  # Pillow may round between the passes in the other order
            assert differs.max() < 32
    assert crop(Image.new("RGB", (1, 60_000), "red"), Preprocess((224, 224))).shape == (224, 224, 3)
    assert crop(Image.new("RGB", (60_000, 1), "red"), Preprocess((224, 224)))[..., 0].min() == 255
    assert (
        crop(
            Image.new("RGB", (1, 9000)), Preprocess((32, 32), resize_mode="longest", fill_color=9)
        ).max()
        == 9
    )


def test_decode_workers_start_without_torch():
    code = "import sys, clipray.images, clipray.sources, clipray.catalog; print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
        == "False"
    )
