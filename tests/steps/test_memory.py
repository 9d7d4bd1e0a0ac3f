"""What actors take, against what was measured; and asks for memory, which never keep a run from finding room."""

import json
import multiprocessing
import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clipray import catalog, images
from clipray.config import Compute, Pool
from clipray.encoding import column
from clipray.steps import nodes
from clipray.steps.crews import Member, fitted, manned
from clipray.steps.embed.encode import Embedder
from clipray.steps.memory import CUDA, WORKER, Actors, Decoding, asked, taken
from clipray.steps.nodes import Node
from clipray.store import Store
from tests.heads import apart

# An actor in Ray on a CPU, torch 2.15: 10⁶ bytes of weights, side of the crops, batch, most 10⁶ bytes for itself
# (RssAnon, looked at 50 times a second). Random weights in fp16 files; fp32 but for the last.
MEASURED = {
    "rn-32": (8.4, 32, 64, 650),
    "vit-p8-40": (3.4, 40, 64, 652),
    "convnext-48": (7.7, 48, 64, 663),
    "ViT-B-32": (351, 224, 64, 1791),
    "ViT-B-32 by 16": (351, 224, 16, 1561),
    "ViT-B-32 by 128": (351, 224, 128, 1951),
    "ViT-B-16": (345, 224, 64, 1986),
    "RN50": (153, 224, 64, 2230),
    "RN50 by 16": (153, 224, 16, 1504),
    "RN50 by 128": (153, 224, 128, 2745),
    "RN50x4 by 16": (349, 288, 16, 2170),
    "convnext_base": (352, 224, 64, 2623),
    "ViT-L-14": (1216, 224, 64, 3387),
    "ViT-B-32 in bf16": (176, 224, 64, 1446),
}
GB = 10**9


def card(memory_mb: float, side: int) -> dict:
    return {
        "memory_mb": memory_mb,
        "preprocess": [[side, side], "bicubic", "shortest", 0],
        "seconds_per_image": 1.0,
    }


@pytest.mark.parametrize("name", MEASURED)
def test_an_actor_takes_what_was_measured(name):
    memory_mb, side, batch, most = MEASURED[name]
    estimate = taken([card(memory_mb, side)], batch, gpu=False) / 1e6
    assert 0.45 * estimate < most < estimate


@pytest.mark.parametrize(
    ("members", "most"),
    [
        (["rn-32", "vit-p8-40", "convnext-48"], 774),  # the larger of two crews of the five shipped
        (["ViT-B-32", "RN50"], 2738),
    ],
)
def test_a_crew_takes_one_process_and_the_weights_of_all(members, most):
    cards = [card(*MEASURED[name][:2]) for name in members]
    together = taken(cards, 64, gpu=False) / 1e6
    assert 0.45 * together < most < together
    assert together < sum(taken([one], 64, gpu=False) for one in cards) / 1e6


def held(root: str) -> int:
    """Embed a shard with a shipped backbone; the bytes that this process has for itself."""
    (spec,) = catalog.backbones(("convnext-48",))
    group = images.Preprocess((48, 48))
    actor = Embedder(Store(root), spec, "fp32", "cpu", 64, column(group))
    crops = np.zeros((256, 48, 48, 3), np.uint8)
    data = pa.array([crops.tobytes()], pa.large_binary())
    rows = pa.table({"image_id": [str(n) for n in range(256)], "label": [0] * 256})
    rows = rows.append_column("error", pa.nulls(256, pa.string()))
    task = {"rows": rows, "places": {spec.name: "shard"}, "errors": {}}
    assert actor.embed(task, pa.table({column(group): data})) is None
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc/self/status")
def test_an_actor_takes_no_more_than_is_estimated(tmp_path):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        most = pool.apply(held, (str(tmp_path),))
    estimate = taken([card(*MEASURED["convnext-48"][:2])], 64, gpu=False)
    assert estimate / 3 < most < estimate


def test_where_there_is_enough_each_asks_for_what_it_takes():
    two = [Actors(Pool(size=2), 2 * GB), Actors(Pool(size=1, num_cpus=0.5), 3 * GB)]
    assert asked(two, [Node(4, 0, 16 * GB)], Decoding(0.5, GB)) == [2 * GB, 3 * GB]


def test_where_there_is_not_all_ask_for_the_same_part():
    """0.9 of 10 GB, of which one is decoding's, for 4 and 12 GB: each asks for half of what it takes."""
    two = [Actors(Pool(size=2), 2 * GB), Actors(Pool(size=2), 6 * GB)]
    assert asked(two, [Node(5, 0, 10 * GB)], Decoding(0.5, GB)) == [1 * GB, 3 * GB]
    # three CPUs hold two of the large and one of the small, at most: 14 GB, of which 7 are there
    own = asked(two, [Node(3, 0, 10 * GB)], Decoding(0.5, 2 * GB))
    assert own == pytest.approx([1 * GB, 3 * GB], rel=1e-6)


@pytest.mark.parametrize("seed", range(300))
def test_what_fits_by_cpus_and_gpus_fits_by_memory_wherever_it_is_put(seed):
    random = np.random.default_rng(seed)
    nodes = [some_node(random) for _ in range(random.integers(1, 6))]
    actors = [some_actors(random) for _ in range(random.integers(1, 7))]
    largest = max(node.memory for node in nodes)
    decoding = Decoding(
        float(random.choice([0.25, 0.5, 1])), min(random.uniform(0, 4) * GB, largest)
    )
    asks = asked(actors, nodes, decoding)
    for ask, own in zip(asks, actors, strict=True):
        assert 0 <= ask <= own.memory
    waiting = [
        (own.pool, ask) for own, ask in zip(actors, asks, strict=True) for _ in range(own.most)
    ]
    for _ in range(10):  # nodes as any scheduler may fill them
        free = np.array(nodes, float)
        for number in random.permutation(len(waiting)):
            pool, ask = waiting[number]
            fits = [
                n
                for n, own in enumerate(free)
                if own[0] >= pool.num_cpus and own[1] >= pool.num_gpus
            ]
            assert all(free[n][2] >= ask for n in fits), (nodes, actors, asks)
            if fits:
                free[random.choice(fits)] -= pool.num_cpus, pool.num_gpus, ask
        for node, left in zip(nodes, free, strict=True):
            if left[0] >= decoding.cpus and node.memory >= decoding.memory:
                assert left[2] >= decoding.memory, (nodes, actors, asks, decoding)


def some_node(random: np.random.Generator) -> Node:
    cpus = random.choice([0, 1, 2, 8, 16])
    return Node(cpus, random.choice([0, 0, 1, 4]), random.choice([0, 1, 4, 16, 64]) * GB)


def some_actors(random: np.random.Generator) -> Actors:
    """On CPUs, on parts of GPUs, or on neither, as the last pool of a prediction; some pools grow."""
    cpus = random.choice([0, 0.125, 0.5, 1, 2])
    gpus = random.choice([0, 0, 0.25, 0.5, 1])
    size, more = random.integers(1, 5), random.choice([0, 8])
    pool = Pool(size=size, max_size=more, num_cpus=cpus, num_gpus=gpus)
    return Actors(pool, random.uniform(0.5, 6) * GB)


def test_a_node_that_does_not_say_what_it_has_or_has_none_to_spare_is_asked_for_none():
    cpu, gpu = Actors(Pool(size=1), 2 * GB), Actors(Pool(size=1, num_cpus=0, num_gpus=0.5), GB)
    large = Node(8, 0, 64 * GB)
    decoding = Decoding(0.5, 2 * GB)
    assert asked([cpu], [large, Node(2, 0, 0)], decoding) == [0]
    assert asked([cpu], [large, Node(2, 0, 2 * GB)], decoding) == [0]
    assert asked([cpu], [large, Node(0, 0, 0)], decoding) == [2 * GB]  # a head, which holds none
    assert asked([cpu, gpu], [large, Node(0, 1, 0)], decoding) == [2 * GB, 0]
    assert asked([gpu], [large], decoding) == [0]  # where no node has what it needs


def test_pools_ask_for_what_their_backbones_take_on_the_nodes_that_are_there(monkeypatch):
    cards = {"a": card(351, 224), "b": card(153, 224)}
    members = {name: Member(dict, f"crops {name}") for name in cards}
    monkeypatch.setattr(nodes, "coming", list)
    monkeypatch.setattr(nodes, "present", lambda: [Node(16, 2, 64 * GB)])
    for gpus, more in ((0, 120 * 64 * 3 * 224**2), (1, CUDA)):
        pools = dict.fromkeys(cards, Pool(size=1, num_gpus=gpus))
        crews = manned(members, pools, cards, 64)
        own, asks = fitted(crews, Compute(), 10**9)
        assert own == list(pools.values())
        assert asks == [WORKER + more + 3 * 351 * 10**6, WORKER + more + 3 * 153 * 10**6]
    monkeypatch.setattr(nodes, "present", lambda: [Node(16, 2, 4 * GB)])
    assert sum(fitted(crews, Compute(), 10**9)[1]) == pytest.approx(0.9 * 4 * GB - 10**9, abs=2)


# In a process of its own, for this Ray has less memory than the others of a session.
SHORT = """
import json, sys
from pathlib import Path
import ray
from clipray.config import Campaign
from clipray.progress import heartbeat
from clipray.steps import campaign as run
from clipray.steps.embed import encode, plan

workspace = Path(sys.argv[1])


class Told(encode.Embedder):
    def load(self, device, compiled):
        own = ray.get_runtime_context().get_assigned_resources()
        (workspace / f"{self.spec.name}.json").write_text(json.dumps(own))
        return super().load(device, compiled)


encode.Embedder = Told
ray.init(address="local", num_cpus=4, _memory=int(sys.argv[2]), object_store_memory=200_000_000,
         include_dashboard=False, log_to_driver=False, logging_level="ERROR",
         runtime_env={"env_vars": {"PYTHONPATH": sys.argv[3]}})
names = ["vit-p6-36", "rn-32", "convnext-48"]
values = {"workspace": str(workspace), "datasets": ["colours"], "backbones": names}
todo = run.plan(Campaign(**values, precision="fp32", shots=(1,), seeds=1))
with heartbeat():
    run.prepare(todo)
    run.embed_images(todo)
assert todo.failures == [], todo.failures
assert run.plan(todo.campaign).images == 0
print("DONE", ray.cluster_resources()["memory"])
ray.shutdown()
"""


def test_a_chain_finishes_where_the_memory_is_less_than_its_actors_take(tmp_path):
    workspace, memory = tmp_path / "workspace", 1_500_000_000
    workspace.mkdir()
    done = apart(SHORT, str(workspace), str(memory), environment=dict(os.environ), timeout=400)
    assert f"DONE {memory}" in done.stdout
    told = [json.loads(path.read_text()) for path in workspace.glob("*.json")]
    asks = [own["memory"] for own in told]
    assert len(asks) == 3
    assert 0 < sum(asks) < memory - Compute().decode_memory < 3 * WORKER
    assert all(own["CPU"] == 1 for own in told)
