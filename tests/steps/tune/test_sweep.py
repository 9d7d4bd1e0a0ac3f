"""What becomes of work whose worker died: again, alone, and at last blamed; the rest goes on."""

import pytest

from clipray.config import parse
from clipray.config.search import Tune
from clipray.steps.tune.records import Cell, Fit, Records
from clipray.steps.tune.studies import Study
from clipray.steps.tune.sweep import Reasons, Sweep
from clipray.store import Store
from tests.steps.tune.test_space import BASE

CELLS = [Cell(name, 1, seed) for name in "ab" for seed in (0, 1)]


def made(tmp_path, **changes) -> Sweep:
    """A sweep over the defaults and two rates on four support sets, in batches of three."""
    space = {"rate": {"choice": [0.1, 0.2]}}
    values = BASE | {
        "searches": [{"name": "mine", "fuser": "nlc", "space": space}],
        "sampler": "grid",
        "samples": 0,
    }
    config = parse(Tune, values | {"retries": 1, "batch": 3} | changes, "test")
    records = Records(Store(str(tmp_path)), "fits", {"a": "x", "b": "y"})
    return Sweep(
        [Study(config.searches[0], config, CELLS, records)], records, config, Reasons("OOM")
    )


def rows(piece, datasets="ab", only=lambda one: True) -> list[Fit]:
    every = [
        (one, cell)
        for one in piece.configurations
        if only(one)
        for d in datasets
        for cell in piece.cells[d]
    ]
    return [Fit(one, cell, 1.0, 0.5, 0.5, 10, 1, 0.1) for one, cell in every]


def test_a_dead_workers_rest_is_done_by_others_one_configuration_at_a_time(tmp_path):
    sweep = made(tmp_path)
    piece = sweep.suggest("1")["piece"]
    assert len(piece.configurations) == 3
    assert piece.cells == {
        name: tuple(cell for cell in CELLS if cell.dataset == name) for name in "ab"
    }
    sweep("1", {"rows": rows(piece, "a"), "done": False})
    sweep.on_trial_complete("1", error=True)
    again = [sweep.suggest(str(i))["piece"] for i in (2, 3, 4)]
    assert [len(one.configurations) for one in again] == [1, 1, 1]
    assert all(list(one.cells) == ["b"] for one in again)  # what was reported is not fitted again
    for number, one in zip((2, 3, 4), again, strict=True):
        sweep(str(number), {"rows": rows(one, "b"), "done": True})
        sweep.on_trial_complete(str(number), {})
    assert sweep.suggest("5") == "FINISHED"
    assert (sweep.counts.done, sweep.counts.total, sweep.counts.failed) == (12, 12, 0)


def test_a_configuration_that_kills_again_is_recorded_as_failed_and_takes_no_other_with_it(
    tmp_path,
):
    sweep = made(tmp_path)
    killer = sweep.suggest("1")["piece"].configurations[1]
    sweep.on_trial_complete("1", error=True)
    number, tries = 2, 0
    while isinstance(suggested := sweep.suggest(str(number)), dict):
        piece = suggested["piece"]
        dies = killer in piece.configurations
        tries += dies
        if not dies:
            sweep(str(number), {"rows": rows(piece), "done": True})
        sweep.on_trial_complete(str(number), {}, error=dies)
        number += 1
    assert tries == 1  # and the one in company
    assert (sweep.counts.done, sweep.counts.failed) == (12, 4)
    assert sweep.counts.reasons == {"its worker died 2 times (OOM)": 4}
    sweep.records.flush()
    again = made(tmp_path)
    assert again.ready is None  # nothing is tried again by itself
    assert (again.counts.known, again.counts.failed) == (12, 4)


def test_others_wait_while_work_may_come_back(tmp_path):
    sweep = made(tmp_path)
    sweep.suggest("1")
    assert sweep.suggest("2") is None
    sweep.on_trial_complete("1", error=True)
    assert isinstance(sweep.suggest("2"), dict)


def test_what_is_recorded_in_part_is_completed(tmp_path):
    sweep = made(tmp_path)
    piece = sweep.suggest("1")["piece"]
    first = piece.configurations[0]
    sweep("1", {"rows": rows(piece, "a", lambda one: one == first), "done": False})
    sweep.records.flush()
    again = made(tmp_path)
    pieces = [again.suggest(str(i))["piece"] for i in (1, 2)]
    assert [(len(one.configurations), list(one.cells)) for one in pieces] == [
        (1, ["b"]),
        (2, ["a", "b"]),
    ]


def test_time_ends_a_sweep_between_trials(tmp_path):
    sweep = made(tmp_path, batch=1, seconds=1e-9)
    assert sweep.suggest("1") == "FINISHED"
    assert sweep.cut == "seconds: 1e-09"


@pytest.mark.parametrize("progress", [0.5, 1.0])
def test_a_report_of_support_sets_at_different_moments_stops_nothing(tmp_path, progress):
    sweep = made(tmp_path, scheduler="asha", reports=4)
    sweep.suggest("0")  # the defaults
    piece = sweep.suggest("1")["piece"]
    assert piece.together
    mixed = rows(piece)
    mixed[0] = mixed[0]._replace(progress=progress, nll=1e9)
    assert sweep("1", {"rows": mixed, "done": False}) is False
