"""A decoding task holds no more than it asks for, and crops are passed on as few times as they can be."""

import multiprocessing
import re
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

from clipray.artefacts import embeddings
from clipray.artefacts import index as parts
from clipray.config import Backbone, Campaign, Compute, Dataset
from clipray.encoding import crop_bytes
from clipray.images import Preprocess, photo
from clipray.steps.crops import decode_memory
from clipray.steps.embed.decode import decode
from clipray.steps.embed.plan import items, members_of
from clipray.steps.indices import listed, source
from clipray.steps.mappers import in_threads
from clipray.store import Store

NINE = {"RN50": 224, "RN101": 224, "RN50x4": 288, "RN50x16": 384, "RN50x64": 448}
NINE |= {"ViT-B-32": 224, "ViT-B-16": 224, "ViT-L-14": 224, "ViT-L-14-336": 336}
GROUPS = {name: Preprocess((side, side)) for name, side in NINE.items()}


def held(root: Path) -> int:
    """Decode a shard of photos for nine backbones; the most bytes that this process has held."""
    for number in range(parts.SHARD_ROWS):
        place = root / "set" / "test" / f"class {number % 2}" / f"{number}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(photo())
    parts.FEW_SHARD_ROWS = parts.SHARD_ROWS
    dataset = Dataset(name="set", format="folder", uri=str(root / "set"), splits=("test",))
    store = Store(str(root / "workspace"))
    found = listed(source(store, dataset, "test", ""), in_threads, 0)
    work = embeddings.work(store, found, {name: {name: 1} for name in NINE})
    (item,) = items(work)
    (made,) = decode(pa.Table.from_pylist([item]), store, GROUPS, 10**8)
    assert made.nbytes > parts.SHARD_ROWS * crop_bytes(GROUPS.values())
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc/self/status")
def test_a_shard_takes_no_more_memory_than_is_asked_for(tmp_path):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        most = pool.apply(partial(held, tmp_path))
    asked = decode_memory(Compute(), GROUPS.values())
    assert asked / 2 < most < asked


def test_an_image_is_passed_through_nine_pools_in_less_than_five_megabytes(tmp_path):
    specs = [Backbone(name=name, architecture=name, pretrained="openai") for name in NINE]
    campaign = Campaign(workspace=str(tmp_path), datasets=["digits"], backbones=["RN50"])
    members = members_of(Store(str(tmp_path)), specs, campaign, GROUPS, "cpu")
    order = list(members)
    assert sorted(order) == sorted(NINE)
    takes_in = [crop_bytes(GROUPS[name] for name in order[at:]) for at in range(len(order))]
    assert sum(takes_in) < 5e6
