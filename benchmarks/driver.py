"""What the driver holds while more and more images are embedded.

    python benchmarks/driver.py [IMAGES]        by default 200000

Writes tiny images as Parquet, embeds them with one shipped backbone by `jobs.embed`, and prints the driver's memory at
each tenth of the images, and the growth from the first tenth to the largest: what it keeps of an image it would keep
of every one.
"""

import argparse
import io
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

FILE = 10_000  # images of a file
TENTHS = 10
DONE = re.compile(r"images: (\d+)/\d+")
RESIDENT = re.compile(r"VmRSS:\s+(\d+)")


def write_images(folder: Path, count: int, padding: int = 0) -> None:
    """Write images of 16×16 pixels, each another one, of two classes, with some bytes of noise behind each."""
    noise = np.random.default_rng(0)
    folder.mkdir()
    for first in range(0, count, FILE):
        numbers, data = range(first, min(first + FILE, count)), []
        for number in numbers:
            pixels = noise.integers(0, 256, (16, 16, 3), np.uint8)
            pixels[0, :4, 0] = list(number.to_bytes(4, "big"))
            sink = io.BytesIO()
            Image.fromarray(pixels).save(sink, "PNG", compress_level=1)
            data.append(sink.getvalue() + noise.bytes(padding))
        table = pa.table({"image": data, "label": [number % 2 for number in numbers]})
        pq.write_table(table, folder / f"test-{first:09d}.parquet", row_group_size=1024)


def write_config(folder: Path) -> Path:
    """Write the campaign that embeds them."""
    entry = {"name": "tiny", "format": "parquet", "uri": str(folder / "tiny"), "splits": ["test"]}
    entry |= {"classnames": ["a", "b"], "templates": ["a {c}"]}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(entry))
    campaign = {"workspace": str(folder / "workspace"), "datasets": [str(folder / "tiny.yaml")]}
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump(campaign | {"backbones": ["vit-p6-36"], "shots": []}))
    return path


def watched(config: Path) -> Iterator[tuple[int, float]]:
    """Embed; yield how many images are done, and the driver's resident memory in MB, each second."""
    told = config.with_name("stderr")
    with told.open("wb") as sink:
        command = [sys.executable, "-m", "jobs.embed", str(config)]
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=sink)
        while running.poll() is None:
            time.sleep(1)
            counts = DONE.findall(told.read_text(errors="replace"))
            status = Path(f"/proc/{running.pid}/status").read_text()
            held = RESIDENT.search(status)
            if counts and held:
                yield int(counts[-1]), int(held[1]) / 1000
    if running.returncode:
        raise SystemExit(told.read_text()[-2000:])


def main() -> None:
    """Print the memory by images."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=int, nargs="?", default=200_000)
    count = parser.parse_args().images
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "tiny", count)
        start, held = time.monotonic(), []
        for done, memory in watched(write_config(folder)):
            if done >= (len(held) + 1) * count // TENTHS:
                held.append(memory)
                lasted = time.monotonic() - start
                print(f"{done:9} images  {memory:7.0f} MB  {lasted:6.0f} s", flush=True)
    print(f"the most from the first tenth on: {max(held) / held[0]:.3f} of what was held there")


if __name__ == "__main__":
    main()
