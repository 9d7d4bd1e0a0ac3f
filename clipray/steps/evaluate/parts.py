"""How the evaluation of a dataset is cut into tasks, and what memory each takes.

A small dataset is one task. A large one is a task for each head and number of shots, so that it uses a whole cluster;
their tables are then joined.
"""

from collections.abc import Sequence
from typing import NamedTuple

from clipray.artefacts.evaluations import Task
from clipray.steps.checks import named_heads

LARGE = 10**8  # logits of the test images from which on a dataset is evaluated in parts
FLOAT = 4  # bytes
PROCESS = 1200 * 10**6  # bytes of a worker with its libraries, and of blocks of images
MATRICES = 16  # N×C matrices that are held at once beside the logits


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
