"""How much of a machine the embedding pipeline uses, beside a plain loop and the usual DataLoader.

    python benchmarks/embed.py                                     the five shipped backbones, bundled sets
    python benchmarks/embed.py --backbones ViT-B-32 --images 1500  architectures of open_clip, photos
    python benchmarks/embed.py --backbones RN50,ViT-B-32,ViT-B-16 --photos FOLDER --precision fp16

Three ways over the same images in the same run:

- the floor, one process: each image decoded once, cropped once per preprocess group, then every model over a shard at
  a time, with as many threads as there are cores;
- the loop that people write: for each backbone a `DataLoader` with a worker a core, and `encode_image` on its batches;
- the pipeline, on a local Ray.

Floor and loop start with loaded models. The pipeline is timed in two ways: whole, from the first image that it decodes
to the last file, with the loading of its models; and loaded, from the moment at which the last model has its first
images: what was done from then on, in seconds of the floor, by the seconds that it took. On a GPU the floor of that is
the models' time alone, for others decode: it is the share of its time that the GPU works as fast as it can.

Architectures of open_clip get random weights, which cost as much time as trained ones. Photos are made up, 500×375
pixels, unless a folder has some.
"""

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml

from clipray import backbones, images, sources
from clipray.artefacts import index
from clipray.config import Campaign
from clipray.steps import campaign as run
from clipray.steps import cluster, resources
from clipray.steps.embed import plan as embed
from clipray.steps.spent import DECODING
from clipray.steps.todo import Plan, known_cards

BUNDLED = ("digits", "textures", "glyph-letters", "coloured-shapes")
OPENAI = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
PHOTOS = (".jpg", ".jpeg", ".png", ".webp")


class Floor(NamedTuple):
    """What a plain loop took.

    Attributes:
        seconds: of an image, decoding and with each backbone. shard: the first one. embeddings: of it, by backbone.
    """

    seconds: dict[str, float]
    shard: str
    embeddings: dict[str, np.ndarray]


class Ran(NamedTuple):
    """What the pipeline took.

    Attributes:
        images: that it embedded. whole: seconds from the first decoding to the end. loading: seconds of it until each
            model had its first images. loaded: the rest, in seconds. ended: by stage, how many images it passed in it.
    """

    images: int
    whole: float
    loading: float
    loaded: float
    ended: dict[str, int]


def write_photos(folder: Path, count: int, given: str) -> None:
    """Write images as a folder of one class; each differs from the others in bytes that decoders pass over."""
    found = [path for path in sorted(Path(given).rglob("*")) if path.suffix.lower() in PHOTOS]
    data = [path.read_bytes() for path in found[:count]] if given else [images.photo()]
    own = folder / "test" / "thing"
    own.mkdir(parents=True)
    for number, one in zip(range(count), itertools.cycle(data), strict=False):
        (own / f"{number:07d}.jpg").write_bytes(one + f"{number}".encode())


def write_dataset(folder: Path, count: int, given: str) -> str:
    """Write photos and their dataset's file, and return its path."""
    write_photos(folder / "photos", count, given)
    entry = {"name": "photos", "format": "folder", "uri": str(folder / "photos")}
    entry |= {"splits": ["test"], "classnames": ["thing"], "templates": ["a photo of a {c}."]}
    path = folder / "photos.yaml"
    path.write_text(yaml.safe_dump(entry))
    return str(path)


def write_backbone(folder: Path, architecture: str) -> str:
    """Write an architecture's random weights and its backbone's file, and return its path."""
    import open_clip

    torch.manual_seed(0)
    model = open_clip.create_model(architecture)
    weights = folder / f"{architecture}.pt"
    torch.save(model.half().state_dict(), weights)
    entry = {"name": architecture.lower(), "architecture": architecture, "preprocess": OPENAI}
    path = folder / f"{architecture}.yaml"
    path.write_text(yaml.safe_dump(entry | {"weights": str(weights)}))
    return str(path)


def planned(folder: Path, options: argparse.Namespace) -> Plan:
    """Plan the campaign whose images are embedded."""
    datasets: Sequence[str] = BUNDLED
    if options.images or options.photos:
        datasets = [write_dataset(folder, options.images or 1500, options.photos)]
    names: Sequence[str] = ("shipped",)
    if options.backbones:
        with ThreadPoolExecutor() as threads:
            wanted = options.backbones.split(",")
            names = list(threads.map(lambda name: write_backbone(folder, name), wanted))
    campaign = Campaign(
        workspace=str(folder / "workspace"),
        datasets=tuple(datasets),
        backbones=tuple(names),
        precision=options.precision,
        shots=(),
        compute={
            "device": options.device,
            "batch_size": options.batch_size,
            "compile": options.compile,
        },
    )
    return run.plan(campaign)


def shards(todo: Plan, most: int) -> list[tuple[index.Index, index.Shard]]:
    """The first shards of the campaign, with about as many images as `most`."""
    found, count = [], 0
    for work in todo.works.values():
        for shard in work.shards():
            if count < most:
                found.append((work.index, shard))
                count += shard.rows
    return found


def loaded(todo: Plan, device: str) -> list[backbones.Encoder]:
    """Load every backbone, and run it once."""
    made = [backbones.load(spec, todo.campaign.precision, device) for spec in todo.specs]
    for encoder in made:
        black = np.zeros((todo.campaign.compute.batch_size, *encoder.preprocess.size, 3), np.uint8)
        for _ in range(2 if device == "cuda" else 1):
            encoder.images(black[: None if device == "cuda" else 1], len(black))
    return made


def floor(todo: Plan, encoders: Sequence[backbones.Encoder], most: int) -> Floor:
    """Decode and crop some images, and run every backbone over them, in a plain loop."""
    groups = sorted({encoder.preprocess for encoder in encoders})
    seconds = dict.fromkeys([DECODING, *(encoder.spec.name for encoder in encoders)], 0.0)
    count, kept = 0, {}
    chosen = shards(todo, most)
    for own, shard in chosen:
        start = time.perf_counter()
        crops: dict = {group: [] for group in groups}
        rows, chunks = index.read(todo.store, own.place, *shard[1:])
        for data in sources.contents(chunks, rows):
            image = images.decode(data)
            for group in groups:
                crops[group].append(images.crop(image, group))
        seconds[DECODING] += time.perf_counter() - start
        for encoder in encoders:
            crops_NHWC = np.stack(crops[encoder.preprocess])
            start = time.perf_counter()
            made_ND = encoder.images(crops_NHWC, todo.campaign.compute.batch_size)
            seconds[encoder.spec.name] += time.perf_counter() - start
            kept.setdefault(encoder.spec.name, made_ND)
        count += len(rows)
    each = {name: value / count for name, value in seconds.items()}
    return Floor(each, chosen[0][1].name, kept)


def least_cosine(todo: Plan, known: Floor) -> float:
    """Compare the pipeline's files of the first shard with what the floor made of it."""
    work, found = next(iter(todo.works.values())), []
    for name, own_ND in known.embeddings.items():
        table = todo.store.read_table(f"{work.addresses[name]}/{known.shard}", ["embedding"])
        file_ND = np.array(table["embedding"].to_pylist(), np.float64)
        lengths = np.linalg.norm(file_ND, axis=1) * np.linalg.norm(own_ND, axis=1)
        found.append(((file_ND * own_ND).sum(axis=1) / lengths).min())
    return float(min(found))


class Decoded(torch.utils.data.Dataset):
    """Images as a backbone wants them, one at a time."""

    def __init__(self, files: Sequence[bytes], group: images.Preprocess):
        self.files, self.group = files, group

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> np.ndarray:
        return images.crop(images.decode(self.files[number]), self.group)


def loop(todo: Plan, encoders: Sequence[backbones.Encoder], most: int) -> float:
    """Seconds that an image takes with all backbones, each behind a DataLoader of its own."""
    data = []
    for own, shard in shards(todo, most):
        rows, chunks = index.read(todo.store, own.place, *shard[1:])
        data += sources.contents(chunks, rows)
    start = time.perf_counter()
    for encoder in encoders:
        loader = torch.utils.data.DataLoader(
            Decoded(data, encoder.preprocess),
            batch_size=todo.campaign.compute.batch_size,
            num_workers=os.cpu_count() or 1,
            pin_memory=encoder.device == "cuda",
        )
        kept = [encoder.images(batch.numpy(), len(batch)) for batch in loader]
        assert sum(map(len, kept)) == len(data)
    return (time.perf_counter() - start) / len(data)


def pipeline(todo: Plan) -> Ran:
    """Embed everything by Ray."""
    run.prepare(todo)
    known = known_cards(todo)
    own = {name: known[name] for name in todo.busy}
    pools, device, _ = resources.pools(own, todo.campaign.compute, verbose=False)
    for name, pool in pools.items():
        print(f"    pool of {name}: {pool.size} × {pool.num_gpus or pool.num_cpus:g}", flush=True)
    works = list(todo.works.values())
    spans, count = [], 0
    for done in embed.run(todo.store, works, todo.specs, todo.campaign, known, pools, device):
        assert not done["broken"], done["broken"]
        spans += [(name, *span, done["images"]) for name, span in done["spent"].items()]
        count += done["images"]
    first = min(begin for _, begin, *_ in spans)
    last = max(end for *_, end, _ in spans)
    begun = [min(span[1] for span in spans if span[0] == name) for name in todo.busy]
    ready = max(begun)
    ended = dict.fromkeys([DECODING, *todo.busy], 0)
    for name, _, end, number in spans:
        ended[name] += number if end > ready else 0
    for name, pool in pools.items():
        own = [span for span in spans if span[0] == name and span[2] > ready]
        worked = sum(end - max(begin, ready) for _, begin, end, _ in own)
        print(f"    {name} worked {worked / pool.size / (last - ready):.2f} of its time, loaded")
    return Ran(count, last - first, ready - first, last - ready, ended)


def main() -> None:
    """Run all three and print the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbones", default="", help="architectures of open_clip, by commas")
    parser.add_argument("--images", type=int, default=0, help="photos; default: bundled sets")
    parser.add_argument("--photos", default="", help="a folder of photos, taken again and again")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "fp16", "bf16"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--compile", action="store_true", help="compile the pipeline's models")
    parser.add_argument("--sample", type=int, default=512, help="images of floor and loop")
    parser.add_argument("--no-loop", action="store_true", help="leave out the DataLoader")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        todo = planned(Path(folder), options)
        encoders = loaded(todo, options.device)
        known = floor(todo, encoders, options.sample)
        for name, value in known.seconds.items():
            print(f"    floor of {name}: {1 / value:.1f} images/s", flush=True)
        looped = None if options.no_loop else loop(todo, encoders, options.sample)
        encoders.clear()
        torch.cuda.empty_cache()  # does nothing without a GPU
        cluster.connect(todo.campaign.compute, verbose=False)
        ran = pipeline(todo)
        cosine = least_cosine(todo, known)
    counted = known.seconds | ({} if options.device == "cpu" else {DECODING: 0.0})
    plain = sum(counted.values())
    whole = ran.images / ran.whole
    steady = sum(counted[name] * number for name, number in ran.ended.items()) / ran.loaded
    print(f"floor:    {1 / plain:8.1f} images/s")
    print(f"pipeline: {whole:8.1f} images/s, {ran.loading:.1f} of {ran.whole:.1f} s are loading")
    print(f"pipeline / floor: {plain * whole:.2f} whole; {steady:.2f} loaded")
    if looped:
        print(f"loop:     {1 / looped:8.1f} images/s")
        print(f"pipeline / loop:  {looped * whole:.2f} whole; {steady * looped / plain:.2f} loaded")
    print(f"least cosine of the pipeline's files to the floor's embeddings: {cosine:.6f}")


if __name__ == "__main__":
    main()
