"""A collection teaches a fuser by sums over its shards: what it learns is what it would learn from all in memory."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
import torch

from clipray import schema
from clipray.artefacts import fused_model
from clipray.artefacts.embeddings import embedded
from clipray.artefacts.index import Index
from clipray.fusion import Fusion
from clipray.steps.predict import collection, sums
from tests.steps.predict.test_fit import lesson, made, method
from tests.steps.worlds import BACKBONES, DIM, World

IMAGES = 230
BAD = {3: "not an image", 40: "not an image", 41: "the embedding is not finite"}


def world_of(root, alike: bool) -> World:
    """Images whose text is good enough to be trusted; `alike`: two classes of one text in every backbone."""
    world = World(root, seed=3, test=IMAGES)
    for name in BACKBONES:
        if alike:
            world.weights[name][3] = world.weights[name][0]
        labels = world.labels["test"]
        noise = world.embeddings["test", name] - world.weights[name][labels]
        world.embeddings["test", name] = world.weights[name][labels] + 0.4 * noise
    return world


def shelved(world: World, rows: int) -> sums.Collection:
    """The test images in files of some rows, as embedding them leaves them."""
    count = len(world.ids["test"])
    table = pa.table(
        {
            "image_id": world.ids["test"],
            "chunk": np.zeros(count, np.int32),
            "row": np.arange(count, dtype=np.int32),
            "key": world.ids["test"],
            "offset": pa.nulls(count, pa.int64()),
            "size": np.ones(count, np.int64),
            "label": world.labels["test"],
            "error": [
                BAD.get(i) if "embedding" not in BAD.get(i, "") else None for i in range(count)
            ],
        },
        schema=schema.INDEX,
    )
    place = f"index-{rows}"
    world.store.write_table(f"{place}/000000.parquet", table)
    index = Index("made", "test", place, place, "", (count,), (0,), "content")
    for number, name in enumerate(BACKBONES):
        for start in range(0, count, rows):
            part = table.slice(start, rows)
            told = [
                BAD.get(start + i) if number == 1 else e
                for i, e in enumerate(part["error"].to_pylist())
            ]
            part = part.set_column(7, "error", pa.array(told, pa.string()))
            good = [start + i for i, error in enumerate(told) if error is None]
            values = world.embeddings["test", name][good].astype(np.float32)
            file = embedded(part, values, DIM, "fp32")
            world.store.write_table(f"e{rows}-{name}/{start:09d}.parquet", file)
    return sums.Collection(world.store, index, tuple(f"e{rows}-{name}" for name in BACKBONES))


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("fuser", ["transductive", "guarded"])
@pytest.mark.parametrize(("rows", "tasks"), [(1000, 1), (100, 2), (40, 5)])
def test_any_number_of_shards_and_tasks_teaches_what_all_images_in_memory_teach(
    tmp_path, monkeypatch, fuser, rows, tasks, alike
):
    world = world_of(tmp_path, alike)
    task = world.task()
    model = str(made(world, lesson(world, task, [method("zero_shot", fuser)])))
    fusion = Fusion(fused_model.read(model))
    good = [i for i in range(IMAGES) if i not in BAD]
    images = tuple(
        torch.from_numpy(world.embeddings["test", name][good].astype(np.float32))
        for name in BACKBONES
    )
    logits_NMC = fusion.logits([e_ND.numpy() for e_ND in images])
    expected = fusion.fuser.adapt(fusion.state, logits_NMC, images)
    assert expected.numbers["trust"] > 0

    monkeypatch.setattr(sums, "shard_rows", lambda index: rows)
    monkeypatch.setattr(sums, "SHARDS", 3)
    stored = shelved(world, rows)
    edges = np.linspace(0, -(-IMAGES // rows), tasks + 1).astype(int)

    def over_all(of):
        parts = itertools.pairwise(edges.tolist())
        return sums.added(sums.sums(model, stored, a, b, of) for a, b in parts)

    collection.keep(world.store, "models/taught", {}, fusion, over_all)
    taught = Fusion(fused_model.read(world.store.place("models/taught")))
    assert taught.state.numbers.keys() == expected.numbers.keys()
    assert set(taught.state.tensors) == set(expected.tensors)
    for name, tensor in expected.tensors.items():
        torch.testing.assert_close(taught.state.tensors[name], tensor, atol=1e-5, rtol=1e-4)
    said_NC = taught.fuse(logits_NMC, [e_ND.numpy() for e_ND in images])
    meant_NC = fusion.fuser.apply(expected, logits_NMC, images)
    torch.testing.assert_close(said_NC, meant_NC, atol=1e-4, rtol=1e-4)
    assert torch.equal(said_NC[:, 0], said_NC[:, 3]) == torch.equal(meant_NC[:, 0], meant_NC[:, 3])

    # a single image gets the label that it gets in the collection
    last = (-(-IMAGES // rows)) - 1
    names = [shard.name for shard in stored.shards(0, last + 1)]
    assert (
        sums.label(world.store.place("models/taught"), stored, 0, last + 1, "p", names, True)
        == IMAGES
    )
    table = pa.concat_tables([world.store.read_table(f"p/{name}") for name in names])
    assert [e is not None for e in table.sort_by("path")["error"].to_pylist()] == [
        i in BAD for i in range(IMAGES)
    ]
    found = {r["image_id"]: r["class"] for r in table.to_pylist() if r["error"] is None}
    assert [found[world.ids["test"][i]] for i in good] == said_NC.argmax(1).tolist()


def test_what_images_taught_before_is_forgotten(tmp_path):
    world = world_of(tmp_path, alike=False)
    task = world.task()
    for name in ("transductive", "guarded"):
        model = str(made(world, lesson(world, task, [method("zero_shot", name)])))
        fusion = Fusion(fused_model.read(model))
        images = tuple(
            torch.from_numpy(world.embeddings["test", b].astype(np.float32)) for b in BACKBONES
        )
        logits_NMC = fusion.logits([e_ND.numpy() for e_ND in images])
        once = fusion.fuser.adapt(fusion.state, logits_NMC, images)
        few = fusion.fuser.adapt(once, logits_NMC[:50], tuple(e[:50] for e in images))
        again = fusion.fuser.adapt(few, logits_NMC, images)
        assert again.numbers == once.numbers
        for key, tensor in once.tensors.items():
            assert torch.equal(again.tensors[key], tensor)
