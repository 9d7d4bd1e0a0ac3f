"""Fit a configuration on support sets, score it on images held out, and report rows: a trial of Ray Tune.

The actor is used again for trial after trial; the datasets lie in the object store, once per node.
"""

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from ray import get
from ray.tune import Trainable

from clipray.numerics.contracts import Fuser, State, Support
from clipray.numerics.fusers import FUSERS, settings_of
from clipray.numerics.measures import outcomes
from clipray.steps.tune import held_out as heldout
from clipray.steps.tune.held_out import Problem
from clipray.steps.tune.records import REPORT, SCORE, Cell, Fit, score
from clipray.steps.tune.space import Configuration

NAN = float("nan")


@dataclass(frozen=True, repr=False)
class Piece:
    """The work of one trial.

    Attributes:
        cells: the support sets.
        reports: looks at each training, after equal parts of it; methods that are not iterative give the last only.
        retries: of a fit that raises.
        metric: what a scheduler compares. Then all datasets are trained in step, so that each report says how the
            configuration stands on all of them. Empty: one dataset after the other.
        known: the scores of its first reports, where they are recorded: it is not trained unless it goes beyond.
    """

    configuration: Configuration
    cells: tuple[Cell, ...]
    reports: int
    retries: int
    metric: str = ""
    known: tuple[float, ...] = ()


class Trial(Trainable):
    """Work off one `Piece` after another; a step is one report, whose `rows` are `Fit`s.

    The first report comes before any fit, so that a trial can be stopped there. The last has no rows. Both have a
    score, as a `MedianStoppingRule` needs, that changes nothing.
    """

    def setup(self, config: dict, problems: dict, threads: int) -> None:
        """Begin the first trial.

        Args:
            problems: by dataset, the object reference of its `Problem`.
            threads: of torch.
        """
        torch.set_num_threads(threads)
        self.cases = lru_cache(maxsize=64)(
            lambda dataset, *key: cases_of(get(problems[dataset]), *key)
        )
        self.reset_config(config)

    def reset_config(self, config: dict) -> bool:
        """Begin the next trial."""
        self.left = reports(config["piece"], self.cases)
        return True

    def step(self) -> dict:
        """Return the next report."""
        return next(self.left)


def reports(piece: Piece, cases: Callable) -> Iterator[dict]:
    """Give what a trial tells Ray Tune, report by report.

    Args:
        cases: (dataset, cells, head, settings) -> (cell, support, held out) of each part of each support set.
    """
    nothing = {REPORT: 0, SCORE: math.inf if piece.metric == "nll" else -math.inf}
    yield {"rows": [], "progress": 0.0, **nothing}
    value = NAN
    for number, value in enumerate(piece.known, 1):
        yield {"rows": [], "progress": number / piece.reports, REPORT: number, SCORE: value}
    if len(piece.known) < piece.reports:
        for rows in itertools.islice(measure(piece, cases), len(piece.known), None):
            report = {"rows": rows, "progress": max(row.progress for row in rows)}
            value = compared(rows, piece.metric)
            if not math.isnan(value):
                report |= {REPORT: round(report["progress"] * piece.reports), SCORE: value}
            yield report
    last = nothing if math.isnan(value) else {REPORT: piece.reports, SCORE: value}
    yield {"rows": [], "progress": 1.0, "done": True, **last}


def compared(rows: Sequence[Fit], metric: str) -> float:
    """Score a configuration on all datasets; NaN where its fits are not equally far, or one has failed."""
    if not metric or len({row.progress for row in rows}) > 1:
        return NAN
    return score([{**row._asdict(), "dataset": row.cell.dataset} for row in rows], metric)


def cases_of(problem: Problem, cells: tuple[Cell, ...], head: str, settings: str) -> list:
    """List (cell, support, held out) of each part of some support sets of a dataset."""
    return [
        (cell, *case)
        for cell in cells
        for case in heldout.cases(problem, cell, head, json.loads(settings))
    ]


def measure(piece: Piece, cases: Callable) -> Iterator[list[Fit]]:
    """Give the rows of a piece, report by report; `cases` as `reports` takes it."""
    by_dataset = itertools.groupby(sorted(piece.cells), key=lambda cell: cell.dataset)
    own = [tuple(cells) for _, cells in by_dataset]
    if not piece.metric:
        for cells in own:
            yield from _guarded(piece, cells, cases)
        return
    curves = [_guarded(piece, cells, cases) for cells in own]
    while rows := [row for curve in curves for row in next(curve, [])]:
        yield rows


def _guarded(piece: Piece, cells: tuple[Cell, ...], cases: Callable) -> Iterator[list[Fit]]:
    """Give what `_curve` gives; where it raises, try again, and at last give rows with the error."""
    for _ in range(piece.retries + 1):
        try:
            yield from _curve(piece, cells, cases)
            return
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"[:500]
    yield [Fit(piece.configuration, cell, 1.0, NAN, NAN, 0, 0, 0.0, reason) for cell in cells]


def _curve(piece: Piece, cells: tuple[Cell, ...], cases: Callable) -> Iterator[list[Fit]]:
    """Fit on all support sets of one dataset at once."""
    one = piece.configuration
    jobs = cases(cells[0].dataset, cells, one.head, one.head_settings)
    fuser = FUSERS[one.fuser]
    parts = piece.reports if fuser.path else 1
    start = time.perf_counter()
    for part, states in enumerate(_fitted(fuser, one, [job[1] for job in jobs], parts), 1):
        sums: dict[Cell, list] = {}
        for (cell, _, held), state in zip(jobs, states, strict=True):
            log_p = fuser.apply(state, held.logits_KMC, held.embeddings)
            own = sums.setdefault(cell, [0.0, 0.0, 0, 0])
            own[0] += float(outcomes.nll(log_p, held.labels_K).sum())
            own[1] += float(outcomes.top(log_p, held.labels_K, 1).sum())
            own[2] += len(held.labels_K)
            own[3] += 1
        now = time.perf_counter()
        seconds, start = (now - start) / len(sums), now
        yield [_row(one, cell, part / parts, own, seconds) for cell, own in sums.items()]


def _row(one: Configuration, cell: Cell, progress: float, sums: list, seconds: float) -> Fit:
    """Make a row; a fit that gave no finite loss is a failure, and over."""
    nll, right, images, fits = sums
    if math.isfinite(nll):
        return Fit(one, cell, progress, nll / images, right / images, images, fits, seconds)
    error = "diverged: the loss is not finite"
    return Fit(one, cell, 1.0, NAN, right / images, images, fits, seconds, error)


def _fitted(
    fuser: Fuser, one: Configuration, supports: list[Support], parts: int
) -> Iterator[list[State]]:
    """The fitted states, of the whole training or after each of its parts."""
    settings = settings_of(one.fuser, json.loads(one.settings))
    if fuser.path:
        yield from fuser.path(supports, [settings] * len(supports), parts)
    else:
        yield fuser.fit(supports, settings)
