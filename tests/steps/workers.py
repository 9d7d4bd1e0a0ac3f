"""What the workers of a campaign do with images, without a model: these are decoded, and vectors are made up."""

import pickle
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from clipray import images
from clipray.artefacts.embeddings import Work, embedded
from clipray.steps.embed.decode import decode
from clipray.steps.embed.plan import items
from clipray.steps.tally import Tally, failures_of
from clipray.steps.todo import Plan
from clipray.store import Store

GROUP = images.Preprocess((8, 8))
DIM = 4


def embed(store: Store, work: Work, shards: Sequence[int] | None = None) -> dict[str, Tally]:
    """Embed shards of a split, all of them by default; what workers tell, by backbone."""
    told = {name: Tally() for name in work.addresses}
    groups = dict.fromkeys(told, GROUP)
    for number, item in enumerate(items(work)):
        if shards is not None and number not in shards:
            continue
        for row in decode(pa.Table.from_pylist([item]), store, groups, 10**8):
            _write(store, pickle.loads(row["task"][0].as_py()), told)
    return told


def _write(store: Store, task: dict, told: dict[str, Tally]) -> None:
    good = task["rows"]["error"].null_count
    for name in task["todo"]:
        part = embedded(task["rows"], np.ones((good, DIM), np.float32), DIM, "fp32")
        store.write_table(task["places"][name], part)
        told[name].add(task["shard"], task["content"], failures_of(part))


def embed_all(todo: Plan) -> dict[tuple[str, str], dict[str, Tally]]:
    """Embed what a plan lacks; what workers tell, by split and backbone."""
    return {place: embed(todo.store, work) for place, work in todo.works.items()}
