"""A search as Ray Tune sees it: what trial comes next, what its reports mean, and what to do when one dies."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.tune import Stopper
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from clipray.config.search import Tune
from clipray.steps.tune.records import Cell, Fit, Records, score
from clipray.steps.tune.studies import Asked, Study
from clipray.steps.tune.trial import Piece


@dataclass
class Work:
    """A piece on its way: whose it is, and how often its worker died."""

    study: Study
    asked: list[Asked]
    cells: list[Cell]
    deaths: int = 0
    stopped: float = 0.0  # progress at which the scheduler ended it


@dataclass
class Reasons(FIFOScheduler):
    """First come, first served; remembers why a trial died, which the searcher is not told."""

    last: str = ""

    def __post_init__(self) -> None:
        super().__init__()

    def on_trial_error(self, controller: Any, trial: Any) -> None:
        """Keep the reason."""
        error = trial.get_error()
        self.last = (
            f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
            if error
            else "its worker died"
        )


@dataclass
class Counts:
    """Where a sweep stands, in fits of one configuration on one support set."""

    done: int = 0  # of this run
    known: int = 0  # from earlier runs
    failed: int = 0
    running: int = 0  # trials
    total: int = 0
    seconds: float = 0.0  # of fitting, earlier runs included
    reasons: dict[str, int] = field(default_factory=dict)


class Sweep(Searcher, Stopper):
    """Hands out pieces of work in turn over the studies, keeps the rows that come back, and decides who goes on.

    Args:
        studies: of all searches and scopes. alive: of the time that is left (called before each new trial).
    """

    def __init__(
        self, studies: Sequence[Study], records: Records, config: Tune, scheduler: Reasons
    ):
        super().__init__()
        self.records, self.config, self.scheduler = records, config, scheduler
        self.studies, self.again = deque(studies), deque()
        self.works: dict[str, Work] = {}
        self.start = time.monotonic()
        self.counts = Counts(
            total=sum((study.samples + len(study.first)) * len(study.cells) for study in studies)
        )
        self.paid: set[str] = set()
        self.cut = ""  # the budget that ended the search early
        self.best: dict[tuple[str, str], float] = {}  # by search and dataset, the best score so far
        self.ready = self._next()  # what is recorded is passed over before any trial starts

    def suggest(self, trial_id: str) -> dict | str | None:
        """The next trial's config; None while others may still leave work behind."""
        work = self.again.popleft() if self.again else self._take()
        if work is None:
            return None if self.works else Searcher.FINISHED
        self.works[trial_id] = work
        by_dataset: dict[str, list[Cell]] = {}
        for cell in work.cells:
            by_dataset.setdefault(cell.dataset, []).append(cell)
        cells = {name: tuple(own) for name, own in by_dataset.items()}
        together, how = self.config.scheduler != "none", self.config
        methods = tuple(asked.configuration for asked in work.asked)
        return {"piece": Piece(methods, cells, how.reports, together, how.retries)}

    def _take(self) -> Work | None:
        work, self.ready = self.ready, None
        return work or self._next()

    def _next(self) -> Work | None:
        """Configurations with something to fit, up to a batch of one study; studies take turns."""
        while self.studies and not self._over():
            study = self.studies[0]
            work = self._batch(study)
            if work:
                self.studies.rotate(-1)
                return work
            self.studies.popleft()  # it has nothing left to ask
        return None

    def _batch(self, study: Study) -> Work | None:
        """The next configurations of a study that lack rows on the same support sets; None where none is left."""
        # What an adaptive study asks next depends on the answer, so it asks one at a time.
        most = 1 if study.adaptive else self.config.batch
        work = None
        while (asked := study.ask()) is not None:
            cells = [cell for cell in study.cells if not self._recorded(asked, cell)]
            if not cells:
                self._finished(study, asked)
                continue
            if self.config.scheduler != "none":
                cells = list(study.cells)  # a report that may stop a training tells of all of them
            if work and work.cells != cells:
                study.first.append(asked)  # for the next batch
                return work
            work = work or Work(study, [], cells)
            work.asked.append(asked)
            if len(work.asked) == most:
                return work
        return work

    def _over(self) -> bool:
        spent = {"seconds": time.monotonic() - self.start, "core_seconds": self.counts.seconds}
        for name, value in spent.items():
            limit = getattr(self.config, name)
            if limit and value >= limit:
                self.cut = f"{name}: {limit:g}"
        return bool(self.cut)

    def _recorded(self, asked: Asked, cell: Cell) -> bool:
        row = self.records.end(asked.configuration, cell)
        if row is None:
            return False
        if row["key"] not in self.paid:
            self._pay(row["key"], row["seconds"], row["error"])
            self.counts.known += 1
        return True

    def _pay(self, key: str, seconds: float, error: str | None) -> None:
        self.paid.add(key)
        self.counts.seconds += seconds
        if error:
            self.counts.failed += 1
            self.counts.reasons[error] = self.counts.reasons.get(error, 0) + 1

    def __call__(self, trial_id: str, result: dict) -> bool:
        """Keep a report's rows; whether the trial ends here."""
        work, rows = self.works[trial_id], result.get("rows", ())
        for row in rows:
            if row.progress == 1:
                self.counts.done += 1
                self._pay(self.records.key(row.configuration, row.cell), row.seconds, row.error)
        self.records.add(rows)
        self._compare(work, {row.cell.dataset for row in rows})
        steps = {row.progress for row in rows}
        if self.config.scheduler == "none" or len(steps) != 1:
            return bool(result.get("done"))
        (progress,) = steps
        value = score(
            [{**row._asdict(), "dataset": row.cell.dataset} for row in rows], self.config.metric
        )
        step = round(progress * self.config.reports)
        if value == value and work.study.stops(work.asked[0], step, value):
            work.stopped = progress
            self.counts.total -= len(work.cells)
            return True
        return bool(result.get("done"))

    def _compare(self, work: Work, datasets: set[str]) -> None:
        better = min if self.config.metric == "nll" else max
        for dataset in datasets:
            cells = [cell for cell in work.study.cells if cell.dataset == dataset]
            for asked in work.asked:
                ends = [self.records.end(asked.configuration, cell) for cell in cells]
                value = score(ends, self.config.metric) if all(ends) else float("nan")
                if value == value:
                    place = (work.study.search.name, dataset)
                    self.best[place] = better(value, self.best.get(place, value))

    def stop_all(self) -> bool:
        """Never all at once: a budget lets what runs come to its end."""
        return False

    def on_trial_complete(
        self, trial_id: str, result: dict | None = None, error: bool = False
    ) -> None:
        """Tell the study; give what a dead worker left undone to another, a bounded number of times."""
        work = self.works.pop(trial_id)
        if error:
            self._died(work)
            return
        for asked in work.asked:
            self._finished(work.study, asked, work.stopped)

    def _died(self, work: Work) -> None:
        """The undone part again, each configuration for itself, so that a killer takes none with it."""
        for asked in work.asked:
            left = [
                cell for cell in work.cells if self.records.end(asked.configuration, cell) is None
            ]
            if left and work.deaths < self.config.retries:
                cells = work.cells if self.config.scheduler != "none" else left
                self.again.append(Work(work.study, [asked], cells, work.deaths + 1))
                continue
            nan, reason = (
                float("nan"),
                f"its worker died {work.deaths + 1} times ({self.scheduler.last})",
            )
            lost = [
                Fit(asked.configuration, cell, 1.0, nan, nan, 0, 0, 0.0, reason) for cell in left
            ]
            for fit in lost:
                self._pay(self.records.key(*fit[:2]), 0.0, reason)
            self.counts.done += len(lost)
            self.records.add(lost)
            self._finished(work.study, asked)

    def _finished(self, study: Study, asked: Asked, stopped: float = 0.0) -> None:
        ends = [self.records.end(asked.configuration, cell) for cell in study.cells]
        complete = all(row is not None and row["error"] is None for row in ends)
        study.tell(asked, 1.0 if complete else stopped)

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing to keep: what matters is in the records."""

    def restore(self, checkpoint_path: str) -> None:
        """Never called: a search goes on from its records."""
