"""Which configuration to try next, and which to stop: an Optuna study for each scope that must not see the others.

Optuna's samplers and pruners decide (its SuccessiveHalvingPruner is ASHA), because their history can be told: a killed
search goes on from its records, which the state inside Ray Tune's own schedulers does not allow. Ray Tune runs trials.
"""

import json
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.trial import TrialState, create_trial

from clipray.config import fingerprint
from clipray.config.search import Search, Tune
from clipray.steps.tune import space as spaces
from clipray.steps.tune.records import Cell, Records, score
from clipray.steps.tune.space import Configuration

MISSES = 200  # draws of what was tried before, after which a space counts as exhausted


class Asked(NamedTuple):
    """A configuration to try.

    Attributes:
        chosen: values of the space; empty for the defaults.
        trial: Optuna's; None for the defaults, which are never stopped.
    """

    configuration: Configuration
    chosen: dict[str, Any]
    trial: Any


class Study:
    """One search, guided by some support sets and by no others.

    Args:
        cells: the support sets that guide it.
        records: what is known; the study's own history is told to Optuna first.
    """

    def __init__(self, search: Search, config: Tune, cells: Sequence[Cell], records: Records):
        self.search, self.config, self.cells, self.records = search, config, tuple(cells), records
        self.adaptive = adaptive(config)
        how = config.model_dump(
            include={"metric", "sampler", "scheduler", "reports", "selection", "seed"}
        )
        told = {
            "search": search,
            "how": how,
            "cells": sorted((records.sources[c.dataset], *c[1:]) for c in cells),
        }
        self.key = fingerprint(told)
        self.grid = _shuffled(spaces.grid(search), config.seed) if config.sampler == "grid" else []
        self.samples = config.samples or len(self.grid)
        self.tried = [Asked(spaces.configuration(search, {}), {}, None)]
        self.first = list(self.tried)
        self.seen = {self.tried[0].configuration}
        self.study = self._optuna()
        for row in records.trials.get(self.key, []) if self.adaptive else ():
            self._remember(row)
            self.samples -= 1

    def _optuna(self) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        seed, low = self.config.seed, self.config.metric == "nll"
        sampler = optuna.samplers.TPESampler(seed=seed) if self.config.sampler == "tpe" else None
        sampler = sampler or optuna.samplers.RandomSampler(seed=seed)
        pruner = {
            "none": optuna.pruners.NopPruner,
            "asha": lambda: optuna.pruners.SuccessiveHalvingPruner(
                min_resource=1, reduction_factor=3
            ),
            "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1),
        }[self.config.scheduler]()
        return optuna.create_study(
            direction="minimize" if low else "maximize", sampler=sampler, pruner=pruner
        )

    def _remember(self, row: dict) -> None:
        chosen = json.loads(row["chosen"])
        one = spaces.configuration(self.search, chosen)
        self._keep(Asked(one, chosen, None))
        params, kinds = spaces.told(self.search, chosen)
        curve = {}
        for step in range(1, self.config.reports + 1):
            rows = [
                self.records.curve(one, cell).get(step / self.config.reports) for cell in self.cells
            ]
            if all(rows):
                curve[step] = score(rows, self.config.metric)
        state = {1.0: TrialState.COMPLETE, 0.0: TrialState.FAIL}.get(
            row["reached"], TrialState.PRUNED
        )
        ends = [self.records.end(one, cell) for cell in self.cells] if row["reached"] == 1 else []
        end = score(ends, self.config.metric) if ends else None
        self.study.add_trial(
            create_trial(
                state=state,
                params=params,
                distributions=kinds,
                value=end,
                intermediate_values=curve,
            )
        )

    def ask(self) -> Asked | None:
        """The next configuration, the defaults first; None where there is none left."""
        if self.first:
            return self.first.pop()
        for _ in range(MISSES if self.samples > 0 else 0):
            if self.config.sampler == "grid":
                if not self.grid:
                    break
                self.study.enqueue_trial(spaces.told(self.search, self.grid.pop())[0])
            trial = self.study.ask()
            chosen = spaces.suggest(trial, self.search)
            asked = Asked(spaces.configuration(self.search, chosen), chosen, trial)
            if asked.configuration not in self.seen:
                self._keep(asked)
                self.samples -= 1
                return asked
            self.study.tell(trial, state=TrialState.FAIL)
        self.samples = 0
        return None

    def _keep(self, asked: Asked) -> None:
        self.tried.append(asked)
        self.seen.add(asked.configuration)

    def stops(self, asked: Asked, step: int, value: float) -> bool:
        """Whether a training ends here, by what it scored after part `step` of it."""
        if asked.trial is None:
            return False
        asked.trial.report(value, step)
        return step < self.config.reports and asked.trial.should_prune()

    def tell(self, asked: Asked, reached: float) -> None:
        """A configuration is done: at its end (1), stopped before it, or failed (0)."""
        if asked.trial is None:
            return
        value = None
        if reached == 1:
            value = score(
                [self.records.end(asked.configuration, cell) for cell in self.cells],
                self.config.metric,
            )
        state = {1.0: TrialState.COMPLETE, 0.0: TrialState.FAIL}.get(reached, TrialState.PRUNED)
        self.study.tell(asked.trial, value, state)
        if self.adaptive:
            self.records.tell(self.key, json.dumps(asked.chosen, sort_keys=True), reached)

    def importance(self) -> dict[str, float]:
        """Each setting's share in what moves the score; empty where there is too little to say."""
        told = optuna.create_study(direction="minimize")
        for asked in self.tried:
            rows = [self.records.end(asked.configuration, cell) for cell in self.cells]
            if asked.chosen and all(row is not None and row["error"] is None for row in rows):
                params, kinds = spaces.told(self.search, asked.chosen)
                value = score(rows, self.config.metric)
                told.add_trial(create_trial(params=params, distributions=kinds, value=value))
        if len({trial.value for trial in told.trials}) < 4:
            return {}
        how = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return optuna.importance.get_param_importances(told, evaluator=how)


def adaptive(config: Tune) -> bool:
    """Whether scores decide what is tried; then each scope needs a study that sees its own support sets only."""
    return config.sampler == "tpe" or config.scheduler != "none"


def scopes(config: Tune, cells: Sequence[Cell]) -> dict[tuple, list[Cell]]:
    """By (dataset, shots, seed) that a choice is for, None standing for all: the support sets that may guide it."""
    if config.selection == "universal":
        return {(None, None, None): list(cells)}
    if config.selection == "per_dataset":
        return {tuple(cell): [cell] for cell in cells}
    datasets = dict.fromkeys(cell.dataset for cell in cells)
    others = {
        (name, None, None): [cell for cell in cells if cell.dataset != name] for name in datasets
    }
    return {(None, None, None): list(cells), **others}


def _shuffled(every: list, seed: int) -> list:
    """In an order of chance, so that a part of a grid is spread over it."""
    return [every[i] for i in np.random.default_rng(seed).permutation(len(every))]
