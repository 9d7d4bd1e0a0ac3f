"""Measures a loaded backbone for its card: dimension, scale, preprocessing and cost."""

import time
from typing import TYPE_CHECKING

import numpy as np

from clipray import backbones, images
from clipray.artefacts import cards
from clipray.store import Store

if TYPE_CHECKING:
    from clipray.backbones import Encoder

BATCH = 32  # images at a time, at most, when a model is timed
ENOUGH = 0.5  # seconds that say what an image costs; a large model on a CPU takes them for one
CLOSE = 0.999  # least cosine of an embedding in half precision to the one in fp32


def write(store: Store, encoder: "Encoder", device: str) -> None:
    """Measure a loaded backbone and store its card, unless it has one."""
    spec, precision = encoder.spec, encoder.precision
    if cards.read(store, spec, precision) is None:
        cards.write(store, spec, precision, measure(encoder), device)


def measure(encoder: "Encoder") -> dict:
    """Measure dimension, scale, preprocessing and cost of a loaded backbone.

    `image_gflops` counts 2 operations per multiply-add for one image; `memory_mb` is the image tower's weights, in
    10⁶ bytes; `seconds_per_image` is of one batch on this device: the cost by which pools are shared out, not a
    benchmark. `decode_seconds` is what one CPU takes to decode and crop a photo of 500×375 pixels.
    """
    visual = encoder.model.visual
    return {
        **backbones.facts(encoder),
        "dim": encoder.dim,
        "scale": encoder.scale,
        "bias": encoder.bias,
        "preprocess": list(encoder.preprocess),
        "mean": list(visual.preprocess_cfg["mean"]),
        "std": list(visual.preprocess_cfg["std"]),
        "image_parameters": sum(p.numel() for p in visual.parameters()),
        "image_gflops": gflops(encoder),
        "memory_mb": sum(p.numel() * p.element_size() for p in visual.parameters()) / 1e6,
        "seconds_per_image": seconds_per_image(encoder),
        "decode_seconds": decode_seconds(encoder),
    }


def describe(encoder: "Encoder") -> dict:
    """Collect what `jobs.backbones` shows of a backbone: its origin, its card, and what half precision does to it."""
    spec = encoder.spec
    return {
        "name": spec.name,
        "architecture": spec.architecture,
        "origin": backbones.origin(spec),
        **measure(encoder),
        "drift": {precision: drift(encoder, precision) for precision in ("fp16", "bf16")},
    }


def drift(encoder: "Encoder", precision: str) -> float | str:
    """Return the least cosine of embeddings in a precision to the loaded ones, or the reason why there is none."""
    crops = np.random.default_rng(0).integers(0, 256, (4, *encoder.preprocess.size, 3), np.uint8)
    try:
        other = backbones.load(encoder.spec, precision, encoder.device).images(crops, 4)
    except RuntimeError as error:  # an operation that the device does not have in this precision
        return str(error).splitlines()[0]
    exact = encoder.images(crops, 4)
    lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(other, axis=1)
    return float(((exact * other).sum(1) / lengths).min())


def gflops(encoder: "Encoder") -> float:
    """Count the floating-point operations of one image's embedding, in 10⁹, as PyTorch's counter sees them."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(
        False
    )  # the counter does not know what is inside the fused kernel
    try:
        with FlopCounterMode(display=False) as counter:
            encoder.images(blank(encoder, 1), 1)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops() / 1e9


def seconds_per_image(encoder: "Encoder") -> float:
    """Measure the seconds that an image takes, in batches that double until one has taken long enough."""
    encoder.images(blank(encoder, 1), 1)  # to warm up
    count = 1
    while True:
        crops = blank(encoder, count)
        start = time.perf_counter()
        encoder.images(crops, count)
        seconds = time.perf_counter() - start
        if seconds >= ENOUGH or count == BATCH:
            return seconds / count
        count *= 2


def decode_seconds(encoder: "Encoder") -> float:
    """Median over five decodings of a made-up photo."""
    photo, times = images.photo(), []
    for _ in range(5):
        start = time.perf_counter()
        images.crop(images.decode(photo), encoder.preprocess)
        times.append(time.perf_counter() - start)
    return sorted(times)[2]


def blank(encoder: "Encoder", images: int) -> np.ndarray:
    """Make black crops of a backbone's size, uint8 N×H×W×3."""
    return np.zeros((images, *encoder.preprocess.size, 3), np.uint8)
