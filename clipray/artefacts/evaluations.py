"""The scores and outcomes of one dataset: what its evaluation is asked for, and where they lie."""

from collections.abc import Callable
from dataclasses import dataclass, field

from clipray import fingerprint
from clipray.config import Fuser, Head
from clipray.store import Store

SCORES, OUTCOMES = "scores.parquet", "outcomes.parquet"
EVALUATE = "clipray.steps.evaluate.score:evaluate"  # that makes them


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
    names: str = (
        ""  # the index that says by which names train images are drawn; empty: by their ids
    )
    save_fusers: bool = False
    held_out: float = 0.0  # part of each support set that fusers alone learn from
    alone: bool = True  # whether every fuser with labels is fitted on each backbone alone, too
    spaces: bool = True  # whether the embeddings are a model's, so that measures of their spaces mean something
    costs: tuple[dict, ...] = field(  # of each backbone, see `cost.method_cost`
        default=(), metadata={"how": fingerprint.How("measured on some machine, not asked for")}
    )


def what(task: Task) -> dict:
    """Return the WHAT of an evaluation: the task itself, and the code that turns it into numbers."""
    return {"task": task, "code": code()}


def code(*more: Callable | str) -> dict:
    """Fingerprint all code that turns embeddings into scores, and what `more` functions or modules reach."""
    return fingerprint.code(EVALUATE, *more)


def address(store: Store, task: Task) -> str:
    """Return the address of a dataset's scores and outcomes."""
    return store.address("evaluations", task.dataset, what=what(task))
