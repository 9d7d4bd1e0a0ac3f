"""How the evaluation of a dataset is cut into tasks, and what memory each takes.

A small dataset is one task. A large one is a task for each head and number of shots, so that it uses a whole cluster;
their tables are then joined. Where there are few datasets for the CPUs, a small one is two tasks a head, or a CPU would
wait for another one's last dataset.
"""

import sys
from collections.abc import Sequence
from typing import NamedTuple

from clipray.artefacts.evaluations import Task
from clipray.numerics import declared
from clipray.steps.checks import named_heads

# logits of all test images, or of one image a class, from which on a dataset is evaluated in parts
LARGE = 10**8
EACH = 4  # datasets a CPU, from which on each is one task where it is small
FLOAT = 4  # bytes
PROCESS = 1500 * 10**6  # bytes of a worker with its libraries, and of a span of images
CUDA = 600 * 10**6  # bytes more of a worker that computes on a GPU
MATRICES = 2  # N×C matrices that are held at once: where a fuser starts that the images teach
WHOLE = 8  # N×C matrices beside three times the logits, where a fuser has to see all images at once
SOLVING = 6  # K×C matrices while a probe is fitted
FOLDS = 3  # probes that are fitted at once where their penalty is chosen, see `prototypes.Probe`
WEIGHING = 40  # K×C matrices while candidates are compared on folds
# logits of a support set that fusers learn from at most, as in `heads.cross_fit`; what is more lies in a file
LEARNED = 2 * 10**8
JUDGES = 4096  # of a support set of one image a class, K×C of so many images is kept in a fit, see `guarded`
STATES = 12  # C×ΣD matrices of all fusers of a support set, on all backbones and on each alone


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


def large(task: Task, classes: int) -> bool:
    """Tell whether a dataset is evaluated in parts, and one support set after another."""
    images = max(task.expected, classes if task.shots else 0)
    return images * len(task.backbones) * classes >= LARGE


def few(datasets: int, cpus: float) -> bool:
    """Tell whether so few datasets are to be evaluated that some of the CPUs would have long nothing to do at the end.

    >>> few(6, 2), few(100, 2)
    (True, False)
    """
    return datasets < EACH * cpus


def parts(task: Task, classes: int, halved: bool = False) -> list[Part]:
    """List the parts that a dataset is evaluated in.

    Args:
        classes: C. halved: whether a small dataset is cut too. Its most shots take about as long as all others.
    """
    heads = [head.name for head in named_heads(task.heads)]
    if large(task, classes):
        return [Part(head, (shots,)) for head in heads for shots in (0, *task.shots)]
    if not halved or len(task.shots) < 2:
        return [whole(task)]
    most = max(task.shots)
    rest = tuple(shots for shots in task.shots if shots != most)
    return [Part(head, own) for head in heads for own in ((0, *rest), (most,))]


def memory(
    task: Task, part: Part, classes: int, dims: Sequence[int], labelled: int = sys.maxsize
) -> int:
    """Compute the bytes that a part takes at most.

    Embeddings are held whole, logits of test images a span at a time. Of support sets all logits are held.

    Args:
        classes: C. dims: the embedding dimension of each backbone. labelled: images that can be drawn, at most.
    """
    images, backbones, width = task.expected, len(task.backbones), sum(dims)
    read = images * (width + 2 * max(dims, default=0))  # two copies of a matrix while it is read
    floats = read + images * MATRICES * classes
    if any(declared.fusers()[fuser.fuser].transductive for fuser in task.fusers):
        floats += images * classes * (3 * backbones + WHOLE)
    return PROCESS + FLOAT * (floats + _fitting(task, part, classes, dims, labelled))


def _fitting(task: Task, part: Part, classes: int, dims: Sequence[int], labelled: int) -> int:
    """Count the numbers that are held while fusers are fitted: at one support set after another, or at all together."""
    backbones, width = len(task.backbones), sum(dims)
    most = max(part.shots, default=0)
    sizes = [min(shots * classes, labelled) for shots in part.shots]  # images of support sets
    largest = max(sizes, default=0)
    every = task.seeds * sum(sizes)  # of all support sets
    bound = max(classes, LEARNED // (backbones * classes))  # images that fusers learn from
    learners = min(largest, bound)
    # one image a class, of which none can be held out
    single = most == 1 or largest > bound == classes
    sets = task.seeds * sum(shots > 0 for shots in part.shots)
    one = large(task, classes)
    learned = task.seeds * sum(min(size, bound) for size in sizes)
    logits = backbones * classes * (learners if one else 2 * learned)  # several are stacked
    held = min(logits, LEARNED) if one else logits
    fits = min(1, sets) if one and not task.save_fusers else sets
    judges = min(learners, JUDGES) if single else learners
    probed = learners
    if _learning_heads(task):
        probed = max(learners, largest * (FOLDS if most > 1 else 1))
    solving = probed * SOLVING + (0 if single else learners * WEIGHING)
    floats = held + classes * (fits * judges * (1 + backbones) + solving)
    floats += width * (2 * every + fits * STATES * classes)
    return floats + 6 * min(largest, width) * width


def _learning_heads(task: Task) -> bool:
    """Tell whether a head learns from labels, and so from the whole support set."""
    return any(declared.heads()[head.head].needs_labels for head in named_heads(task.heads))
