"""A large dataset is evaluated in parts: the same rows as in one piece, resumed, and of a memory that is told."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from numpy import memmap

from clipray import schema, shots
from clipray.artefacts import evaluations
from clipray.config import Fuser, Head
from clipray.numerics import blocks
from clipray.numerics.fewshot import prototypes
from clipray.numerics.fusers import guarded
from clipray.numerics.heads import cross_fit
from clipray.steps import spill
from clipray.steps.evaluate import parts, plan
from clipray.store import Store
from tests.steps.worlds import CLASSES, World

ROOT = Path(__file__).resolve().parents[3]
FUSERS = ("log_avg", "c_log_avg", "best_single_on_support", "proto_fusion")


def task(world):
    fusers = tuple(Fuser(name=name, fuser=name) for name in FUSERS)
    heads = (Head(name="zero_shot", head="zero_shot"), Head(name="tip_adapter", head="tip_adapter"))
    return world.task(fusers=fusers, heads=heads)


def rows(world, place, name):
    table = world.store.read_table(f"{place}/{name}").to_pandas()
    keys = [key for key in table.columns if key not in ("value", "ci_low", "ci_high", "confidence")]
    return table.sort_values(keys, ignore_index=True)


def joined(world, asked, place, every):
    facts = [plan.evaluate(world.store, asked, place, part) for part in every]
    plan.join(world.store, evaluations.what(asked), place, every, facts[-1])


def test_parts_have_the_rows_of_the_whole(tmp_path, monkeypatch):
    world = World(tmp_path)
    asked = task(world)
    assert parts.parts(asked, CLASSES) == [parts.whole(asked)]
    plan.evaluate(world.store, asked, "whole")
    monkeypatch.setattr(parts, "LARGE", 1)
    every = parts.parts(asked, CLASSES)
    assert len(every) == 2 * (1 + len(asked.shots))
    joined(world, asked, "joined", every)
    for name in (evaluations.SCORES, evaluations.OUTCOMES):
        one, several = rows(world, "whole", name), rows(world, "joined", name)
        pd.testing.assert_frame_equal(several, one, rtol=1e-5, atol=1e-6)
    before, after = (world.store.manifest(place) for place in ("whole", "joined"))
    same = ("rows", "support_sets", "distinct_support_sets", "classes_with_fewer_images_than_shots")
    assert {key: before[key] for key in same} == {key: after[key] for key in same}
    assert not [path for path, *_ in world.store.files() if "/parts/" in path]


def test_halves_of_a_small_dataset_have_the_rows_of_the_whole(tmp_path):
    world = World(tmp_path)
    asked = task(world)
    every = parts.parts(asked, CLASSES, halved=True)
    assert [part.shots for part in every] == [(0, *asked.shots[:-1]), asked.shots[-1:]] * 2
    plan.evaluate(world.store, asked, "whole")
    joined(world, asked, "joined", every)
    for name in (evaluations.SCORES, evaluations.OUTCOMES):
        one, several = rows(world, "whole", name), rows(world, "joined", name)
        pd.testing.assert_frame_equal(several, one, rtol=1e-5, atol=1e-6)
    one_shot = dataclasses.replace(asked, shots=(1,))
    assert parts.parts(one_shot, CLASSES, halved=True) == [parts.whole(one_shot)]


def test_spans_of_images_have_the_rows_of_all_at_once(tmp_path, monkeypatch):
    world = World(tmp_path)
    fusers = ("log_avg", "nlc", "guarded", "ot")
    task = dataclasses.replace(world.task(fusers=fusers), costs=({"gflops": 1.0},) * 3)
    plan.evaluate(world.store, task, "whole")
    images = task.expected
    monkeypatch.setattr(blocks, "SPAN", images // 4 * 3 * CLASSES)
    monkeypatch.setattr(parts, "LARGE", 1)  # one support set after another, too
    joined(world, task, "joined", parts.parts(task, CLASSES))
    for name in (evaluations.SCORES, evaluations.OUTCOMES):
        one, several = rows(world, "whole", name), rows(world, "joined", name)
        pd.testing.assert_frame_equal(several, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_logits_of_support_sets_in_a_file_give_the_rows_of_those_in_memory(
    tmp_path, monkeypatch, share
):
    world = World(tmp_path)
    asked = dataclasses.replace(task(world), shots=(1, 4), held_out=share)
    plan.evaluate(world.store, asked, "memory")
    made = []
    monkeypatch.setattr(spill, "LEARNED", 0)
    monkeypatch.setattr(spill.np, "memmap", lambda *a, **k: made.append(k) or memmap(*a, **k))
    plan.evaluate(world.store, asked, "file")
    assert len(made) == 2 * 2 * asked.seeds  # heads, shots, seeds
    for name in (evaluations.SCORES, evaluations.OUTCOMES):
        pd.testing.assert_frame_equal(rows(world, "file", name), rows(world, "memory", name))


def test_many_classes_are_evaluated_one_support_set_after_another():
    asked = noise_task(500, 5)
    assert parts.large(asked, 20_000)
    assert not parts.large(dataclasses.replace(asked, shots=()), 20_000)
    part = parts.Part("zero_shot", (1,))
    dims = [64] * 5
    smaller, larger = (parts.memory(asked, part, n, dims) for n in (10_000, 20_000))
    matrix = 4 * 20_000**2
    assert larger <= 1.5 * 10**9 + 10 * matrix  # five backbones' logits alone would be five of them
    assert larger < 4 * smaller
    several = parts.memory(asked, parts.Part("zero_shot", (4,)), 20_000, dims)
    assert several < 1.1 * larger  # fusers learn from one image of each class all the same


def test_what_a_fuser_keeps_of_a_large_support_set_is_counted_as_it_is():
    # said twice, for planning needs no torch
    assert parts.JUDGES == guarded.JUDGES
    assert parts.LEARNED == cross_fit.LEARNED
    assert prototypes.Probe().folds == parts.FOLDS


def test_more_labels_than_fusers_learn_from_take_no_more_memory_for_logits():
    asked = noise_task(1000, 9)
    part, dims = parts.Part("zero_shot", (shots.ALL,)), [512] * 9
    first, second = (parts.memory(asked, part, 1000, dims, n) for n in (100_000, 1_300_000))
    embeddings = 1_200_000 * sum(dims) * 4
    assert second - first <= 2 * asked.seeds * embeddings + 10**6
    assert first <= 16 * 10**9


def test_what_sees_all_images_at_once_asks_for_their_logits():
    asked = noise_task(1000, 3)
    part = parts.Part("zero_shot", (0,))
    seen = dataclasses.replace(asked, fusers=(*asked.fusers, Fuser(name="ot", fuser="ot")))
    dims = [16] * 3
    more = parts.memory(seen, part, 400, dims) - parts.memory(asked, part, 400, dims)
    assert more >= 2 * 1000 * 3 * 400 * 4


def test_a_part_that_is_there_is_not_scored_again(tmp_path, monkeypatch):
    world = World(tmp_path)
    asked = task(world)
    monkeypatch.setattr(parts, "LARGE", 1)
    first, *_ = parts.parts(asked, CLASSES)
    facts = plan.evaluate(world.store, asked, "joined", first)
    for place in asked.embeddings["test"]:
        world.store.remove(f"{place}/all.parquet")  # nothing could be scored any more
    assert plan.evaluate(world.store, asked, "joined", first) == facts


# Matrices go back to the system when they are let go: what is held is measured, not the holes that they leave, which
# differ by 100 MB from run to run and are counted in `parts.PROCESS`.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_ARENA_MAX": "1"}
MEASURE = r"""
import re, sys
from pathlib import Path
from tests.steps.evaluate.test_parts import noise
from clipray.numerics import blocks
from clipray.numerics.fewshot import prototypes
from clipray.steps.evaluate import parts, score

classes, dim, backbones = 400, 16, 3
blocks.ELEMENTS, blocks.SPAN = 2**20, 2**22  # so that few images are many spans
for images in (12000, int(sys.argv[2])):  # libraries and blocks of every kind take their memory once
    store, asked = noise(f"{sys.argv[1]}/{images}", images, backbones, classes, dim)
    part = parts.Part("zero_shot", (1,))
    score.score_part(store, asked, "e", part)
    status = Path("/proc/self/status").read_text()  # ru_maxrss would begin with what the parent process had
    peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024
    print(parts.memory(asked, part, classes, [dim] * backbones), peak)
"""


def noise_task(images: int, backbones: int) -> evaluations.Task:
    """What an evaluation is asked of `noise`."""
    names = tuple(f"m{m}" for m in range(backbones))
    return evaluations.Task(
        dataset="noise",
        backbones=names,
        classifiers=tuple(f"c-{name}" for name in names),
        scales=((50.0, 0.0),) * backbones,
        embeddings={
            split: tuple(f"e-{split}-{name}" for name in names) for split in ("test", "train")
        },
        expected=images,
        heads=(Head(name="zero_shot", head="zero_shot"),),
        fusers=tuple(Fuser(name=name, fuser=name) for name in ("log_avg", "c_log_avg", "guarded")),
        shots=(1,),
        seeds=1,
        folds=5,
    )


def noise(root: str, images: int, backbones: int, classes: int, dim: int):
    """Embeddings and class vectors of any size, and what an evaluation is asked of them.

    Images lie around their class vector, so that text is right of many, and fusers learn from the batch.
    """
    store, rng = Store(root), np.random.default_rng(0)
    names = tuple(f"m{m}" for m in range(backbones))
    sizes = {"test": images, "train": 2 * classes}

    def column(values_ND: np.ndarray) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(values_ND.ravel()), dim)

    for name in names:
        text_CD = rng.standard_normal((classes, dim), np.float32)
        table = pa.table({"name": ["x"] * classes, "weight": column(text_CD)})
        store.write_table(f"c-{name}/classifier.parquet", table)
        store.finish(f"c-{name}", {})
        for split, count in sizes.items():
            ids = [f"{split}{i:07d}" for i in range(count)]
            labels = pa.array([i % classes for i in range(count)], pa.int64())
            x_ND = rng.standard_normal((count, dim), np.float32) / 2 + text_CD[labels.to_numpy()]
            columns = [ids, labels, column(x_ND), pa.nulls(count, pa.string())]
            table = pa.table(columns, schema=schema.embeddings(dim, "fp32"))
            store.write_table(f"e-{split}-{name}/all.parquet", table)
            store.finish(f"e-{split}-{name}", {}, shards=["all.parquet"])
    return store, noise_task(images, backbones)


def test_a_part_takes_no_more_memory_than_it_asks_for(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path), "40000"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | ALLOCATOR,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (small, base), (asked, peak) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert peak <= asked
    assert peak - base <= asked - small
    assert peak - base < 28_000 * 3 * 400 * 4  # the logits, which are held a span at a time
