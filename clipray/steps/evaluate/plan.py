"""Embeddings and classifiers → outcomes and scores, for one dataset; what calls it needs no torch.

A small dataset is one task. A large one is a task for each head and number of shots, so that it uses a whole cluster;
their tables are then joined.
"""

from collections.abc import Sequence
from typing import NamedTuple

from clipray.artefacts.evaluations import OUTCOMES, SCORES, Task, what
from clipray.steps.checks import named_heads
from clipray.store import Store

LARGE = 10**8  # logits of the test images from which on a dataset is evaluated in parts
FLOAT = 4  # bytes
PROCESS = 1200 * 10**6  # bytes of a worker with its libraries, and of blocks of images
MATRICES = 12  # N×C matrices that are held at once beside the logits


class Part(NamedTuple):
    """What one task scores.

    Attributes:
        head: its name; empty for all heads. shots: numbers of images a class; 0 stands for what needs no label.
    """

    head: str
    shots: tuple[int, ...]

    @property
    def folder(self) -> str:
        """Where its tables lie until all parts are there, below the evaluation's address."""
        return f"parts/{self.head}-{'-'.join(map(str, self.shots))}"


def whole(task: Task) -> Part:
    """Name the one part of a small dataset."""
    return Part("", (0, *task.shots))


def parts(task: Task, classes: int) -> list[Part]:
    """List the parts that a dataset is evaluated in.

    Args:
        classes: C.
    """
    if task.expected * len(task.backbones) * classes < LARGE:
        return [whole(task)]
    heads = [head.name for head in named_heads(task.heads)]
    return [Part(head, (shots,)) for head in heads for shots in (0, *task.shots)]


def memory(task: Task, part: Part, classes: int, dims: Sequence[int]) -> int:
    """Compute the bytes that a part takes at most: embeddings and logits of test and support images, and N×C results.

    Args:
        classes: C. dims: the embedding dimension of each backbone.
    """
    images, backbones, width = task.expected, len(task.backbones), sum(dims)
    support = task.seeds * sum(part.shots) * classes  # images of all support sets together
    floats = images * (width + backbones * classes + MATRICES * classes)
    floats += support * (width + 2 * backbones * classes)
    return PROCESS + FLOAT * floats


def evaluate(store: Store, task: Task, place: str, part: Part | None = None) -> dict:
    """Score heads and fusers on one dataset: all of them, or a part.

    Args:
        place: the task's `address`, as the caller knows it.

    Returns:
        what `join` has to know of a part.
    """
    from clipray.steps.evaluate import score

    if part is None or part == whole(task):
        score.evaluate(store, task, place, what(task))
        return {}
    done = f"{place}/{part.folder}/facts.json"
    if not store.exists(done):
        facts, tables = score.score_part(store, task, place, part)
        for name, table in tables.items():
            store.write_table(f"{place}/{part.folder}/{name}", table)
        store.write_json(done, facts)
    return store.read_json(done)


def join(store: Store, task: Task, place: str, done: Sequence[Part], facts: dict) -> None:
    """Put the parts' tables together, and declare the evaluation complete."""
    import pyarrow as pa

    rows = 0
    for name in (OUTCOMES, SCORES):
        tables = [store.read_table(f"{place}/{part.folder}/{name}") for part in done]
        table = pa.concat_tables(tables)
        store.write_table(f"{place}/{name}", table)
        rows = len(table)
    store.finish(place, what(task), rows=rows, **facts)
    for part in done:
        for name in (OUTCOMES, SCORES, "facts.json"):
            store.remove(f"{place}/{part.folder}/{name}")
