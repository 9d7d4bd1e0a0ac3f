"""What a search may see of a dataset: support sets of its train split, and other images there to score fits on."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from clipray.artefacts import classifiers
from clipray.artefacts import evaluations as evaluate
from clipray.artefacts.evaluations import Task
from clipray.config import fingerprint
from clipray.config.search import Tune
from clipray.steps.tune.records import Cell
from clipray.store import Store

INSIDE = "per_dataset"  # the selection that scores inside the support set; the others on the rest of the train split


@dataclass(frozen=True)
class Problem:
    """One dataset's rows of the train split that are in use; the test split is not in it.

    Attributes:
        embeddings: M arrays R×D_m, float32. labels_R: int64. weights: M class-vector arrays C×D_m.
        scales: logit scale and bias of each backbone.
        parts: by support set, the pairs of rows to fit on and rows to score; several pairs are folds.
        folds: at most, where head and fuser live on the same labels.
    """

    embeddings: tuple
    labels_R: np.ndarray
    weights: tuple
    scales: tuple
    parts: dict[Cell, list[tuple[np.ndarray, np.ndarray]]]
    folds: int


def what(task: Task, config: Tune) -> dict:
    """Name the WHAT of a dataset's problem."""
    data = {
        "embeddings": task.embeddings,  # of the test split the ids, which are never drawn
        "classifiers": task.classifiers,
        "scales": task.scales,
    }
    inside = config.selection == INSIDE
    return data | {
        "inside": inside,
        "queries": None if inside else config.queries,
        "folds": config.folds,
    }


def address(store: Store, task: Task, config: Tune) -> str:
    """Name the address of the list of a dataset's support sets."""
    told = {**what(task, config), "shots": config.shots, "seeds": config.seeds, "code": code()}
    return store.address("tuning", task.dataset, what=told)


def code() -> dict:
    """Fingerprint all code that a fit's score passes through."""
    return evaluate.code(prepare, cases, "clipray.steps.tune.trial")


def prepare(store: Store, place: str, task: Task, config: Tune) -> tuple[Problem, str]:
    """Draw a dataset's support sets and what to score on; list them in an artefact at `place`, given back too."""
    from clipray.steps import read

    weights = tuple(classifiers.read(store, one) for one in task.classifiers)
    train = read.read_train(store, task, len(weights[0]))
    parts, skipped = {}, []
    sets = read.draw(store, task, train, len(weights[0]), config.shots, config.seeds)
    for draw in sets.draws:
        own = _parts(train, draw, config)
        if own:
            parts[Cell(task.dataset, draw.shots, draw.seed)] = own
        else:
            skipped.append(
                {"shots": draw.shots, "seed": draw.seed, "reason": "no image is left to score on"}
            )
    used = np.unique(
        np.concatenate(
            [rows for own in parts.values() for pair in own for rows in pair] or [np.zeros(0)]
        )
    )
    used = used.astype(np.int64)
    parts = {
        cell: [tuple(np.searchsorted(used, rows) for rows in pair) for pair in own]
        for cell, own in parts.items()
    }
    embeddings = tuple(e_ND.numpy()[used] for e_ND in train.embeddings)
    cells = [[cell.shots, cell.seed, len(own)] for cell, own in parts.items()]
    if store.manifest(place) is None:
        store.finish(place, what(task, config), cells=cells, skipped=skipped)
    return Problem(
        embeddings, train.labels_N.numpy()[used], weights, task.scales, parts, config.folds
    ), place


def _parts(train: Any, draw: Any, config: Tune) -> list[tuple[np.ndarray, np.ndarray]]:
    """List (rows to fit on, rows to score) of one support set; folds of it, or all of it and the rest of the split."""
    import torch

    from clipray.numerics.fusers.convex import in_turn

    rows_K = np.sort(draw.rows_K)
    if config.selection == INSIDE:
        number_K = in_turn(train.labels_N[torch.from_numpy(rows_K)], config.folds).numpy()
        pairs = [
            (rows_K[number_K != fold], rows_K[number_K == fold])
            for fold in range(number_K.max(initial=-1) + 1)
        ]
    else:
        rest = np.setdiff1d(np.arange(len(train.image_ids)), rows_K)
        order = np.random.default_rng(draw.seed).permutation(len(rest))[: config.queries]
        pairs = [(rows_K, np.sort(rest[order]))]
    for pair in pairs:
        assert not set(pair[0]) & set(pair[1]), "an image to score on is in the support set"
    return [pair for pair in pairs if len(pair[0]) and len(pair[1])]


def cases(problem: Problem, cell: Cell, head: str, settings: dict) -> list[tuple[Any, Any]]:
    """Give for each part of a support set what a fuser is fitted on, and what it is scored on (two `Support`s).

    The head learns from the part to fit on alone; the fuser sees its cross-fitted logits there.
    """
    import torch

    from clipray.numerics.heads import cross_fit, head_of

    kind, found = head_of(head, settings), []
    for fit_rows, held_rows in problem.parts[cell]:
        rows = np.concatenate([fit_rows, held_rows])
        labels_N = torch.tensor(problem.labels_R[rows])
        parts = torch.arange(len(rows)).split([len(fit_rows), len(held_rows)])
        views = _views(problem, rows)
        found.append(cross_fit.held_out(kind, views, labels_N, parts, cell.seed, problem.folds))
    return found


def _views(problem: Problem, rows: np.ndarray) -> list[Any]:
    """Show each backbone (`View`) on some rows of a problem."""
    import torch

    from clipray.numerics.heads.cross_fit import View

    every = zip(problem.embeddings, problem.weights, problem.scales, strict=True)
    return [
        View("", torch.tensor(w_CD), *scale, torch.tensor(e_RD[rows]))
        for e_RD, w_CD, scale in every
    ]


def sources(tasks: list[Task], config: Tune) -> dict[str, str]:
    """Compute by dataset the fingerprint of all that its fits read."""
    return {task.dataset: fingerprint(what(task, config)) for task in tasks}
