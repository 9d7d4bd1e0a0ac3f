"""What embedding costs beside its models: OpenAI's nine, for each of which an encoder sleeps for the time of a GPU.

    python benchmarks/scale_embed.py 10000
    python benchmarks/scale_embed.py 100000 --shrink 7 --slower 0.5     small crops: driver, requests, bytes read

A campaign over tiny images in Parquet files, on a local Ray that is told that it has a GPU: plan, pools, Ray Data
chain, files, and declaring it done are those of `jobs.embed`. Only models, their cards and class vectors are made up.
Crops have the sizes of the nine, so object store and decoding see what they see of photos, save the decoding of JPEG.

A GPU that several processes share does the work of one at a time, so whoever sleeps holds a lock of that GPU, a batch
of images at a time. `busy` is the share of the time that the GPU is slept for, from the first batch to the last;
`busy_loaded` of the time from when each backbone has had a batch to when the first one has had its last. Seconds of a
GPU are those of fp16 in batches of 128 on an H100 (RESULTS.md): four backbones were measured alone, and the nine
together; the other five share what is left by their GFLOPs. Where this machine's cores decode too slowly for such a
GPU, a slower one shows how busy it is kept: `--slower 4` sleeps four times as long.

Bytes read are what decoding tasks read of all files (`rchar` of /proc/self/io), index and all, by the bytes of the
images, which noise pads to 20 kB. Object-store bytes are all that Ray's store was given during the run.
`decoder_peak_mb` is the most memory that a decoding process had for itself, looked at 50 times a second.
"""

import argparse
import contextlib
import fcntl
import json
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import ray
import yaml
from driver import write_images

from clipray.artefacts import cards, classifiers
from clipray.config import CONFIGS, Backbone, Campaign
from clipray.images import Preprocess
from clipray.progress import hush
from clipray.steps import campaign as run
from clipray.steps import cluster
from clipray.steps.embed import decode, encode
from clipray.steps.embed import plan as embed
from clipray.steps.todo import Plan, classifier_place

NINE_MS = 1000 / 181  # of a GPU for an image: all nine together
PADDING = 20_000  # bytes behind an image, which decoders pass over
POLL = 0.5  # seconds between looks at the object store


class Model(NamedTuple):
    """What is made up of a backbone.

    Attributes:
        side: of its crops. dim: of its embeddings. gflops: of an image. memory_mb: of its weights in half precision.
        ms: of a GPU for an image; 0 where it was not measured alone.
    """

    side: int
    dim: int
    gflops: float
    memory_mb: float
    ms: float = 0.0


NINE = {
    "RN50": Model(224, 1024, 12, 77, 1000 / 8285),
    "RN101": Model(224, 512, 19, 113),
    "RN50x4": Model(288, 640, 41, 174),
    "RN50x16": Model(384, 768, 106, 335),
    "RN50x64": Model(448, 1024, 552, 840),
    "ViT-B-32": Model(224, 512, 8.8, 175, 1000 / 15614),
    "ViT-B-16": Model(224, 512, 35, 172, 1000 / 7492),
    "ViT-L-14": Model(224, 768, 162, 608, 1000 / 2108),
    "ViT-L-14-336": Model(336, 768, 381, 610),
}


def milliseconds() -> dict[str, float]:
    """What an image takes of a GPU, by backbone."""
    left = NINE_MS - sum(model.ms for model in NINE.values())
    gflops = sum(model.gflops for model in NINE.values() if not model.ms)
    return {name: model.ms or left * model.gflops / gflops for name, model in NINE.items()}


class Highest(threading.Thread):
    """Looks at a number again and again, and keeps the highest."""

    def __init__(self, look: Callable[[], int], every: float):
        super().__init__(daemon=True)
        self.look, self.every, self.most = look, every, 0
        self.over = threading.Event()

    def run(self) -> None:
        """Look until it is over."""
        while not self.over.wait(self.every):
            with contextlib.suppress(Exception):  # a busy raylet answers another time
                self.most = max(self.most, self.look())

    def __enter__(self) -> "Highest":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.join()


class Asleep:
    """An encoder that holds the GPU for as long as its backbone would compute, and notes when.

    Args:
        folder: of the GPU's lock and of what is noted. seconds: of the GPU for an image.
    """

    def __init__(self, name: str, folder: Path, seconds: float, side: int, dim: int):
        self.name, self.folder, self.seconds, self.dim = name, folder, seconds, dim
        self.preprocess = Preprocess((side, side))

    def images(self, crops_NHWC: np.ndarray, batch_size: int) -> np.ndarray:
        """Sleep a batch at a time, and make up embeddings."""
        for first in range(0, len(crops_NHWC), batch_size):
            count = min(batch_size, len(crops_NHWC) - first)
            with (self.folder / "gpu.lock").open("wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                begin = time.time()
                time.sleep(count * self.seconds)
                note(self.folder / "slept", [self.name, begin, time.time(), count])
        return np.random.default_rng(0).standard_normal((len(crops_NHWC), self.dim), np.float32)


class Sleeper(encode.Embedder):
    """The actor of a pool, whose model sleeps."""

    def __init__(self, folder: Path, seconds: dict[str, float], shrink: int, *arguments):
        self.made_up = folder, seconds, shrink
        super().__init__(*arguments)

    def load(self, device: str, compiled: int) -> Asleep:
        """Load nothing."""
        folder, seconds, shrink = self.made_up
        model = NINE[self.spec.name]
        return Asleep(
            self.spec.name, folder, seconds[self.spec.name], model.side // shrink, model.dim
        )


def note(path: Path, facts: list) -> None:
    """Add a line to a file of this process."""
    with path.with_name(f"{path.name}-{os.getpid()}.jsonl").open("a") as file:
        file.write(f"{json.dumps(facts)}\n")


def noted(folder: Path, name: str) -> list[list]:
    """Read what all processes have noted."""
    files = [path.read_text().splitlines() for path in folder.glob(f"{name}-*.jsonl")]
    return [json.loads(line) for lines in files for line in lines]


def status(name: str, path: str = "/proc/self/status") -> int:
    """Read a number that the kernel counts for this process."""
    return int(re.search(rf"{name}:\s+(\d+)", Path(path).read_text())[1])


def counted(table: pa.Table, folder: Path, **how) -> Iterator[pa.Table]:
    """Decode as `decode` does, and note the bytes that it read and the most memory that its process had for itself."""
    before = status("rchar", "/proc/self/io")
    with Highest(lambda: 1024 * status("RssAnon"), 0.02) as memory:
        yield from decode.decode(table, **how)
    read = status("rchar", "/proc/self/io") - before
    note(folder / "decoded", [read, memory.most])


def planned(root: Path, images: int, shrink: int, seconds: dict[str, float]) -> Plan:
    """Plan the campaign over made-up images, with all that models would have to be loaded for made up."""
    # in a process of its own, so that making them counts for nothing
    maker = get_context("spawn").Process(target=write_images, args=(root / "tiny", images, PADDING))
    maker.start()
    maker.join()
    entry = {"name": "tiny", "format": "parquet", "uri": str(root / "tiny"), "splits": ["test"]}
    entry |= {"classnames": ["a", "b"], "templates": ["a {c}"]}
    (root / "tiny.yaml").write_text(yaml.safe_dump(entry))
    made = CONFIGS / "backbones" / "vit-p6-36"  # some files that backbones are said to be of
    entry = {"architecture": "clipray-vit-p6-36", "weights": str(made / "model.safetensors")}
    entry |= {"config": str(made / "clipray-vit-p6-36.json")}
    for name in NINE:
        (root / f"{name}.yaml").write_text(yaml.safe_dump({"name": name} | entry))
    campaign = Campaign(
        workspace=str(root / "workspace"),
        datasets=[str(root / "tiny.yaml")],
        backbones=[str(root / f"{name}.yaml") for name in NINE],
        precision="fp16",
        shots=(),
        compute={"gpu_memory": 80 * 10**9},
    )
    todo = run.plan(campaign, dry=True)
    for spec in todo.specs:
        make_up(todo, spec, NINE[spec.name], shrink, seconds[spec.name])
    return run.plan(campaign, dry=True)


def make_up(todo: Plan, spec: Backbone, model: Model, shrink: int, seconds: float) -> None:
    """Write a backbone's card and class vectors."""
    side = model.side // shrink
    card = {"preprocess": list(Preprocess((side, side))), "dim": model.dim, "scale": 100.0}
    card |= {"bias": 0.0, "image_gflops": model.gflops, "memory_mb": model.memory_mb}
    card |= {"seconds_per_image": seconds, "decode_seconds": 0.02}
    cards.write(todo.store, spec, "fp16", card, "cuda")
    prompts = todo.prompts["tiny"]
    what = classifiers.what(spec, "fp16", prompts)
    weights_CD = np.eye(2, model.dim, dtype=np.float32)
    place = classifier_place(todo, spec, "tiny")
    classifiers.write(todo.store, place, what, prompts["classnames"], weights_CD)


def stored() -> object:
    """What Ray's object store on this machine tells of itself."""
    from ray._private.internal_api import node_stats

    (node,) = ray.nodes()
    where = node["NodeManagerAddress"], node["NodeManagerPort"]
    return node_stats(*where, include_memory_info=False).store_stats


def busy(slept: list[list]) -> dict:
    """How much of its time the GPU was slept for: all of it, and while every backbone had images."""
    first, last = min(begin for _, begin, *_ in slept), max(end for _, _, end, _ in slept)
    spans = {name: [one for one in slept if one[0] == name] for name in NINE}
    loaded = max(min(begin for _, begin, *_ in own) for own in spans.values())
    drained = min(max(end for _, _, end, _ in own) for own in spans.values())
    whole = sum(end - begin for _, begin, end, _ in slept)
    inside = sum(max(0.0, min(end, drained) - max(begin, loaded)) for _, begin, end, _ in slept)
    facts = {"gpu_seconds": round(last - first, 1), "busy": round(whole / (last - first), 3)}
    if drained > loaded:
        facts |= {"loaded_seconds": round(drained - loaded, 1)}
        facts |= {"busy_loaded": round(inside / (drained - loaded), 3)}
    return facts


def measure(root: Path, told: argparse.Namespace) -> dict:
    """Embed, and tell what it took."""
    seconds = {name: told.slower * ms / 1000 for name, ms in milliseconds().items()}
    todo = planned(root, told.images, told.shrink, seconds)
    facts = vars(told) | {"gpu_ms_per_image": round(1000 * sum(seconds.values()), 2)}
    encode.Embedder = partial(Sleeper, root, seconds, told.shrink)
    embed.decode = partial(counted, folder=root)
    before = stored().cumulative_created_bytes
    start, used = time.perf_counter(), time.process_time()
    with Highest(lambda: stored().object_store_bytes_used, POLL) as store:
        run.prepare(todo)
        run.embed_images(todo)
    facts["seconds"] = round(time.perf_counter() - start, 1)
    facts["driver_cpu_s"] = round(time.process_time() - used, 1)
    facts["driver_peak_mb"] = round(status("VmHWM") / 1e3)
    assert not todo.failures, todo.failures[:3]
    start = time.perf_counter()
    assert run.plan(todo.campaign, dry=True).images == 0
    facts["plan_again_s"] = round(time.perf_counter() - start, 2)
    slept, decoded = noted(root, "slept"), noted(root, "decoded")
    assert sum(count for *_, count in slept) == told.images * len(NINE)
    now, each = stored(), told.images * 1e6
    facts["store_mb_per_image"] = round((now.cumulative_created_bytes - before) / each, 3)
    facts["spilled_mb_per_image"] = round(now.spilled_bytes_total / each, 3)
    facts["store_peak_mb"] = round(store.most / 1e6)
    read, size = sum(read for read, _ in decoded), todo.spent["bytes_read"]
    facts["read_per_byte"] = round(read / size, 3)
    facts["decoder_peak_mb"] = round(max(peak for _, peak in decoded) / 1e6)
    facts["actors"] = len(list(root.glob("slept-*.jsonl")))
    facts |= busy(slept)
    return facts | {"images_per_s": round(told.images / facts["gpu_seconds"], 1)}


def main() -> None:
    """Start Ray as if there were a GPU, and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=int)
    parser.add_argument("--slower", type=float, default=1.0, help="times the seconds of the GPU")
    parser.add_argument("--shrink", type=int, default=1, help="divides the sides of crops")
    parser.add_argument("--cpus", type=int, default=2 * (os.cpu_count() or 1), help="told to Ray")
    parser.add_argument("--store-gb", type=float, default=6.0, help="Ray's object store")
    told = parser.parse_args()
    hush()
    cluster.quiet()
    with tempfile.TemporaryDirectory() as folder:
        ray.init(
            address="local",
            num_cpus=told.cpus,
            num_gpus=1,
            object_store_memory=int(told.store_gb * 1e9),
            include_dashboard=False,
            log_to_driver=False,
        )
        print(json.dumps(measure(Path(folder), told)))
        ray.shutdown()


if __name__ == "__main__":
    main()
