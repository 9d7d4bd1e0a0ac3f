"""Draw the configurations to try: an `OptunaSearch` of Ray Tune for each scope that must not see the others.

A study draws in waves and is told how they ended in the order in which it drew them. So neither the number of workers
nor a kill changes what it draws: the same command again replays the study from the records.
"""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from clipray.config import fingerprint
from clipray.config.search import Search, Tune
from clipray.steps.tune import space as spaces
from clipray.steps.tune.records import REPORT, SCORE, Cell, Records, score
from clipray.steps.tune.space import Configuration

MISSES = 200  # draws of what was drawn before, after which a space counts as exhausted
STARTUP = 10  # draws of TPE that are random, so that it can make them at once (Optuna's default)


class Asked(NamedTuple):
    """A configuration to try; `chosen`: values of the space, empty for the defaults."""

    configuration: Configuration
    chosen: dict[str, Any]


class Past(NamedTuple):
    """A trial of an earlier run, as Ray Tune's schedulers know it."""

    trial_id: str


class Study:
    """One search, guided by some support sets and by no others.

    Args:
        cells: the support sets that guide it.

    Attributes:
        drawn: every configuration so far, the defaults first. names: of those that the sampler was not told of.
        reached: by configuration, the progress at which a scheduler ended it (see `Records.tell`).
    """

    def __init__(self, search: Search, config: Tune, cells: Sequence[Cell], records: Records):
        self.search, self.config, self.cells, self.records = search, config, tuple(cells), records
        how = config.model_dump(
            include={"metric", "sampler", "scheduler", "reports", "selection", "seed"}
        )
        own = sorted((records.sources[cell.dataset], *cell[1:]) for cell in cells)
        self.key = fingerprint({"search": search, "how": how, "cells": own})
        self.reached = records.reached.setdefault(self.key, {})
        grid = spaces.grid(search) if config.sampler == "grid" else []
        self.samples = self.left = config.samples or len(grid)
        self.drawn: dict[Configuration, Asked] = {}
        self.names: list[tuple[str, Configuration]] = []
        self.mode = "min" if config.metric == "nll" else "max"
        self._open(grid)

    def _open(self, grid: list[dict]) -> None:
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        tpe, seed = self.config.sampler == "tpe", self.config.seed
        kind = optuna.samplers.TPESampler if tpe else optuna.samplers.RandomSampler
        # in an order of chance, so that a part of a grid is spread over it
        order = np.random.default_rng(seed).permutation(len(grid))[::-1]
        self.storage = optuna.storages.InMemoryStorage()
        self.searcher = OptunaSearch(
            lambda trial: {"chosen": spaces.suggest(trial, self.search)},
            metric=SCORE,
            mode=self.mode,
            points_to_evaluate=[spaces.params(grid[i]) for i in order],
            sampler=kind(seed=seed),
            storage=self.storage,
        )

    def tell(self) -> None:
        """Tell the sampler how the last wave ended."""
        for name, one in self.names:
            ends = self.ends(one, self.cells)
            if self.config.scheduler != "none":
                for report in self.curve(one):
                    self.searcher.on_trial_result(name, report)
            result = {SCORE: score(ends, self.config.metric)} if ends else None
            failed = not ends and not self.reached.get(one)
            self.searcher.on_trial_complete(name, result, error=failed)
        self.names = []

    def draw(self) -> list[Configuration]:
        """Draw the next wave: all that is left, or some where the sampler learns; empty at the end."""
        self.tell()
        wave = []
        if not self.drawn:
            wave.append(self._keep(spaces.configuration(self.search, {}), {}))
        most = self.left
        if self.config.sampler == "tpe":
            drawn = len(self.drawn) - 1
            most = max(self.config.batch, drawn // 4) if drawn else STARTUP
        while len(self.names) < min(most, self.left) and (one := self._ask()):
            wave.append(one)
        self.left -= len(self.names)
        return wave

    def _ask(self) -> Configuration | None:
        for miss in range(MISSES):
            name = f"{len(self.drawn)}-{miss}"
            chosen = self.searcher.suggest(name)["chosen"]
            one = spaces.configuration(self.search, chosen)
            if one not in self.drawn:
                self.names.append((name, one))
                return self._keep(one, chosen)
            self.searcher.on_trial_complete(name, error=True)
        self.left = len(self.names)
        return None

    def _keep(self, one: Configuration, chosen: dict) -> Configuration:
        self.drawn[one] = Asked(one, chosen)
        return one

    @property
    def tried(self) -> list[Asked]:
        """List what was drawn and has rows."""
        curve = self.records.curve
        return [
            asked
            for one, asked in self.drawn.items()
            if any(curve(one, cell) for cell in self.cells)
        ]

    def ends(self, one: Configuration, cells: Sequence[Cell]) -> list[dict] | None:
        """Return the last rows of a configuration on some support sets; None where it failed or was stopped."""
        return None if self.reached.get(one, 1) < 1 else self.records.ends(one, cells)

    def curve(self, one: Configuration) -> list[dict]:
        """List the reports of a training that is recorded, up to where it was stopped."""
        curves = [self.records.curve(one, cell) for cell in self.cells]
        found = []
        for step in range(1, round(self.reached.get(one, 1) * self.config.reports) + 1):
            rows = [curve.get(step / self.config.reports) for curve in curves]
            if not all(rows) or any(row["error"] for row in rows):
                break
            value = score(rows, self.config.metric)
            found.append({REPORT: step, "training_iteration": step, SCORE: value})
        return found

    def compares(self, one: Configuration) -> bool:
        """Tell whether a scheduler may end its training; never that of the defaults."""
        return self.config.scheduler != "none" and one != next(iter(self.drawn))

    def missing(self, one: Configuration) -> list[Cell]:
        """List the support sets that it has to be fitted on; all of them where a scheduler compares it."""
        left = [cell for cell in self.cells if self.records.end(one, cell) is None]
        if not self.compares(one):
            return left
        return [] if one in self.reached else list(self.cells)

    def close(self, one: Configuration, reached: float) -> None:
        """Keep how far the scheduler let a configuration train; 0 where a fit of it failed."""
        rows = [self.records.end(one, cell) for cell in self.cells]
        failed = any(row and row["error"] for row in rows)
        self.records.tell(self.key, one, 0.0 if failed else reached)

    def scheduler(self) -> Any:
        """Make Ray Tune's scheduler, and show it the trainings that are recorded."""
        from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule

        how = {"time_attr": REPORT, "metric": SCORE, "mode": self.mode, "grace_period": 1}
        if self.config.scheduler == "asha":
            scheduler = ASHAScheduler(max_t=self.config.reports, reduction_factor=3, **how)
        else:  # no time slice, as a pause would lose the training
            scheduler = MedianStoppingRule(
                min_samples_required=5, min_time_slice=float("inf"), **how
            )
        for one in self.reached:
            self._show(scheduler, one)
        return scheduler

    def _show(self, scheduler: Any, one: Configuration) -> None:
        past, curve = Past(one.text), self.curve(one)
        scheduler.on_trial_add(None, past)
        for result in curve:
            if scheduler.on_trial_result(None, past, result) == scheduler.STOP:
                break
        if curve:
            scheduler.on_trial_complete(None, past, curve[-1])

    def importance(self) -> dict[str, float]:
        """Compute each setting's share in what moves the score; empty where there is too little to say."""
        import optuna

        study = optuna.load_study(study_name="optuna", storage=self.storage)
        done = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        if len({trial.value for trial in done}) < 4:
            return {}
        how = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return optuna.importance.get_param_importances(study, evaluator=how)


def adaptive(config: Tune) -> bool:
    """Tell whether scores decide what is tried; then each scope needs a study that sees its own support sets only."""
    return config.sampler == "tpe" or config.scheduler != "none"


def scopes(config: Tune, cells: Sequence[Cell]) -> dict[tuple, list[Cell]]:
    """List by (dataset, shots, seed) of a choice, None standing for all, the support sets that may guide it."""
    everywhere = {(None, None, None): list(cells)}
    if config.selection == "universal":
        return everywhere
    if config.selection == "per_dataset":
        return {tuple(cell): [cell] for cell in cells}
    datasets = dict.fromkeys(cell.dataset for cell in cells)
    return everywhere | {
        (name, None, None): [cell for cell in cells if cell.dataset != name] for name in datasets
    }
