"""Embeddings and classifiers → outcomes and scores, for one dataset; what calls it needs no torch."""

from clipray.artefacts.evaluations import Task, what
from clipray.store import Store


def evaluate(store: Store, task: Task, place: str) -> None:
    """Score every head and fuser on one dataset.

    Args:
        place: the task's `address`, as the caller knows it.
    """
    from clipray.steps.evaluate import score

    score.evaluate(store, task, place, what(task))
