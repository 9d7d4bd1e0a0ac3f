"""What is read of a train split: the images that may be learned from, and the names that they are drawn by."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from clipray.artefacts import support_sets
from clipray.artefacts.index import part_name
from clipray.numerics import draws
from clipray.schema import INDEX
from clipray.steps import read
from tests.steps.worlds import CLASSES, World


def test_support_sets_are_drawn_by_where_images_lie(tmp_path):
    world = World(tmp_path)
    task = world.task(shots=(2,))
    ids = world.ids["train"]
    keys = {image_id: f"c/{row * 7 % len(ids):03d}.png" for row, image_id in enumerate(ids)}
    table = pa.table(
        {"image_id": ids, "key": [keys[each] for each in ids]}, schema=_columns("image_id", "key")
    )
    for part, rows in enumerate((table.slice(0, 15), table.slice(15))):
        world.store.write_table(f"rows/{part_name(part)}", rows)
    world.store.finish("rows", {}, parts=[15, len(ids) - 15])

    by_key = read.read_train(world.store, replace(task, names="rows"), CLASSES)
    assert by_key.names == [keys[each] for each in by_key.image_ids]
    sets = read.draw(world.store, task, by_key, CLASSES, (2,), 2)
    labels = dict(zip(ids, world.labels["train"].tolist(), strict=True))
    in_order = sorted(ids, key=keys.get)
    wanted = draws.draws(
        [keys[each] for each in in_order],
        np.array([labels[each] for each in in_order]),
        CLASSES,
        [2],
        range(2),
    )
    found = support_sets.read(world.store, sets.address).to_pylist()
    for one in wanted:
        own = [row["image_id"] for row in found if row["seed"] == one.seed]
        assert own == [in_order[row] for row in one.rows_K]

    by_id = read.read_train(world.store, task, CLASSES)
    assert by_id.names == by_id.image_ids
    other = read.draw(world.store, task, by_id, CLASSES, (2,), 2)
    assert support_sets.read(world.store, other.address).to_pylist() != found
    assert other.address != sets.address


def test_an_index_without_an_image_is_an_error(tmp_path):
    world = World(tmp_path)
    task = world.task(shots=(2,))
    world.store.finish("rows", {}, parts=[])
    with pytest.raises(ValueError, match="rows does not hold the image train"):
        read.read_train(world.store, replace(task, names="rows"), CLASSES)


def _columns(*names: str) -> pa.Schema:
    return pa.schema([INDEX.field(name) for name in names])
