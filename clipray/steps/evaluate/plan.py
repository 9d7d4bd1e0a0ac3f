"""Embeddings and classifiers → outcomes and scores, for one dataset; what calls it needs no torch."""

from collections.abc import Sequence

from clipray.artefacts.evaluations import OUTCOMES, SCORES, Task, what
from clipray.steps.evaluate.parts import Part, whole
from clipray.store import Store


def evaluate(
    store: Store, task: Task, place: str, part: Part | None = None, device: str = "cpu"
) -> dict:
    """Score heads and fusers on one dataset: all of them, or a part.

    Args:
        place: the task's `address`, as the caller knows it.
        device: "cuda" where the task has a part of a GPU.

    Returns:
        what `join` has to know of a part.
    """
    from clipray.steps.evaluate import score

    if part is None or part == whole(task):
        score.evaluate(store, task, place, what(task), device)
        return {}
    done = f"{place}/{part.folder}/facts.json"
    if not store.exists(done):
        facts, tables = score.score_part(store, task, place, part, device)
        for name, table in tables.items():
            store.write_table(f"{place}/{part.folder}/{name}", table)
        store.write_json(done, facts)
    return store.read_json(done)


def join(store: Store, about: dict, place: str, done: Sequence[Part], facts: dict) -> None:
    """Put the parts' tables together, and declare the evaluation complete.

    Args:
        about: what its address, `place`, is made of. The caller has computed it; anew it takes half a second a process.
        facts: what `evaluate` has returned of a part.
    """
    import pyarrow as pa

    rows = 0
    for name in (OUTCOMES, SCORES):
        tables = [store.read_table(f"{place}/{part.folder}/{name}") for part in done]
        table = pa.concat_tables(tables)
        store.write_table(f"{place}/{name}", table)
        rows = len(table)
    store.finish(place, about, rows=rows, **facts)
    for part in done:
        for name in (OUTCOMES, SCORES, "facts.json"):
            store.remove(f"{place}/{part.folder}/{name}")
