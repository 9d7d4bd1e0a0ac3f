"""A trial of Ray Tune: some configurations fitted on some support sets and scored on images held out, reported in rows.

The actor is used again for trial after trial; the datasets lie in the object store, once per node.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from ray import get
from ray.tune import Trainable

from clipray.numerics.contracts import State, Support
from clipray.numerics.fusers import FUSERS, settings_of
from clipray.numerics.measures import outcomes
from clipray.steps.tune import held_out as heldout
from clipray.steps.tune.held_out import Problem
from clipray.steps.tune.records import Cell, Fit
from clipray.steps.tune.space import Configuration


@dataclass(frozen=True, repr=False)
class Piece:
    """The work of one trial.

    Attributes:
        cells: the support sets, by dataset.
        reports: looks at each training, after equal parts of it; methods that are not iterative give the last only.
        together: train on all datasets in step, so that each report says how the configuration stands on all of them;
            else one dataset after the other.
        retries: of a fit that raises.
    """

    configurations: tuple[Configuration, ...]
    cells: dict[str, tuple[Cell, ...]]
    reports: int
    together: bool
    retries: int


class Trial(Trainable):
    """Works off one `Piece`; a step is one report, whose `rows` are `Fit`s."""

    def setup(self, config: dict, problems: dict, threads: int) -> None:
        """Args: problems: by dataset, the object reference of its `Problem`. threads: of torch."""
        torch.set_num_threads(threads)
        self.cases = lru_cache(maxsize=64)(
            lambda dataset, *key: cases_of(get(problems[dataset]), *key)
        )
        self.reset_config(config)

    def reset_config(self, config: dict) -> bool:
        """Begin the next trial."""
        self.left = measure(config["piece"], self.cases)
        return True

    def step(self) -> dict:
        """The next report."""
        rows = next(self.left, None)
        return {"rows": rows or [], "done": rows is None}


def cases_of(problem: Problem, cells: tuple[Cell, ...], head: str, settings: str) -> list:
    """(cell, support, held out) of each part of some support sets of a dataset."""
    return [
        (cell, *case)
        for cell in cells
        for case in heldout.cases(problem, cell, head, json.loads(settings))
    ]


def measure(piece: Piece, cases: callable) -> Iterator[list[Fit]]:
    """The rows of a piece, report by report.

    Args:
        cases: (dataset, cells, head, settings) -> (cell, support, held out) of each part of each support set.
    """
    every = (
        _guarded(piece.configurations, dataset, cells, piece.reports, piece.retries, cases)
        for dataset, cells in piece.cells.items()
    )
    if not piece.together:
        for curve in every:
            yield from curve
        return
    curves = list(every)
    for _ in range(piece.reports):
        yield [row for curve in curves for row in next(curve, [])]


def _guarded(
    configurations: tuple[Configuration, ...],
    dataset: str,
    cells: tuple,
    reports: int,
    retries: int,
    cases: callable,
) -> Iterator[list[Fit]]:
    """`_curves`; where it raises, each configuration alone and again, at last as rows with the error."""
    try:
        yield from _curves(configurations, dataset, cells, reports, cases)
        return
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"[:500]
    if len(configurations) > 1:
        for one in configurations:
            yield from _guarded((one,), dataset, cells, reports, retries, cases)
    elif retries:
        yield from _guarded(configurations, dataset, cells, reports, retries - 1, cases)
    else:
        nan = float("nan")
        yield [
            Fit(one, cell, 1.0, nan, nan, 0, 0, 0.0, reason)
            for one in configurations
            for cell in cells
        ]


def _curves(
    configurations: tuple[Configuration, ...],
    dataset: str,
    cells: tuple,
    reports: int,
    cases: callable,
) -> Iterator[list[Fit]]:
    """Fit on one dataset, all its support sets at once, and configurations too where the method allows."""
    jobs = [
        (one, *case)
        for one in configurations
        for case in cases(dataset, cells, one.head, one.head_settings)
    ]  # (configuration, cell, support, held out)
    start = time.perf_counter()
    parts = reports if FUSERS[jobs[0][0].fuser].path else 1
    for part, states in enumerate(_fitted(jobs, parts), 1):
        sums: dict[tuple, list[float]] = {}
        for (one, cell, _, held), state in zip(jobs, states, strict=True):
            log_p = FUSERS[one.fuser].apply(state, held.logits_KMC, held.embeddings)
            nll, top1 = outcomes.nll(log_p, held.labels_K), outcomes.top(log_p, held.labels_K, 1)
            own = sums.setdefault((one, cell), [0.0, 0.0, 0, 0])
            for i, value in enumerate((float(nll.sum()), float(top1.sum()), len(nll), 1)):
                own[i] += value
        now = time.perf_counter()
        seconds, start = (now - start) / len(sums), now
        yield [
            _row(one, cell, part / parts, nll / images, right / images, images, fits, seconds)
            for (one, cell), (nll, right, images, fits) in sums.items()
        ]


def _row(one: Configuration, cell: Cell, progress: float, nll: float, *more: float) -> Fit:
    """A fit that gave no finite loss is a failure, and over."""
    if nll != nll or nll == float("inf"):
        return Fit(one, cell, 1.0, float("nan"), *more, error="diverged: the loss is not finite")
    return Fit(one, cell, progress, nll, *more)


def _fitted(
    jobs: list[tuple[Configuration, Cell, Support, Support]], reports: int
) -> Iterator[list[State]]:
    """The fitted states, of the whole training or after each of its parts."""
    fuser = FUSERS[jobs[0][0].fuser]
    if fuser.path:
        settings = [settings_of(one.fuser, json.loads(one.settings)) for one, *_ in jobs]
        yield from fuser.path([support for _, _, support, _ in jobs], settings, reports)
        return
    states = {}
    for one in dict.fromkeys(job[0] for job in jobs):
        own = [i for i, job in enumerate(jobs) if job[0] == one]
        fitted = fuser.fit(
            [jobs[i][2] for i in own], settings_of(one.fuser, json.loads(one.settings))
        )
        states |= dict(zip(own, fitted, strict=True))
    yield [states[i] for i in range(len(jobs))]
