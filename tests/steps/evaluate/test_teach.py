"""`nlc_meta` in a campaign: learned on the other datasets, and on nothing else."""

import dataclasses

import numpy as np
import pytest

from clipray.artefacts import evaluations as evaluate
from clipray.artefacts import support_sets
from clipray.config import Compute, Fuser
from clipray.numerics.fusers import settings_of
from clipray.steps import cluster
from clipray.steps.evaluate import lessons, plan
from clipray.steps.evaluate import teach as meta
from clipray.store import Store
from tests.steps.worlds import Shelf

NLC_META = {"fusers": ("nlc_meta",), "shots": (1,)}


@pytest.fixture
def here(monkeypatch):
    """Tasks run in this process, one after another: what is tested is what they read and write."""

    def attempts(function, items, *_):
        for number, item in enumerate(items):
            yield number, function(*item), None

    monkeypatch.setattr(cluster, "attempts", attempts)
    monkeypatch.setattr(cluster, "connect", lambda *_: {"CPU": 1})


def weights_of(task) -> list[float] | None:
    (entry,) = [entry for entry in task.fusers if entry.fuser == "nlc_meta"]
    return entry.settings.get("weights")


def test_weights_come_from_the_other_datasets_only(tmp_path, here):
    store = Store(str(tmp_path))
    worlds = [Shelf(store, name, seed) for seed, name in enumerate("abcd")]
    tasks, _ = meta.taught(store, [world.task(**NLC_META) for world in worlds], Compute(), False)
    before = {task.dataset: weights_of(task) for task in tasks}
    assert all(weights for weights in before.values())
    assert len({tuple(weights) for weights in before.values()}) == 4

    poisoned = Store(str(tmp_path / "again"))
    worlds = [Shelf(poisoned, name, seed) for seed, name in enumerate("abcd")]
    worlds[0].labels["train"] = np.roll(worlds[0].labels["train"], 7)
    for world in worlds:
        world.labels["test"] = (world.labels["test"] + 1) % 4
    tasks, _ = meta.taught(poisoned, [world.task(**NLC_META) for world in worlds], Compute(), False)
    after = {task.dataset: weights_of(task) for task in tasks}
    assert after["a"] == before["a"]  # its own labels are not what it learned from
    assert after["b"] != before["b"]


def test_nothing_is_learned_twice_and_a_taught_task_evaluates(tmp_path, here, monkeypatch):
    store = Store(str(tmp_path))
    tasks = [Shelf(store, name, seed).task(**NLC_META) for seed, name in enumerate("abcd")]
    first, _ = meta.taught(store, tasks, Compute(), False)
    monkeypatch.setattr(cluster, "attempts", None)
    again, _ = meta.taught(store, tasks, Compute(), False)
    assert again == first
    place = evaluate.address(store, again[0])
    assert place != evaluate.address(store, tasks[0])
    plan.evaluate(store, again[0], place)
    scores = store.read_table(f"{place}/{evaluate.SCORES}").to_pandas()
    assert len(scores[(scores["method"] == "nlc_meta") & (scores["metric"] == "top1")]) == 2


def test_too_few_others_leave_the_gate_untaught(tmp_path, here):
    store = Store(str(tmp_path))
    tasks = [Shelf(store, name, seed).task(**NLC_META) for seed, name in enumerate("abc")]
    assert meta.taught(store, tasks, Compute(), False) == (tasks, {})
    own = Fuser(name="mine", fuser="nlc_meta", settings={"weights": [0.0]})
    assert meta.taught(store, [dataclasses.replace(tasks[0], fusers=(own,))], Compute(), False)[0][
        0
    ].fusers == (own,)


def test_an_image_of_the_test_split_is_in_no_episode(tmp_path):
    store = Store(str(tmp_path))
    world = Shelf(store, "a", 0)
    world.ids["train"][:20] = world.ids["test"][:20]
    task, settings = world.task(**NLC_META), settings_of("nlc_meta")
    left = world.labels["train"][20:]
    for episode in lessons.episodes(store, task, settings):
        assert len(episode.labels_Q) < len(left)
    drawn = support_sets.read(store, f"support_sets/{store.names('support_sets').pop()}")
    assert not set(drawn["image_id"].to_pylist()) & set(world.ids["test"])
