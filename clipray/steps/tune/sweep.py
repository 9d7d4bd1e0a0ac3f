"""Run the trials of a search by Ray Tune: one `Tuner` a wave of configurations, each a trial on actors used again.

The records are the memory. Ray Tune's own files are thrown away: they know nothing more, and could not be restored
after a change of the config.
"""

import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray import tune

from clipray.config.search import Tune
from clipray.steps.tune.records import SCORE, Cell, Fit, Records, score
from clipray.steps.tune.space import Configuration
from clipray.steps.tune.studies import Study
from clipray.steps.tune.trial import Piece, Trial


@dataclass(eq=False)
class Sweep(tune.Callback):
    """Where a search stands, in fits of one configuration on one support set; Ray Tune tells it of its trials.

    Attributes:
        cells: all support sets. show: to be called when something moved.
        ends: by configuration and support set, the last row of what was asked for. known: those of earlier runs.
        seconds: of fitting, earlier runs included. running: trials.
        cut: the budget that ended the search early. best: by search and dataset, the best score so far.
        searches: by configuration, the name of the search that asked for it.
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

    def __getstate__(self) -> dict:
        """Nothing: Ray Tune writes its callbacks into a file that nobody reads."""
        return {}

    @property
    def done(self) -> int:
        """Fits of this run."""
        return len(self.ends) - self.known

    @property
    def reasons(self) -> Counter:
        """How many fits failed, by reason."""
        return Counter(row["error"] for row in self.ends.values() if row["error"])

    def plan(self, studies: Sequence[Study]) -> list[Piece]:
        """The next trials: what the studies draw and the records lack; empty where nothing is left.

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
        """Whether a budget is spent."""
        spent = {"seconds": time.monotonic() - self.start, "core_seconds": self.seconds}
        for name, value in spent.items():
            limit = getattr(self.config, name)
            if limit and value >= limit:
                self.cut = f"{name}: {limit:g}"
        return bool(self.cut)

    def run(self, pieces: Sequence[Piece], problems: dict[str, Any], study: Study | None) -> None:
        """Fit some pieces.

        Args:
            problems: by dataset, the object reference of its `Problem`.
            study: whose scheduler may stop trials.
        """
        os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1000000000")
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
        os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # or the next wave would begin
        config, threads = self.config, max(1, int(self.config.trial_cpus))
        self.study = study
        trainable = tune.with_parameters(Trial, problems=problems, threads=threads)
        how = tune.TuneConfig(
            scheduler=study.scheduler() if study else None,
            max_concurrent_trials=config.max_concurrent_trials or None,
            reuse_actors=True,
        )
        with tempfile.TemporaryDirectory() as place:
            run_config = tune.RunConfig(
                storage_path=place,
                failure_config=tune.FailureConfig(max_failures=config.retries),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                # a trial's first report comes before its first fit: a spent budget ends it there
                stop=lambda _, result: (
                    result["progress"] == 0 and not result["rows"] and self.over()
                ),
                callbacks=[self],
                verbose=0,
            )
            tune.Tuner(
                tune.with_resources(trainable, {"cpu": config.trial_cpus}),
                param_space={"piece": tune.grid_search(list(pieces))},
                tune_config=how,
                run_config=run_config,
            ).fit()
        self.records.flush()

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
