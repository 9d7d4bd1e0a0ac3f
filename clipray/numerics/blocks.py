"""Compute what each image gives by itself in blocks of images, so that N×M×C is never held twice.

Of many images N×M×C is not held once either: their logits are `Lazy`, computed span by span as they are looked at.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

ELEMENTS = 2**22  # logits of a block: 16 MiB in float32
SPAN = 2**26  # logits that are computed at once: 256 MiB in float32


@dataclasses.dataclass(frozen=True)
class Lazy:
    """Logits N×M×C of which rows are computed when they are asked for: `logits[rows]` is a tensor.

    Attributes:
        compute: (rows, backbone) -> logits_BC.
        images: the rows that are meant, of those that `compute` knows. backbones: numbers, likewise. classes: C.
    """

    compute: Callable[[slice, int], Tensor]
    images: range
    backbones: tuple[int, ...]
    classes: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """N, M and C."""
        return len(self.images), len(self.backbones), self.classes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice) -> Tensor:
        """Compute the logits of some images; their head is applied to no more than a span at once."""
        own = self.images[rows]
        logits_BMC = torch.empty(len(own), len(self.backbones), self.classes)
        for span in spans(logits_BMC):
            part = own[span]
            for place, backbone in enumerate(self.backbones):
                logits_BMC[span, place] = self.compute(slice(part.start, part.stop), backbone)
        return logits_BMC

    def at_hand(self) -> "Tensor | Lazy":
        """Return the logits computed, where they are no more than a span."""
        return self[:] if math.prod(self.shape) <= SPAN else self

    def narrow(self, rows: slice) -> "Lazy":
        """Return the logits of some images, not computed yet."""
        return dataclasses.replace(self, images=self.images[rows])

    def of(self, backbone: int) -> "Lazy":
        """Return the logits of one backbone, not computed yet."""
        return dataclasses.replace(self, backbones=(self.backbones[backbone],))


def narrow(logits_NMC: Tensor | Lazy, rows: slice) -> Tensor | Lazy:
    """Return the logits of some images without computing any."""
    return logits_NMC.narrow(rows) if isinstance(logits_NMC, Lazy) else logits_NMC[rows]


def of_backbone(logits_NMC: Tensor | Lazy, backbone: int) -> Tensor | Lazy:
    """Return the logits of one backbone, N×1×C, without computing any."""
    if isinstance(logits_NMC, Lazy):
        return logits_NMC.of(backbone)
    return logits_NMC[:, backbone : backbone + 1]


def blocks(logits_NMC: Tensor | Lazy) -> Iterator[slice]:
    """Give the rows of one block after another; one block where there is no image.

    >>> list(blocks(torch.zeros(3, 2, 2**20)))
    [slice(0, 2, None), slice(2, 3, None)]
    """
    yield from _cut(logits_NMC, ELEMENTS)


def spans(logits_NMC: Tensor | Lazy) -> Iterator[slice]:
    """Give the rows of one span after another: several blocks, for what has a cost of its own each time."""
    yield from _cut(logits_NMC, SPAN)


def _cut(logits_NMC: Tensor | Lazy, elements: int) -> Iterator[slice]:
    images, *each = logits_NMC.shape
    rows = max(1, elements // max(1, math.prod(each)))
    for at in range(0, max(1, images), rows):
        yield slice(at, min(at + rows, images))


def computed(logits_NMC: Tensor | Lazy) -> Iterator[tuple[slice, Tensor]]:
    """Give the rows and the logits of one block after another; lazy ones are computed a span at once."""
    for span in spans(logits_NMC):
        held_SMC = logits_NMC[span]
        for block in blocks(held_SMC):
            yield slice(span.start + block.start, span.start + block.stop), held_SMC[block]
        del held_SMC  # or two spans are held while the next one is computed


def by_block(
    function: Callable[[Tensor, tuple[Tensor, ...]], Tensor],
    logits_NMC: Tensor | Lazy,
    embeddings: Sequence[Tensor] = (),
) -> Tensor:
    """Apply a function of (logits, embeddings) to each block, and join what it gives along the images.

    Embeddings of half precision are widened block by block.
    """
    joined = None
    for rows, logits_BMC in computed(logits_NMC):
        part = function(logits_BMC, wide([e_ND[rows] for e_ND in embeddings]))
        if len(part) == len(logits_NMC):
            return part
        if joined is None:
            joined = part.new_empty(len(logits_NMC), *part.shape[1:])
        joined[rows] = part
    return joined


def wide(embeddings: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Embeddings in float32 at least.

    >>> wide([torch.zeros(1, 2, dtype=torch.float16)])[0].dtype
    torch.float32
    """
    return tuple(e_ND.float() if e_ND.itemsize < 4 else e_ND for e_ND in embeddings)
