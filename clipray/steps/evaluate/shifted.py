"""Scores under shift, for one dataset: heads and fusers fitted on clean support images, applied to perturbed ones."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from clipray import schema
from clipray.artefacts.evaluations import Task
from clipray.artefacts.robustness import FILE, Shifted
from clipray.config import Head
from clipray.numerics.contracts import Head as FittedHead
from clipray.numerics.contracts import State
from clipray.numerics.fusers import FUSERS, singles
from clipray.numerics.fusers.unlabelled import Images
from clipray.numerics.heads import HEADS, cross_fit, head_of
from clipray.numerics.heads.cross_fit import View
from clipray.numerics.measures import complementarity, intervals, outcomes
from clipray.perturbations import CLEAN
from clipray.steps import read, spill
from clipray.steps.checks import named_heads
from clipray.steps.evaluate import score as evaluate
from clipray.steps.evaluate.fit import States, fit_on_all
from clipray.steps.evaluate.rows import ON_TEST
from clipray.steps.evaluate.stream import Ready
from clipray.steps.evaluate.weights import weights_of
from clipray.store import Store

RESAMPLES = 300
OF_SET = ("oracle", "best", "mean", "oracle_gain", "complementarity", "mean_kappa")


class Shift(NamedTuple):
    """The test images under one perturbation.

    Attributes:
        views: of M backbones.
        expected: images, embedded or not.
    """

    perturbation: str
    severity: int
    labels_N: Tensor
    views: tuple[View, ...]
    expected: int


@dataclass(frozen=True)
class Fitted:
    """A head and its fusers, fitted on one clean support set.

    Attributes:
        states: of the fusers; None for those without labels.
        pool: clean train images, where a fuser learns from them without labels.
    """

    head: Head
    shots: int
    seed: int
    model: FittedHead
    head_states: list[State]
    states: States | None
    pool: Images | None


def score(store: Store, shifted: Shifted, place: str) -> None:
    """Score every head and fuser of one dataset on clean and perturbed copies of the same images."""
    weights = read.read_classifiers(store, shifted.task)
    fits = list(fit(store, shifted.task, weights))
    rows: list[dict] = []
    for shift in shifts(store, shifted, weights):
        for fitted in fits:
            rows += scored(shifted.task, fitted, shift)
    store.write_table(f"{place}/{FILE}", pa.Table.from_pylist(rows, schema=schema.SCORES))
    store.finish(place, shifted.what, rows=len(rows))


def shifts(store: Store, shifted: Shifted, weights: tuple[Tensor, ...]) -> Iterator[Shift]:
    """Yield the clean images that have perturbed copies, then the copies, part by part."""
    task, classes = shifted.task, len(weights[0])
    ids: set[str] = set()
    for part in shifted.parts:
        if not part.given and not ids:
            ids = set(read.read_split(store, part.embeddings, classes).image_ids)
    clean = read.read_split(store, task.embeddings["test"], classes)
    rows = [row for row, image_id in enumerate(clean.image_ids) if image_id in ids or not ids]
    kept = torch.tensor(rows, dtype=torch.int64)
    same = clean._replace(embeddings=tuple(e_ND[kept] for e_ND in clean.embeddings))
    yield Shift(CLEAN, 0, clean.labels_N[kept], read.views_of(task, weights, same), len(rows))
    for part in shifted.parts:
        split = read.read_split(store, part.embeddings, classes)
        views = read.views_of(task, weights, split)
        yield Shift(part.perturbation, part.severity, split.labels_N, views, part.expected)


def fit(store: Store, task: Task, weights: tuple[Tensor, ...]) -> Iterator[Fitted]:
    """Fit every head and fuser on the clean support sets, as `evaluate` does."""
    classes, drawn, problems, pool = len(weights[0]), [], [], None
    if "train" in task.embeddings and task.shots:
        train = read.read_train(store, task, classes)
        drawn = read.draw(store, task, train, classes, task.shots, task.seeds).draws
        views = read.views_of(task, weights, train)
        pool = views if evaluate.asks_for_pool(task) else None
        problems = [
            cross_fit.shots_of(views, train.labels_N, draw.rows_K, draw.seed) for draw in drawn
        ]
    for entry in named_heads(task.heads):
        if not HEADS[entry.head].needs_labels:
            model = head_of(entry.head, entry.settings_for(0, 0))
            yield _fitted((entry, 0, 0), model, [None] * len(weights), pool, None)
        yield from _fitted_on(task, entry, drawn, problems, pool)


def _fitted_on(
    task: Task, entry: Head, drawn: list, problems: list, pool: Sequence[View] | None
) -> Iterator[Fitted]:
    """Fit one head, and its fusers, on every support set."""
    models = [head_of(entry.head, entry.settings_for(draw.shots, draw.seed)) for draw in drawn]
    parted = [
        cross_fit.parted(model, problem, task.folds, task.held_out, spill.room)
        for model, problem in zip(models, problems, strict=True)
    ]
    problems, supports = [one.problem for one in parted], [one.support for one in parted]
    states = fit_on_all(task, drawn, supports)
    labelled = HEADS[entry.head].needs_labels
    for draw, model, problem, own in zip(drawn, models, problems, states, strict=True):
        learned = problem if labelled else [None] * len(problem)
        yield _fitted((entry, draw.shots, draw.seed), model, learned, pool, own)


def _fitted(
    place: tuple[Head, int, int],
    model: FittedHead,
    problem: list,
    pool: Sequence[View] | None,
    states: States | None,
) -> Fitted:
    learned = model.fit(problem, model.settings)
    more = None if pool is None else evaluate.seen(model, learned, pool)
    return Fitted(*place, model, learned, states, more)


def scored(task: Task, fitted: Fitted, shift: Shift) -> Iterator[dict]:
    """Yield the rows (`schema.SCORES`) of one fitted head, and of the fusers on it, under one shift.

    What does not depend on labels (single backbones, bounds, label-free fusers) is scored once a head: with the head's
    own support set where it has one. A fuser that learns from unlabelled images learns from the perturbed ones.
    """
    batch, pool = evaluate.seen(fitted.model, fitted.head_states, shift.views), fitted.pool
    batch = batch.take(slice(0, len(shift.labels_N)))
    logits_NMC = batch.logits_NMC
    say = _Teller(task.dataset, shift, (fitted.head.name, fitted.shots, fitted.seed))
    best_NC = singles.best_single_on_test(logits_NMC, shift.labels_N)[1]
    best_N = outcomes.top(best_NC, shift.labels_N, 1)
    answers_NM = logits_NMC.argmax(-1)
    if fitted.states is None or HEADS[fitted.head.head].needs_labels:
        yield from say.method(ON_TEST, "bound", best_NC)
        oracle_NC = singles.oracle(logits_NMC, shift.labels_N)
        yield from say.method("oracle", "bound", oracle_NC, best_N)
        for m, name in enumerate(task.backbones):
            yield from say.method(f"single/{name}", "single", singles.single(logits_NMC, m))
        yield from say.together(answers_NM == shift.labels_N[:, None])
        free = evaluate.ready_label_free(task, batch, pool, fitted.states or {})
        yield from _fused(say, task, free, batch, best_N)
    if fitted.states is not None:
        ready = evaluate.ready_fitted(task, fitted.states, batch, pool)
        yield from _fused(say, task, ready, batch, best_N)


def _fused(
    say: "_Teller", task: Task, ready: Iterator[Ready], batch: Images, best_N: Tensor
) -> Iterator[dict]:
    """Yield the rows of every fuser, and how often it answers as each backbone does."""
    answers_NM = batch.logits_NMC.argmax(-1)
    for entry, state in ready:
        log_probs_NC = FUSERS[entry.fuser].apply(state, *batch)
        yield from say.method(entry.name, FUSERS[entry.fuser].kind, log_probs_NC, best_N)
        followed_M = (log_probs_NC.argmax(1)[:, None] == answers_NM).double().mean(0)
        weights_NM = weights_of(FUSERS[entry.fuser], state, batch)
        for m, backbone in enumerate(task.backbones):
            method = f"{entry.name}/{backbone}"
            yield say.row(method, "measure", "followed", float(followed_M[m]))
            if weights_NM is not None:
                yield say.row(method, "measure", "weight", float(weights_NM[:, m].mean()))


class _Teller:
    """Makes score rows of one dataset, shift and (head, shots, seed)."""

    def __init__(self, dataset: str, shift: Shift, place: tuple[str, int, int]):
        self.dataset, self.shift, self.place = dataset, shift, place

    def row(self, method: str, kind: str, metric: str, value: float, *interval: float) -> dict:
        """Make one row."""
        head, shots, seed = self.place
        low, high = interval or (None, None)
        return {
            "dataset": self.dataset,
            "split": "test",
            "perturbation": self.shift.perturbation,
            "severity": self.shift.severity,
            "head": head,
            "method": method,
            "kind": kind,
            "shots": shots,
            "seed": seed,
            "metric": metric,
            "value": value,
            "ci_low": low,
            "ci_high": high,
            "n_scored": len(self.shift.labels_N),
            "n_expected": self.shift.expected,
        }

    def method(
        self, method: str, kind: str, log_probs_NC: Tensor, best_N: Tensor | None = None
    ) -> Iterator[dict]:
        """Yield top-1 and NLL of a method, and its gain over the single backbone that is best under this shift."""
        labels_N = self.shift.labels_N
        right_N = outcomes.top(log_probs_NC, labels_N, 1)
        yield self.row(method, kind, "top1", *intervals.wilson(float(right_N.sum()), len(right_N)))
        yield self.row(method, kind, "nll", float(outcomes.nll(log_probs_NC, labels_N).mean()))
        if best_N is not None:
            gain = intervals.normal_interval(right_N - best_N)
            yield self.row(method, kind, "gain_on_test", *gain)

    def together(self, right_NM: Tensor) -> Iterator[dict]:
        """Yield the oracle and the complementarity of the backbones."""
        patterns = complementarity.patterns(right_NM)
        again = complementarity.of_set(complementarity.resample(patterns, RESAMPLES, seed=0))
        values = complementarity.of_set(patterns)
        for metric in OF_SET:
            if metric in values:
                interval = intervals.percentiles(again[metric])
                yield self.row("set", "measure", metric, float(values[metric]), *interval)
