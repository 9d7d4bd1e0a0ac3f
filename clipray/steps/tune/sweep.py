"""Run a search by Ray Tune: one `Tuner`, each configuration a trial, on actors that are used again.

The trials come in waves. A wave is drawn when the one before it has ended, by Ray Tune's `OptunaSearch`, and its trials
are compared by Ray Tune's schedulers (see `studies`). The records are the memory. Ray Tune's own files are thrown away:
they know nothing more, and could not be restored after a change of the config.
"""

import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from clipray.config.search import Tune
from clipray.steps.tune.records import SCORE, Cell, Fit, Records, score
from clipray.steps.tune.space import Configuration
from clipray.steps.tune.studies import Study
from clipray.steps.tune.trial import Piece, Trial


class Waves(Searcher):
    """Hand out the trials of one wave after another.

    Args:
        waves: the trials of each; asked for the next wave when all trials of the last one have ended.
    """

    def __init__(self, waves: Iterable[list[Piece]]):
        super().__init__()
        self.waves, self.wave, self.out = iter(waves), [], set()

    def suggest(self, trial_id: str) -> dict | str | None:
        """Return the next trial's config; None while a wave comes to its end."""
        if not self.wave and self.out:
            return None
        if not self.wave:
            self.wave = list(next(self.waves, ()))
        if not self.wave:
            return Searcher.FINISHED
        self.out.add(trial_id)
        return {"piece": self.wave.pop(0)}

    def on_trial_complete(
        self, trial_id: str, result: dict | None = None, error: bool = False
    ) -> None:
        """Count a trial as ended."""
        self.out.discard(trial_id)

    def __getstate__(self) -> dict:
        """Give nothing to the files of Ray Tune: a search goes on from its records."""
        return {}

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Write nothing, for the same reason."""


class Turns(FIFOScheduler):
    """Let the scheduler of the study whose wave it is decide: no study sees another one's scores."""

    def __init__(self) -> None:
        super().__init__()
        self.now = FIFOScheduler()

    def on_trial_add(self, controller: Any, trial: Any) -> None:
        """Tell it of a new trial."""
        self.now.on_trial_add(controller, trial)

    def on_trial_result(self, controller: Any, trial: Any, result: dict) -> str:
        """Ask it whether a trial goes on."""
        return self.now.on_trial_result(controller, trial, result)

    def on_trial_complete(self, controller: Any, trial: Any, result: dict) -> None:
        """Tell it of a trial's end."""
        self.now.on_trial_complete(controller, trial, result)


@dataclass(eq=False)
class Sweep(tune.Callback):
    """Count where a search stands, in fits of one configuration on one support set; Ray Tune tells it of its trials.

    Attributes:
        cells: all support sets. show: to be called when something moved.
        ends: by configuration and support set, the last row of what was asked for. known: those of earlier runs.
        seconds: of fitting, earlier runs included. running: trials.
        cut: the budget that ended the search early. best: by search and dataset, the best score so far.
        searches: by configuration, the name of the search that asked for it.
        turns: the scheduler. study: whose trials it may stop.
    """

    records: Records
    config: Tune
    cells: Sequence[Cell]
    show: Callable[[], None] | None = None
    ends: dict[tuple[Configuration, Cell], dict] = field(default_factory=dict)
    known: int = 0
    failed: int = 0
    seconds: float = 0.0
    running: int = 0
    cut: str = ""
    best: dict[tuple[str, str], float] = field(default_factory=dict)
    searches: dict[Configuration, str] = field(default_factory=dict)
    start: float = field(default_factory=time.monotonic)
    turns: Turns = field(default_factory=Turns)
    study: Study | None = None

    def __getstate__(self) -> dict:
        """Give nothing to a file that nobody reads, in which Ray Tune keeps its callbacks."""
        return {}

    @property
    def done(self) -> int:
        """Count the fits of this run."""
        return len(self.ends) - self.known

    @property
    def reasons(self) -> Counter:
        """Count by reason how many fits failed."""
        return Counter(row["error"] for row in self.ends.values() if row["error"])

    def waves(self, studies: Sequence[Study]) -> Iterator[list[Piece]]:
        """Give the trials of one wave after another.

        A scheduler compares the trials of one scope only, so scopes then take turns.
        """
        scheduled = self.config.scheduler != "none"
        for group in [[study] for study in studies] if scheduled else [studies]:
            while pieces := self.plan(group):
                if scheduled:
                    (self.study,) = group
                    self.turns.now = self.study.scheduler()
                yield pieces

    def plan(self, studies: Sequence[Study]) -> list[Piece]:
        """List the next trials: what the studies draw and the records lack; empty where nothing is left.

        What several studies ask for is one trial, on the support sets of all of them.
        """
        wanted: dict[Configuration, dict[Cell, None]] = {}
        while not wanted and not self.over():
            waves = [(study, study.draw()) for study in studies]
            if not any(wave for _, wave in waves):
                break
            for study, wave in waves:
                for one in wave:
                    self.searches.setdefault(one, study.search.name)
                    for cell in study.cells:
                        self._count(one, cell, known=True)
                    if missing := study.missing(one):
                        wanted.setdefault(one, {}).update(dict.fromkeys(missing))
        return [self._piece(studies[0], one, tuple(cells)) for one, cells in wanted.items()]

    def _piece(self, study: Study, one: Configuration, cells: tuple[Cell, ...]) -> Piece:
        how = self.config.reports, self.config.retries
        if not study.compares(one):
            return Piece(one, cells, *how)
        known = tuple(report[SCORE] for report in study.curve(one))
        return Piece(one, cells, *how, self.config.metric, known)

    def over(self) -> bool:
        """Tell whether a budget is spent."""
        spent = {"seconds": time.monotonic() - self.start, "core_seconds": self.seconds}
        for name, value in spent.items():
            limit = getattr(self.config, name)
            if limit and value >= limit:
                self.cut = f"{name}: {limit:g}"
        return bool(self.cut)

    def run(self, waves: Iterable[list[Piece]], problems: dict[str, Any]) -> None:
        """Fit what the waves ask for.

        Args:
            problems: by dataset, the object reference of its `Problem`.
        """
        os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1000000000")
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
        # else Ctrl-C would end the trials, and what they left would be published as the whole search
        os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
        config, threads = self.config, max(1, int(self.config.trial_cpus))
        trainable = tune.with_parameters(Trial, problems=problems, threads=threads)
        how = tune.TuneConfig(
            search_alg=Waves(waves),
            scheduler=self.turns,
            num_samples=-1,  # the waves end
            max_concurrent_trials=config.max_concurrent_trials or None,
            reuse_actors=True,
        )
        with tempfile.TemporaryDirectory() as place:
            run_config = tune.RunConfig(
                storage_path=place,
                failure_config=tune.FailureConfig(max_failures=config.retries),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                stop=self._stops,
                callbacks=[self],
                verbose=0,
            )
            trainable = tune.with_resources(trainable, {"cpu": config.trial_cpus})
            tune.Tuner(trainable, tune_config=how, run_config=run_config).fit()

    def _stops(self, trial_id: str, result: dict) -> bool:
        """Tell whether a trial ends before its first fit, for a budget is spent; the report before it has no rows."""
        return result["progress"] == 0 and not result["rows"] and self.over()

    def on_trial_result(
        self, iteration: int, trials: list, trial: Any, result: dict, **info: Any
    ) -> None:
        """Keep a report's rows, here alone."""
        self._keep(result.pop("rows"))

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Keep how far the scheduler let a configuration train."""
        piece, reached = trial.config["piece"], trial.last_result["progress"]
        if piece.metric and reached:
            self.study.close(piece.configuration, reached)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Blame the configuration whose workers died as often as Ray Tune tries."""
        error, piece, nan = trial.get_error(), trial.config["piece"], float("nan")
        words = f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
        reason = f"its worker died {trial.run_metadata.num_failures} times ({words})"
        one = piece.configuration
        self._keep(Fit(one, cell, 1.0, nan, nan, 0, 0, 0.0, reason) for cell in piece.cells)
        if piece.metric:
            self.study.close(one, 0.0)

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        """Say where the search stands."""
        self.running = sum(trial.status == "RUNNING" for trial in trials)
        self.show()

    def _keep(self, rows: Any) -> None:
        for fit in self.records.add(rows):
            self._count(fit.configuration, fit.cell)

    def _count(self, one: Configuration, cell: Cell, known: bool = False) -> None:
        """Count a fit once it has come to its end."""
        row = self.records.end(one, cell)
        if row is None or (one, cell) in self.ends:
            return
        self.ends[one, cell] = row
        self.known += known
        self.failed += row["error"] is not None
        self.seconds += sum(part["seconds"] for part in self.records.curve(one, cell).values())
        cells = [other for other in self.cells if other.dataset == cell.dataset]
        if rows := self.records.ends(one, cells):
            better = min if self.config.metric == "nll" else max
            place, value = (self.searches[one], cell.dataset), score(rows, self.config.metric)
            self.best[place] = better(value, self.best.get(place, value))
