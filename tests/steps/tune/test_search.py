"""Searching settings: what a fit is scored on, what may guide a choice, and what is never done twice."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import yaml
from sklearn.metrics import accuracy_score, log_loss

from clipray.artefacts import support_sets
from clipray.config import Campaign, parse
from clipray.config.search import Tune
from clipray.numerics.fusers import FUSERS, settings_of
from clipray.steps import checks, read
from clipray.steps.tune import held_out as heldout
from clipray.steps.tune import search as tune
from clipray.steps.tune.choose import best_campaign, choices, importance
from clipray.steps.tune.records import Cell
from clipray.steps.tune.space import Configuration, configuration
from clipray.steps.tune.sweep import Sweep
from clipray.steps.tune.trial import cases_of, reports
from clipray.store import Store
from tests.steps.worlds import Shelf

SPACE = {"rate": {"loguniform": [1e-4, 1e-1]}, "hidden": {"choice": [0, 4]}}


def config(**changes) -> Tune:
    values = {
        "name": "made",
        "workspace": "unused",
        "datasets": ["a"],
        "backbones": ["b"],
        "precision": "fp32",
        "shots": [2],
        "seeds": 2,
        "searches": [{"name": "gate", "fuser": "nlc", "settings": {"epochs": 12}, "space": SPACE}],
        "selection": "leave_one_dataset_out",
        "metric": "nll",
        "sampler": "random",
        "samples": 5,
        "tracking": {"enabled": False},
    }
    return parse(Tune, values | changes, "test")


@pytest.fixture(autouse=True)
def here(request, monkeypatch):
    """Without `local_ray`, trials run here, one after another, for Ray's actors need ten seconds to start.

    `test_ray_tune_finds_what_trials_in_one_process_find` compares both.
    """
    if "local_ray" not in request.fixturenames:
        monkeypatch.setattr(Sweep, "run", in_process)
        monkeypatch.setattr(tune, "_load", load)


@dataclass(eq=False)
class Here:
    """A trial, as far as schedulers and the sweep look at it."""

    trial_id: str
    config: dict
    last_result: dict | None = None


def in_process(sweep, waves, problems):
    cases = lru_cache(lambda dataset, *key: cases_of(problems[dataset], *key))
    for number, piece in enumerate(itertools.chain.from_iterable(waves)):
        one = Here(str(number), {"piece": piece})
        sweep.turns.on_trial_add(None, one)
        for report in reports(piece, cases):
            one.last_result = report
            ends = sweep._stops(one.trial_id, report)
            ends = ends or sweep.turns.on_trial_result(None, one, report) == "STOP"
            sweep.on_trial_result(0, [], one, report)
            if ends:
                break
        sweep.turns.on_trial_complete(None, one, one.last_result)
        sweep.on_trial_complete(0, [], one)


def load(search, tasks, verbose):
    for task in tasks:
        place = heldout.address(search.store, task, search.config)
        search.problems[task.dataset], _ = heldout.prepare(search.store, place, task, search.config)


def world(root, changes=lambda worlds: None, names="abc") -> tuple[Store, list]:
    """A store with some datasets, after `changes` to them; what searches read of it."""
    store = Store(str(root))
    worlds = [Shelf(store, name, seed) for seed, name in enumerate(names)]
    changes(worlds)
    return store, [one.task() for one in worlds]


def searched(store, tasks, **changes) -> tune.Search:
    search = tune.begin(config(**changes), store, tasks, [])
    tune.fit(search, verbose=False)
    return search


def table(search) -> dict:
    """The search's rows by what they are of, without times."""
    texts = {asked.configuration.text for study in search.studies.values() for asked in study.tried}
    keys, values = (
        ("configuration", "dataset", "shots", "seed", "progress"),
        ("nll", "top1", "images", "fits", "error"),
    )
    rows = search.records.table(texts, set(search.cells)).to_pylist()
    return {tuple(row[k] for k in keys): tuple(row[v] for v in values) for row in rows}


def test_scores_are_those_of_a_plain_loop(tmp_path):
    """Every row against one fit at a time, on embeddings read anew, scored by scikit-learn."""
    store, tasks = world(tmp_path)
    heads = {"head": "tip_adapter", "head_space": {"alpha": {"uniform": [0.5, 2.0]}}}
    searches = [
        {"name": "gate", "fuser": "nlc", "settings": {"epochs": 12}, "space": SPACE},
        {"name": "prior", "fuser": "nlc_prior", "space": {"reach": {"uniform": [1, 3]}}, **heads},
    ]
    search = searched(store, tasks, searches=searches, samples=3, reports=2)
    rows = table(search)
    assert len(rows) == 4 * 3 * 2 * (2 + 1)  # the gate's halves, and nlc_prior's ends
    places = {task.dataset: heldout.address(store, task, search.config) for task in tasks}
    problems = {
        task.dataset: heldout.prepare(store, places[task.dataset], task, search.config)[0]
        for task in tasks
    }
    for (text, dataset, shots, seed, progress), (nll, top1, images, fits, error) in rows.items():
        head, head_settings, fuser, settings = json.loads(text)
        ((support, held),) = heldout.cases(
            problems[dataset], Cell(dataset, shots, seed), head, head_settings
        )
        if progress < 1:
            settings = settings | {"max_steps": 6}
        (state,) = FUSERS[fuser].fit([support], settings_of(fuser, settings))
        p = FUSERS[fuser].apply(state, held.logits_KMC, held.embeddings).exp().double().numpy()
        labels = held.labels_K.numpy()
        assert nll == pytest.approx(
            log_loss(labels, p / p.sum(1, keepdims=True), labels=range(p.shape[1])), abs=2e-4
        )
        assert top1 == pytest.approx(accuracy_score(labels, p.argmax(1)))
        assert (images, fits, error) == (60 - 8, 1, None)


def test_a_fit_is_scored_on_the_rest_of_the_train_split(tmp_path):
    store, (task, *_) = world(tmp_path)
    problem, place = heldout.prepare(store, "p", task, config(queries=20))
    train = read.read_split(store, task.embeddings["train"], 4)
    for pairs in problem.parts.values():
        ((fit, held),) = pairs
        assert len(fit) == 8
        assert np.bincount(problem.labels_R[fit]).tolist() == [2] * 4
        assert len(held) == 20
        assert not set(fit) & set(held)
    known = {row.tobytes() for row in train.embeddings[0].numpy()}
    assert {row.tobytes() for row in problem.embeddings[0]} <= known
    assert store.manifest(place)["cells"] == [[2, 0, 1], [2, 1, 1]]


def test_inside_a_support_set_every_image_is_held_out_once(tmp_path):
    store, (task, *_) = world(tmp_path)
    whole, _ = heldout.prepare(store, "p", task, config())
    inside, _ = heldout.prepare(store, "q", task, config(selection="per_dataset", folds=4))
    for cell, pairs in inside.parts.items():
        support = {whole.embeddings[0][row].tobytes() for row in whole.parts[cell][0][0]}
        assert len(pairs) == 4
        held = [inside.embeddings[0][row].tobytes() for _, rows in pairs for row in rows]
        assert sorted(held) == sorted(support)
        for fit, rows in pairs:
            assert {
                inside.embeddings[0][row].tobytes() for row in np.concatenate([fit, rows])
            } == support


def test_a_split_without_rest_is_left_out_with_its_reason(tmp_path):
    store, tasks = world(tmp_path)
    search = tune.begin(config(shots=[2, 100]), store, tasks, [])
    assert {cell.shots for cell in search.cells} == {2}
    assert search.skipped[0] == {
        "dataset": "a",
        "shots": 100,
        "seed": 0,
        "reason": "no image is left to score on",
    }
    assert len(search.skipped) == 3  # one of each dataset: its seeds leave the same


def test_images_of_the_test_split_are_neither_drawn_nor_scored_on(tmp_path):
    def repeat(worlds):
        for one in worlds:
            one.ids["train"][:20] = one.ids["test"][:20]

    store, tasks = world(tmp_path, repeat)
    search = tune.begin(config(shots=[2]), store, tasks, [])
    for task in tasks:
        problem, _ = heldout.prepare(
            store, heldout.address(store, task, search.config), task, search.config
        )
        assert len(problem.labels_R) == 60 - 20
        drawn = support_sets.read(store, f"support_sets/{_of(store, task)}").to_pandas()
        assert not set(drawn["image_id"]) & {f"test{i:03d}" for i in range(60)}


def _of(store, task) -> str:
    (name,) = [n for n in store.names("support_sets") if n.startswith(f"{task.dataset}-")]
    return name


def close_to(one, other):
    """Equal rows, but for what another company in one tensor program moves in the last digits."""
    assert set(one) == set(other)
    for key, row in one.items():
        assert row == pytest.approx(other[key], abs=1e-5)


def poisoned_test(worlds):
    for one in worlds:
        one.labels["test"] = (one.labels["test"] + 1) % 4
        one.embeddings |= {key: -value for key, value in one.embeddings.items() if key[0] == "test"}


@pytest.mark.parametrize("selection", ["per_dataset", "leave_one_dataset_out", "universal"])
def test_test_images_reach_no_score_and_no_choice(tmp_path, selection):
    clean = searched(*world(tmp_path / "clean"), selection=selection)
    poisoned = searched(*world(tmp_path / "poisoned", poisoned_test), selection=selection)
    assert table(clean) == table(poisoned)
    assert choices(clean).equals(choices(poisoned))


def test_a_dataset_has_no_say_in_its_own_choice(tmp_path):
    """Leave one dataset out, also where a sampler and a scheduler learn from scores."""

    def poison(worlds):
        worlds[0].labels["train"] = np.roll(worlds[0].labels["train"], 7)

    for number, more in enumerate(
        ({}, {"sampler": "tpe", "scheduler": "asha", "reports": 4, "samples": 12})
    ):
        found = []
        for name, changes in (("clean", lambda worlds: None), ("poisoned", poison)):
            search = searched(
                *world(tmp_path / f"{name}{number}", changes), max_concurrent_trials=1, **more
            )
            found.append({row["dataset"]: row for row in choices(search).to_pylist()})
        clean, poisoned = found
        assert clean["a"]["settings"] == poisoned["a"]["settings"]
        assert clean["a"]["chosen_by"] == poisoned["a"]["chosen_by"]
        assert clean["b"]["chosen_by"] != poisoned["b"]["chosen_by"]


def test_inside_a_support_set_other_labels_have_no_say(tmp_path):
    """Labels that a support set does not hold may be anything; those of another seed's support set too."""
    store, (task, *_) = world(tmp_path / "clean", names="a")
    problem, _ = heldout.prepare(store, "p", task, config())
    own = {problem.embeddings[0][row].tobytes() for row in problem.parts[Cell("a", 2, 0)][0][0]}

    def poison(worlds):
        (one,) = worlds
        rows = one.embeddings["train", "alpha"].astype(np.float32)
        outside = np.array([row.tobytes() not in own for row in rows])
        one.labels["train"] = np.where(outside, -1, one.labels["train"])  # and so never drawn

    how = {
        "selection": "per_dataset",
        "seeds": 1,
        "sampler": "tpe",
        "samples": 8,
        "max_concurrent_trials": 1,
    }
    clean = searched(store, [task], **how)
    poisoned = searched(*world(tmp_path / "poisoned", poison, names="a"), **how)
    assert table(clean) == table(poisoned)
    assert choices(clean).equals(choices(poisoned))


def test_the_choice_is_the_best_by_the_mean_over_the_other_datasets(tmp_path):
    search = searched(*world(tmp_path), metric="top1")
    rows, (study,) = table(search), search.studies.values()
    for chosen in choices(search).to_pylist():
        means = {}
        for asked in study.tried:
            text = asked.configuration.text
            own = [v[1] for (t, d, *_), v in rows.items() if t == text and d != chosen["dataset"]]
            assert len(own) == (6 if chosen["dataset"] is None else 4)
            means[text] = np.mean(own)
        assert chosen["chosen_by"] == pytest.approx(max(means.values()))
        best = next(
            asked for asked in study.tried if means[asked.configuration.text] == max(means.values())
        )
        assert chosen["settings"] == best.configuration.settings
        if chosen["dataset"]:
            own = [
                v[1]
                for (t, d, *_), v in rows.items()
                if t == best.configuration.text and d == chosen["dataset"]
            ]
            assert chosen["top1"] == pytest.approx(np.mean(own))


def test_nothing_is_fitted_twice_and_more_of_it_extends(tmp_path):
    store, tasks = world(tmp_path)
    first = searched(store, tasks[:2])
    assert (first.counts.known, first.counts.done) == (0, 6 * 4)
    again = searched(store, tasks[:2])
    assert (again.counts.known, again.counts.done) == (24, 0)
    assert choices(again).equals(choices(first))
    more = searched(store, tasks[:2], samples=8)
    assert (more.counts.known, more.counts.done) == (24, 3 * 4)
    wider = searched(store, tasks, samples=8)
    assert (wider.counts.known, wider.counts.done) == (36, 9 * 2)
    assert table(more).items() <= table(wider).items()


def rates_searched(store, tasks, **changes):
    """Two good rates and six that are far too high, with a scheduler."""
    rates = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1e-4, 1e-3]
    searches = [
        {
            "name": "gate",
            "fuser": "nlc",
            "settings": {"epochs": 40},
            "space": {"rate": {"choice": rates}},
        }
    ]
    how = {
        "searches": searches,
        "scheduler": "asha",
        "reports": 8,
        "selection": "universal",
        "samples": 8,
    }
    return searched(store, tasks, max_concurrent_trials=1, **how | changes)


@pytest.mark.parametrize(
    ("sampler", "scheduler"), [("random", "asha"), ("tpe", "median"), ("grid", "asha")]
)
def test_a_scheduler_stops_what_is_bad_and_remembers_it(tmp_path, sampler, scheduler):
    store, tasks = world(tmp_path)
    search = rates_searched(store, tasks, sampler=sampler, scheduler=scheduler)
    ends = [key for key in table(search) if key[-1] == 1]
    assert (
        6 * 2 <= len(ends) < 6 * len(next(iter(search.studies.values())).tried)
    )  # the defaults end, and not all do
    (chosen,) = choices(search).to_pylist()
    assert json.loads(chosen["settings"]).get("rate", 2e-4) <= 1e-3
    again = rates_searched(store, tasks, sampler=sampler, scheduler=scheduler)
    assert again.counts.done == 0
    assert choices(again).equals(choices(search))
    assert table(again) == table(search)


@pytest.mark.parametrize(
    ("sampler", "scheduler"), [("random", "none"), ("tpe", "median"), ("grid", "asha")]
)
def test_ray_tune_finds_what_trials_in_one_process_find(
    tmp_path, local_ray, monkeypatch, sampler, scheduler
):
    how = {"sampler": sampler, "scheduler": scheduler}
    distributed = rates_searched(*world(tmp_path / "ray"), **how)
    monkeypatch.setattr(Sweep, "run", in_process)
    monkeypatch.setattr(tune, "_load", load)
    alone = rates_searched(*world(tmp_path / "alone"), **how)
    assert table(distributed) == table(alone)
    assert choices(distributed).equals(choices(alone))
    ends = [search.records.reached for search in (distributed, alone)]
    assert ends[0] == ends[1]


def test_a_fit_that_raises_is_recorded_and_the_search_goes_on(tmp_path):
    store, tasks = world(tmp_path)
    space = {"combine": {"choice": ["logits", "probs"]}, "rate": {"choice": [1e-3, 1e-2]}}
    searches = [{"name": "gate", "fuser": "nlc", "settings": {"epochs": 3}, "space": space}]
    how = {"searches": searches, "sampler": "grid", "samples": 0, "error_budget": 0.3}
    search = searched(store, tasks, **how)
    failed = {key: row for key, row in table(search).items() if row[-1]}
    assert len(failed) == 2 * 6
    assert all('"probs"' in key[0] for key in failed)
    assert all("weight_map must be 'softmax'" in row[-1] for row in failed.values())
    assert search.counts.failed == 12
    assert len(table(search)) == 5 * 6
    assert tune.over_budget(search)
    assert not tune.over_budget(searched(store, tasks, **how | {"error_budget": 0.5}))
    assert {row["configurations"] for row in choices(search).to_pylist()} == {3}
    retried = tune.begin(config(**how), store, tasks, [], forget=True)
    tune.fit(retried, verbose=False)
    assert (retried.counts.known, retried.counts.done) == (18, 12)


def test_budgets_end_a_search_with_whole_configurations(tmp_path):
    store, tasks = world(tmp_path)
    search = searched(
        store, tasks, samples=500, core_seconds=0.001, batch=1, max_concurrent_trials=1
    )
    assert search.cut == "core_seconds: 0.001"
    (study,) = search.studies.values()
    assert len(table(search)) == 6 * len(study.tried) < 6 * 100


def test_the_best_is_a_campaign_that_scores_what_was_chosen(tmp_path):
    """Each support set's own settings reach the evaluation."""
    store, tasks = world(tmp_path)
    search = searched(store, tasks, selection="per_dataset", samples=10)
    found = parse(
        Campaign,
        yaml.safe_load(yaml.safe_dump(best_campaign(search, choices(search)))),
        "best.yaml",
    )
    checks.check(found)
    assert [entry.name for entry in found.fusers] == ["gate-defaults", "gate"]
    chosen = {
        (row["dataset"], row["seed"]): json.loads(row["settings"])
        for row in choices(search).to_pylist()
    }
    assert len(chosen) == 6
    entry = found.fusers[1].on("b")
    assert [entry.settings_for(2, seed) for seed in (0, 1)] == [chosen["b", 0], chosen["b", 1]]


def test_importance_finds_the_setting_that_matters(tmp_path):
    space = {"rate": {"loguniform": [1e-6, 1e-1]}, "max_steps": {"int": [200, 201]}}
    searches = [{"name": "gate", "fuser": "nlc", "settings": {"epochs": 20}, "space": space}]
    search = searched(*world(tmp_path), searches=searches, samples=25)
    (shares,) = importance(search).values()
    assert shares["rate"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize("deaths", [1, 99])
def test_workers_that_die_are_replaced_and_what_kills_them_is_recorded(tmp_path, local_ray, deaths):
    """A dataset that kills whoever unpacks it, a number of times."""
    store, tasks = world(tmp_path)
    search = tune.begin(config(samples=1, retries=1, batch=2), store, tasks, [])
    problem, log = local_ray.get(search.problems["b"]), str(tmp_path / "deaths")

    def unpack():
        with open(log, "a+") as file:
            file.seek(0)
            died = len(file.read())
            if died < deaths:
                file.write("x")
                file.flush()
                os._exit(1)
        return problem

    class Bomb:
        def __reduce__(self):
            return unpack, ()

    search.problems["b"] = local_ray.put(Bomb())
    tune.fit(search, verbose=False)
    failed = {key[:2]: row[-1] for key, row in table(search).items() if row[-1]}
    assert len(table(search)) == 2 * 6
    if deaths == 1:
        assert not failed
        return
    assert {dataset for _, dataset in failed} <= {
        "b",
        "c",
    }  # what came after it was not tried again and again
    assert all(reason.startswith("its worker died 2 times (") for reason in failed.values())
    assert Path(log).read_text() == "x" * 4  # each configuration is a trial, tried twice


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.steps.tune.test_search import searched, world
from clipray.steps.tune import records
records.SECONDS = 0.0
searched(*world(sys.argv[1]), samples=400, batch=1, max_concurrent_trials=1, compute={"address": "local"})
"""


def test_kill_9_and_the_same_command_again(tmp_path, monkeypatch):
    """A killed search continues, fits nothing that it recorded again, and ends where one that was not killed does."""
    root = Path(__file__).resolve().parents[3]
    environment = os.environ | {"PYTHONPATH": str(root)}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed"), str(root)]
    process = subprocess.Popen(
        command,
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if len(list(tmp_path.glob("killed/tuning/fits-*/fits-*"))) >= 5:
            break
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(3)  # Ray's workers leave with their driver
    files = {path: path.read_bytes() for path in tmp_path.glob("killed/tuning/fits-*/fits-*")}
    assert files, "killed too early to show anything"
    store, tasks = world(tmp_path / "killed")
    search = searched(store, tasks, samples=20, batch=1)
    assert search.counts.known > 0, "killed too early to show anything"
    assert search.counts.done > 0, "killed too late to show anything"
    assert search.counts.known + search.counts.done == 21 * 6
    assert {path: path.read_bytes() for path in files} == files
    whole = searched(*world(tmp_path / "whole"), samples=20, batch=1)
    close_to(table(search), table(whole))
    assert choices(search)["settings"].equals(choices(whole)["settings"])


def test_rows_and_choices_do_not_depend_on_the_number_of_workers(tmp_path, local_ray, monkeypatch):
    """Also where scores guide the sampler: it is told in the order in which it asked."""
    many = searched(*world(tmp_path / "many"), sampler="tpe", samples=14)
    monkeypatch.setattr(Sweep, "run", in_process)
    monkeypatch.setattr(tune, "_load", load)
    one = searched(*world(tmp_path / "one"), sampler="tpe", samples=14)
    assert table(one) == table(many)
    assert choices(one).equals(choices(many))


def test_time_ends_a_search_before_its_first_trial(tmp_path):
    search = searched(*world(tmp_path), seconds=1e-9)
    assert search.cut == "seconds: 1e-09"
    assert not table(search)


def test_a_dataset_stops_no_training_for_its_own_choice(tmp_path):
    """All scopes draw the same here, so fits are shared; what trains to its end is for each scope to say."""

    def poison(worlds):
        worlds[0].labels["train"] = np.roll(worlds[0].labels["train"], 7)

    clean, poisoned = (
        rates_searched(*world(tmp_path / name, changes), selection="leave_one_dataset_out")
        for name, changes in (("clean", lambda worlds: None), ("poisoned", poison))
    )
    for search in (clean, poisoned):
        assert len(search.studies) == 4
    scope = "gate", ("a", None, None)
    one, other = clean.studies[scope], poisoned.studies[scope]
    assert one.reached == other.reached
    assert 0 < min(one.reached.values()) < 1
    rows = [
        next(row for row in choices(search).to_pylist() if row["dataset"] == "a")
        for search in (clean, poisoned)
    ]
    assert rows[0]["settings"] == rows[1]["settings"]
    assert rows[0]["configurations"] == rows[1]["configurations"]


def test_the_defaults_are_the_searchs_first_configuration():
    (search,) = config().searches
    assert configuration(search, {}) == Configuration("zero_shot", "{}", "nlc", '{"epochs":12}')
