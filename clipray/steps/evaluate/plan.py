"""Embeddings and classifiers → outcomes and scores, for one dataset: what is asked for, and where it lies; no torch."""

from collections.abc import Callable

from clipray import fingerprint
from clipray.steps.evaluate.task import OUTCOMES, SCORES, Task
from clipray.store import Store

__all__ = ["OUTCOMES", "SCORES", "Task", "address", "code", "evaluate", "what"]


def what(task: Task) -> dict:
    """The WHAT: the task itself, and the code that turns it into numbers."""
    return {"task": task, "code": code()}


def code(*more: Callable | str) -> dict:
    """Fingerprint all code that turns embeddings into scores, and what `more` functions or modules reach."""
    return fingerprint.code(evaluate, *more)


def address(store: Store, task: Task) -> str:
    """Where a dataset's scores and outcomes lie."""
    return store.address("evaluations", task.dataset, what=what(task))


def evaluate(store: Store, task: Task, place: str) -> None:
    """Score every head and fuser on one dataset.

    Args:
        place: the task's `address`, as the caller knows it.
    """
    from clipray.steps.evaluate import score

    score.evaluate(store, task, place, what(task))
