"""What one device does with one backbone, without Ray: from crops in memory to embeddings in memory.

    python benchmarks/encoder.py --device cuda --backbones RN50,ViT-B-32,ViT-B-16,convnext_base,ViT-L-14
    python benchmarks/encoder.py --batches 8 --seconds 0.2       the shipped backbones on CPUs

The floor is the image tower alone, over pixels that lie on the device already. Prints, for each precision and batch
size, images per second of `Encoder.images` and of the floor, and their ratio; then, at the largest batch, what the
tower makes with weights and pixels that are not channels-last, and compiled, with the seconds of compiling. The cosine
is the least of compiled embeddings to the plain ones. Architectures of open_clip get random weights.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from embed import write_backbone

from clipray import backbones, catalog
from clipray.config import Backbone

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
CROPS = 512  # that `Encoder.images` gets at a time


def rate(work: Callable[[], object], images: int, seconds: float) -> float:
    """Images per second of something that is done again and again, after it was done once."""

    def wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    work()
    wait()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        work()
        count += 1
    wait()
    return images * count / (time.perf_counter() - start)


def pixels_of(encoder: backbones.Encoder, batch: int) -> torch.Tensor:
    """Make random pixels on the device, channels-last as crops come."""
    shape = (batch, 3, *encoder.preprocess.size)
    made = torch.randn(shape, device=encoder.device, dtype=DTYPES[encoder.precision])
    return made.to(memory_format=torch.channels_last)


def tower(encoder: backbones.Encoder, pixels: torch.Tensor, seconds: float) -> float:
    """Measure the image tower alone."""
    with torch.inference_mode():
        return rate(lambda: encoder.model.encode_image(pixels), len(pixels), seconds)


def alternatives(encoder: backbones.Encoder, batch: int, seconds: float) -> str:
    """Measure the tower contiguous and compiled, at one batch size."""
    crops = np.random.default_rng(0).integers(0, 256, (batch, *encoder.preprocess.size, 3))
    plain = encoder.images(crops.astype(np.uint8), batch)
    start = time.perf_counter()
    made = backbones.load(encoder.spec, encoder.precision, encoder.device, batch)
    lasted = time.perf_counter() - start
    own = made.images(crops.astype(np.uint8), batch)
    lengths = np.linalg.norm(plain, axis=1) * np.linalg.norm(own, axis=1)
    cosine = ((plain * own).sum(axis=1) / lengths).min()
    pixels = pixels_of(encoder, batch)
    with torch.inference_mode():
        compiled = rate(lambda: made._tower(pixels), batch, seconds)
    encoder.model.visual.to(memory_format=torch.contiguous_format)
    contiguous = tower(encoder, pixels.contiguous(), seconds)
    return (
        f"contiguous {contiguous:.0f}, compiled {compiled:.0f} images/s "
        f"(ready after {lasted:.1f} s, cosine {cosine:.6f})"
    )


def compare(spec: Backbone, precision: str, options: argparse.Namespace) -> None:
    """Print the figures of one backbone in one precision."""
    encoder = backbones.load(spec, precision, options.device)
    noise = np.random.default_rng(0)
    crops = noise.integers(0, 256, (CROPS, *encoder.preprocess.size, 3), np.uint8)
    sizes = [int(size) for size in options.batches.split(",")]
    for batch in sizes:
        alone = tower(encoder, pixels_of(encoder, batch), options.seconds)

        def whole(batch: int = batch) -> np.ndarray:
            return encoder.images(crops, batch)

        own = rate(whole, CROPS, options.seconds)
        print(f"{spec.name} {precision} batch {batch}: {own:.0f} of {alone:.0f} images/s", end=" ")
        print(f"({own / alone:.2f})", flush=True)
    print(f"    {alternatives(encoder, sizes[-1], options.seconds)}", flush=True)


def chosen(names: str, folder: Path) -> Sequence[Backbone]:
    """The shipped backbones, or architectures with random weights."""
    if not names:
        return catalog.backbones(("shipped",))
    files = [Path(write_backbone(folder, name)) for name in names.split(",")]
    return [Backbone(**yaml.safe_load(file.read_text())) for file in files]


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbones", default="", help="architectures of open_clip, by commas")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precisions", default="", help="default: fp32; on a GPU all three")
    parser.add_argument("--batches", default="64,128,256")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement at least")
    options = parser.parse_args()
    precisions = options.precisions or ("fp32" if options.device == "cpu" else "fp32,fp16,bf16")
    with tempfile.TemporaryDirectory() as folder:
        for spec in chosen(options.backbones, Path(folder)):
            for precision in precisions.split(","):
                compare(spec, precision, options)


if __name__ == "__main__":
    main()
