"""Rows of accuracy against cost, on embeddings made up with known answers."""

import dataclasses
from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest

from clipray import schema
from clipray.report import summary
from tests.steps.worlds import BACKBONES, CLASSES, World, unit

COSTS = tuple({"gflops": 4.0**m} for m in range(3))


def scored(world, costs=COSTS):
    task = world.task(fusers=("log_avg",), shots=(1, 4))
    return world.frames(dataclasses.replace(task, costs=costs))[0]


def of(scores, first, metric):
    own = scores[scores["method"].str.startswith(f"{first}/") & (scores["metric"] == metric)]
    return own.set_index(["method", "shots", "seed"])["value"]


def test_subsets_are_scored_as_a_plain_computation_scores_them(tmp_path):
    world = World(tmp_path)
    scores = scored(world)
    logits = [10 * unit(world.embeddings["test", n]) @ unit(world.weights[n]).T for n in BACKBONES]
    log_p = np.stack([z - np.log(np.exp(z).sum(1, keepdims=True)) for z in logits])
    top1, gflops = of(scores, "subset", "top1"), of(scores, "subset", "gflops")
    assert len(top1) == len(gflops) == 4
    for size in (2, 3):
        for members in combinations(range(3), size):
            place = ("/".join(["subset", *(BACKBONES[m] for m in members)]), 0, 0)
            said = log_p[list(members)].mean(0).argmax(1)
            assert top1[place] == pytest.approx((said == world.labels["test"]).mean())
            assert gflops[place] == sum(4.0**m for m in members)
    spent = of(scores, "cascade", "gflops")
    assert len(spent) == 6
    assert spent.between(1, 21).all()


def test_what_a_support_set_chooses_does_not_hang_on_test_labels(tmp_path):
    clean, poisoned = World(tmp_path / "a"), World(tmp_path / "b")
    poisoned.labels["test"] = (poisoned.labels["test"] + 1) % CLASSES
    one, other = (scored(world) for world in (clean, poisoned))
    for metric in ("support_top1", "support_oracle", "best_in", "gflops"):
        mine = of(one, "choice", metric)
        assert sorted((k, m.count("/")) for m, k, _ in mine.index) == [
            (1, 1),
            (1, 2),
            (4, 1),
            (4, 2),
        ]
        assert mine.equals(of(other, "choice", metric))
    assert not of(one, "subset", "top1").equals(of(other, "subset", "top1"))


def test_they_compete_for_no_rank_and_need_every_cost(tmp_path):
    world = World(tmp_path)
    scores, plain = scored(world), scored(world, costs=())
    tables = [pa.Table.from_pandas(s, schema.SCORES, preserve_index=False) for s in (scores, plain)]
    names = [{row.method for row in summary.leaderboard(table)} for table in tables]
    assert names[0] == names[1]
    partly = scored(world, costs=({"gflops": 1.0}, {}, {"gflops": 2.0}))
    for first in ("subset", "cascade", "choice"):
        assert of(plain, first, "gflops").empty
        assert of(partly, first, "gflops").empty
