"""How much of the machine the embedding pipeline uses.

    python benchmarks/embed.py

Embeds small bundled sets with the five shipped backbones twice in the same run: by the pipeline (a local Ray; its
start-up and the loading of models are timed apart), and by the floor, a plain loop in one process that decodes each
image once, crops it once per preprocess group and runs every model over it, with as many threads as there are cores.
Prints images per second of both and their ratio, and what decoding anew for every backbone would cost.
"""

import tempfile
import time

import numpy as np

from clipray import backbones, images, sources
from clipray.artefacts import index
from clipray.config import Campaign
from clipray.steps import campaign as run
from clipray.steps import cluster
from clipray.steps.embed import measure as cards
from clipray.steps.embed import plan as embed
from clipray.steps.pools import cost_of, share
from clipray.steps.todo import known_cards

DATASETS = ("digits", "textures", "glyph-letters", "coloured-shapes")


def campaign(workspace: str) -> Campaign:
    """The benchmark's campaign."""
    what = {
        "datasets": DATASETS,
        "backbones": ("shipped",),
        "precision": "fp32",
        "heads": ("zero_shot",),
        "seeds": 1,
    }
    return Campaign(workspace=workspace, **what)


def pipeline(workspace: str) -> tuple[int, float, float]:
    """Images, seconds until the first shard is done, seconds from there to the last."""
    todo = run.plan(campaign(workspace))
    run.prepare(todo)
    resources = cluster.connect(todo.campaign.compute, verbose=False)
    known = known_cards(todo)
    costs = {name: cost_of(known[name]) for name in todo.busy}
    pools = share(costs, resources["CPU"], 0, todo.campaign.compute)
    start, first, rest = time.perf_counter(), None, 0
    for done in embed.run(
        todo.store, list(todo.works.values()), todo.specs, todo.campaign, known, pools, "cpu"
    ):
        if first is None:
            first = time.perf_counter()
        else:
            rest += done["images"]
    return rest, first - start, time.perf_counter() - first


def floor(workspace: str) -> tuple[int, float, float]:
    """Images, seconds of decoding and cropping, seconds of the models, in a plain loop."""
    todo = run.plan(campaign(workspace))
    encoders = [backbones.load(spec) for spec in todo.specs]
    groups = sorted({encoder.preprocess for encoder in encoders})
    for encoder in encoders:
        cards.measure(encoder)  # warm
    count, decoding, models = 0, 0.0, 0.0
    for work in todo.works.values():
        for shard in work.shards():
            start = time.perf_counter()
            crops: dict = {group: [] for group in groups}
            rows, chunks = index.read(todo.store, work.index.place, *shard[1:])
            for data in sources.contents(chunks, rows):
                image = images.decode(data)
                for group in groups:
                    crops[group].append(images.crop(image, group))
            middle = time.perf_counter()
            for encoder in encoders:
                encoder.images(
                    np.stack(crops[encoder.preprocess]), todo.campaign.compute.batch_size
                )
            decoding, models = decoding + middle - start, models + time.perf_counter() - middle
            count += len(rows)
    return count, decoding, models


def main() -> None:
    """Run both and print the ratio."""
    with tempfile.TemporaryDirectory() as workspace:
        count, decoding, models = floor(workspace)
        done, loading, seconds = pipeline(workspace)
    plain, piped = count / (decoding + models), done / seconds
    print(
        f"floor:    {plain:8.1f} images/s in one process ({decoding:.1f} s decoding, {models:.1f} s models)"
    )
    print(
        f"pipeline: {piped:8.1f} images/s after the first shard ({loading:.1f} s of loading before it)"
    )
    print(f"ratio:    {piped / plain:8.2f}")
    print(
        f"decoding once for five backbones, not five times, saves {4 * decoding / (5 * decoding + models):.0%} of work"
    )


if __name__ == "__main__":
    main()
