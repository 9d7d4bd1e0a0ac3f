"""What an actor takes of a machine's memory, and how much of it an actor asks for; arithmetic only.

Ray places an actor only where the memory that it asks for is free, and then places the less beside it. What finds no
node waits for ever. Asks are therefore cut until they cannot decide whether the actors of a run find room: whatever
fits by CPUs and GPUs fits by memory.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from clipray.config import Pool
from clipray.steps.nodes import Node
from clipray.steps.pools import WEIGHTS

WORKER = 800 * 10**6  # bytes of a process that has imported torch and open_clip
CUDA = 600 * 10**6  # bytes more of one that computes on a GPU
ACTIVE = 120  # times the crops of a batch, that a model on a CPU makes of them: pixels, activations
SURE = 0.9  # of a node's memory that is shared out: nodes of one kind report a little more or less of it
CLOSE = 1e-6  # of a CPU or GPU: sums of parts are no whole numbers


class Decoding(NamedTuple):
    """What a decoding task asks for: CPUs and bytes."""

    cpus: float
    memory: float


class Actors(NamedTuple):
    """The actors of a pool, and the bytes that each takes."""

    pool: Pool
    memory: float

    @property
    def most(self) -> int:
        """How many there may be."""
        return max(self.pool.size, self.pool.max_size)

    def on(self, node: Node) -> bool:
        """Whether a node has the CPUs and GPUs of one."""
        pool = self.pool
        return pool.num_cpus <= node.cpus + CLOSE and pool.num_gpus <= node.gpus + CLOSE


def taken(cards: Sequence[Mapping], batch_size: int, gpu: bool) -> float:
    """Estimate the bytes that an actor of some backbones takes for itself at most.

    Measured were actors of nine backbones on a CPU, from rn-32 to ViT-L-14 (`tests/steps/test_memory.py` has the
    figures). They took 0.47 to 0.97 of this estimate. A text tower and a copy of what is loaded are counted in sizes of
    the image tower's weights, because a card tells no more. Backbones of a process come one after another, so that only
    one has activations. A shard's crops lie in Ray's object store, which has memory of its own, and are not copied.

    Of an actor on a GPU nothing was measured. Its model is made on the host and then moved, so it takes the same for
    weights; activations are on the GPU.

    Args:
        cards: of its backbones. batch_size: images that it computes at a time. gpu: whether on a GPU.
    """
    weights = WEIGHTS * 1e6 * math.fsum(card["memory_mb"] for card in cards)
    if gpu:
        return WORKER + CUDA + weights
    crops = [3 * math.prod(card["preprocess"][0]) for card in cards]
    return WORKER + weights + ACTIVE * batch_size * max(crops, default=0)


def asked(actors: Sequence[Actors], nodes: Iterable[Node], decoding: Decoding) -> list[int]:
    """Compute the bytes that each actor of each pool asks for: what it takes, or a part of it where memory is short.

    On every node all actors that its CPUs and GPUs can hold, and one decoding task, find memory together, in whatever
    order they come. An actor asks for the same wherever it is placed, so the node with the least memory for it counts.
    Where a node has none to spare, or does not say how much it has, what could be placed there asks for none.
    """
    parts: list[list[float]] = [[] for _ in actors]
    for node in nodes:
        held = [number for number, one in enumerate(actors) if one.on(node)]
        part = _part([actors[number] for number in held], node, decoding)
        for number in held:
            parts[number].append(part)
    return [int(one.memory * min(own, default=0.0)) for one, own in zip(actors, parts, strict=True)]


def _part(actors: Sequence[Actors], node: Node, decoding: Decoding) -> float:
    """Tell what part of the bytes that actors take a node has for all that it can hold beside a decoding task."""
    decodes = decoding.cpus <= node.cpus + CLOSE and decoding.memory <= node.memory
    room = SURE * node.memory - (decoding.memory if decodes else 0.0)
    most = min(
        _filled(actors, lambda pool: pool.num_cpus, node.cpus),
        _filled(actors, lambda pool: pool.num_gpus, node.gpus),
    )
    if room <= 0:
        return 0.0
    return min(1.0, room / most) if most else 1.0


def _filled(actors: Sequence[Actors], size: Callable[[Pool], float], room: float) -> float:
    """Add up the bytes of the actors that fill a room, those with the most bytes for their size first.

    A part of the last one counts: no choice of whole ones takes more.
    """
    free = [one for one in actors if not size(one.pool)]
    sized = [one for one in actors if size(one.pool)]
    total = math.fsum(one.most * one.memory for one in free)
    left = room + CLOSE
    for one in sorted(sized, key=lambda own: own.memory / size(own.pool), reverse=True):
        number = min(one.most, left / size(one.pool))
        total += number * one.memory
        left -= number * size(one.pool)
    return total
