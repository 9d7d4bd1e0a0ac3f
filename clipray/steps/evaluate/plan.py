"""Embeddings and classifiers → outcomes and scores, for one dataset: heads, bounds, fusers, complementarity."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from clipray import fingerprint
from clipray.artefacts import support_sets
from clipray.config import Fuser, Head
from clipray.steps.checks import named_heads
from clipray.steps.embed import plan as embed
from clipray.steps.embed import texts as classifiers
from clipray.steps.evaluate import fitted as fitted_fusers
from clipray.steps.evaluate import score as views
from clipray.steps.evaluate.rows import Scores
from clipray.store import Store

SCORES, OUTCOMES = "scores.parquet", "outcomes.parquet"


@dataclass(frozen=True)
class Task:
    """Everything that the evaluation of one dataset reads, by address."""

    dataset: str
    backbones: tuple[str, ...]
    classifiers: tuple[str, ...]
    scales: tuple[tuple[float, float], ...]  # logit scale and bias of each backbone
    embeddings: dict[str, tuple[str, ...]]  # by split
    expected: int  # images of the test split
    heads: tuple[str | Head, ...]
    fusers: tuple[Fuser, ...]
    shots: tuple[int, ...]
    seeds: int
    folds: int
    save_fusers: bool = False
    costs: tuple[dict, ...] = field(  # of each backbone, see `cost.method_cost`
        default=(), metadata={"how": fingerprint.How("measured on some machine, not asked for")}
    )

    @property
    def what(self) -> dict:
        """The WHAT: the task itself, and the code that turns it into numbers."""
        return {"task": self, "code": code()}


def code(*more: Callable | str) -> dict:
    """Fingerprint all code that turns embeddings into scores, and what `more` functions or modules reach."""
    return fingerprint.code(evaluate, *more)


def address(store: Store, task: Task) -> str:
    """Where a dataset's scores and outcomes lie."""
    return store.address("evaluations", task.dataset, what=task.what)


@dataclass(frozen=True)
class Split:
    """A split's images that every backbone has embedded and that have a label; sorted by image id."""

    image_ids: list[str]
    labels_N: Any  # int64 tensor
    embeddings: tuple  # M float tensors N×D_m


def read_split(store: Store, places: tuple[str, ...], classes: int) -> Split:
    """Read all backbones' embeddings of a split and join them by image id.

    Raises:
        ValueError: the backbones have seen different images or labels.
    """
    import torch

    tables = [embed.read(store, place) for place in places]
    ids, labels = tables[0]["image_id"], tables[0]["label"]
    for place, table in zip(places, tables, strict=True):
        if not (table["image_id"].equals(ids) and table["label"].equals(labels)):
            raise ValueError(f"{place} holds other images or labels than {places[0]}")
    kept = pa.compute.and_(
        pa.compute.greater_equal(labels, 0), pa.compute.less(labels, classes)
    ).fill_null(False)
    for table in tables:
        kept = pa.compute.and_(kept, table["error"].is_null())
    matrices = []
    for table in tables:
        column = table["embedding"].filter(kept).combine_chunks()
        flat = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        matrices.append(torch.from_numpy(flat.reshape(len(column), column.type.list_size)))
    labels_N = torch.from_numpy(labels.filter(kept).to_numpy().astype(np.int64))
    return Split(ids.filter(kept).to_pylist(), labels_N, tuple(matrices))


def read_train(store: Store, task: Task, classes: int) -> Split:
    """The train split without the images that stand in the test split too: nothing may learn from them."""
    import torch

    from clipray.numerics import draws

    train = read_split(store, task.embeddings["train"], classes)
    test_ids = support_sets.tested(store, task.embeddings["test"][0])
    rows = np.flatnonzero(draws.apart(train.image_ids, test_ids))
    rows_N = torch.from_numpy(rows)
    return Split(
        [train.image_ids[row] for row in rows],
        train.labels_N[rows_N],
        tuple(e_ND[rows_N] for e_ND in train.embeddings),
    )


def draw(
    store: Store, task: Task, train: Split, classes: int, shots: Sequence[int], seeds: int
) -> support_sets.SupportSets:
    """Draw and record the support sets of a dataset's train split; every step draws by this."""
    labels_N, test = train.labels_N.numpy(), task.embeddings["test"][0]
    return support_sets.draw(
        store, task.dataset, train.image_ids, labels_N, test, classes, shots, seeds
    )


def evaluate(store: Store, task: Task, place: str) -> None:
    """Score every head and fuser on one dataset.

    Args:
        place: the task's `address`, as the caller knows it.
    """
    import torch

    weights = tuple(torch.from_numpy(classifiers.read(store, c)) for c in task.classifiers)
    classes = len(weights[0])
    test = read_split(store, task.embeddings["test"], classes)
    splits, drawn, facts = {"test": test}, [], {}
    if "train" in task.embeddings and task.shots:
        splits["train"] = read_train(store, task, classes)
        sets = draw(store, task, splits["train"], classes, task.shots, task.seeds)
        drawn, facts = sets.draws, {"support_sets": sets.address}
    facts |= support_sets.facts(drawn)
    scores = Scores(task.dataset, test.image_ids, test.labels_N, task.expected)
    views.score_support(scores, drawn, task.seeds)
    views.score_spaces(scores, task.backbones, test.embeddings, weights)
    for head in named_heads(task.heads):
        fitted = views.score_head(scores, head, task, drawn, splits, weights)
        if task.save_fusers:
            save(store, place, task, head.name, fitted)
    store.write_table(f"{place}/{OUTCOMES}", scores.outcomes())
    store.write_table(f"{place}/{SCORES}", scores.scores())
    store.finish(place, task.what, rows=len(scores.rows), **facts)


def save(
    store: Store, place: str, task: Task, head: str, fitted: dict[tuple[int, int], dict]
) -> None:
    """Write the fitted fusers of one head.

    Args:
        fitted: by (shots, seed), then by the fuser's name.
    """
    about = {
        "dataset": task.dataset,
        "head": head,
        "backbones": task.backbones,
        "classifiers": task.classifiers,
    }
    entries = {entry.name: entry for entry in task.fusers}
    for (shots, seed), states in fitted.items():
        for name, state in states.items():
            file = fitted_fusers.path(place, head, name, shots, seed)
            fitted_fusers.write(store, file, entries[name], state, **about, shots=shots, seed=seed)
